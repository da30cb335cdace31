"""A process killed before any write, rename or fsync of a stage: done again, the result is the same."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faulty import Faults, calls_of, forked, killed_at
from report_run import known_answers
from unlearn_runs import short

from erase_sd.attacks.settings import AttackSettings
from erase_sd.attacks.stage import attack
from erase_sd.attacks.target import Target
from erase_sd.checked import hash_folder
from erase_sd.comparison import runner
from erase_sd.comparison.cell import attempt
from erase_sd.evaluation.stage import evaluate
from erase_sd.files import PARTIAL
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models.export import export
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.scoring import stage as scoring
from erase_sd.unlearning.stage import unlearn

pytestmark = [pytest.mark.faults, pytest.mark.forks]
TIMES = ("seconds", "peak_memory_mb", "seconds_per_step", "resumed_at", "versions")
OWN = (".lock", ".writer")  # a killed writer's stay, and the next one takes them over
TIMED = ("attacks.md", "comparison.csv", "comparison.md", "pareto.png")  # hold seconds, megabytes
ATTACK = AttackSettings(
    attacks=("embeddings",), budgets={"counts": 1, "steps": 2, "captions": 2}, images=2, steps=1
)
PROMPTS = ("an apple", "a dog", "a red apple on a table", "an orange")


@pytest.fixture
def stages(tiny: Models, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], object]]:
    """Each stage of one run in the working directory, resting on those before it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has none of OpenMP's threads
    Path("apple.txt").write_text("\n".join(PROMPTS[:4]))
    run = Run(Path("runs/apple"))

    def answers(detector: Path, images: list[Path], *_: object) -> object:
        return known_answers(detector, [Path(i.parent.name, "apple-0000.png") for i in images])

    monkeypatch.setattr("erase_sd.scoring.detections.detect", answers)
    monkeypatch.setattr(
        Target, "probabilities", lambda _, files: [0.9 * (i % 2) for i in range(len(files))]
    )
    settings = short(steps=4)
    yield {
        "unlearn": lambda: unlearn(settings, tiny, run),
        "generate": lambda: generate(
            [Path("apple.txt")], GenerateSettings(steps=2, batch=2), tiny, run
        ),
        "score": lambda: scoring.score(run, tiny),
        "export": lambda: export(run, tiny, "diffusers"),
        "evaluate": lambda: evaluate(run, tiny),
        "attack": lambda: attack(run, tiny, ATTACK),
        "compare": _compare_in_one_process(tiny),
    }  # type: ignore[misc]
    torch.set_num_threads(threads)


def _compare_in_one_process(tiny: Models) -> Callable[[], object]:
    """A comparison of two cells whose cells run in the process that is killed."""

    def compare() -> object:
        for stem in ("apple", "retain"):
            Path("prompts").mkdir(exist_ok=True)
            Path(f"prompts/{stem}.txt").write_text("an apple\na dog\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "in_own_process", attempt)
            return runner.compare(
                ["apple"], ["ga:steps=2,learning_rate=1e-6"], models=tiny, seeds=2,
                out=Path("runs/grid"), prompts_folder=Path("prompts"), images_per_prompt=1,
                dtype="fp32", images=True,
            )  # fmt: skip

    return compare


def contents(folder: Path) -> dict[str, object]:
    """All files of a run, without what differs between two runs of the same work."""

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in TIMES}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in OWN + TIMED):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            texts = text.splitlines() if path.suffix == ".jsonl" else [text]
            found[name] = [timeless(json.loads(one)) for one in texts]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize(
    "every",
    [
        pytest.param(23, id="some"),
        pytest.param(1, id="all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "stage",
    [
        "unlearn", "generate", pytest.param("score", marks=pytest.mark.forks(tensors=False)), "export",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("evaluate", "attack", "compare")),
    ],
)  # fmt: skip
def test_a_stage_killed_anywhere_ends_the_same_when_it_is_done_again(
    stages: dict[str, Callable[[], object]], stage: str, every: int, faults: Faults
) -> None:
    for name, work in stages.items():
        if name == stage:
            break
        work()
    before = Path("before")
    Path("runs").mkdir(exist_ok=True)
    shutil.copytree("runs", before)
    calls = calls_of(stages[stage], Path("calls"))
    expected = contents(Path("runs"))
    assert len(calls) > 10
    if stage == "compare":
        every = max(
            every, 9
        )  # its cells are made of the other stages, each killed everywhere above
    for number in range(0, len(calls), every):
        with faults(f"kills: {stage}", f"before {calls[number]} {number}"):
            shutil.rmtree("runs")
            shutil.copytree(before, "runs")
            shutil.rmtree("cache", ignore_errors=True)
            assert killed_at(stages[stage], number) == -signal.SIGKILL
            assert forked(stages[stage]) == 0
            assert contents(Path("runs")) == expected
            left = [p for p in Path("runs").rglob(".*") if p.name.endswith((PARTIAL, ".old"))]
            assert left == []


@pytest.mark.slow
def test_a_cache_killed_while_it_is_written_is_made_again(faults: Faults) -> None:
    from erase_sd.mini.dataset import dataset

    calls = calls_of(lambda: dataset(20), Path("calls"))
    folder = dataset(20)
    expected = hash_folder(folder, "*")
    for number in range(0, len(calls), max(1, len(calls) // 8)):
        with faults("kills: caches", f"before {calls[number]} {number}"):
            shutil.rmtree("cache", ignore_errors=True)
            assert killed_at(lambda: dataset(20), number) == -signal.SIGKILL
            assert hash_folder(dataset(20), "*") == expected
            assert [p.name for p in folder.parent.iterdir() if p.name.endswith(PARTIAL)] == []
