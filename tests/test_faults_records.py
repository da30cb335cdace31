"""Valid and invalid JSON of every wrong shape, in every file of a run and of a model: one line."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from faulty import Faults
from report_run import scored_run

from erase_sd.errors import EraseError
from erase_sd.models import erased
from erase_sd.models.export import export
from erase_sd.models.pipeline import open_pipeline
from erase_sd.models.pipeline_kinds import text_encoders
from erase_sd.models.presets import Models
from erase_sd.models.recorded import models_of_run
from erase_sd.models.text_encoder import check_fit, load_clip
from erase_sd.report import write
from erase_sd.report.contact_sheet import contact_sheet
from erase_sd.run import Run

pytestmark = pytest.mark.faults
SHAPES = (
    "", "[]", "null", "{}", "1", '"x"', "[[]]", '{"format": 2}', '{"format": 2, "stages": []}', "{",
    "NaN", '{"a": 1e999}', "[" * 50_000, "\0" * 64, '{"_class_name": ["x"], "architectures": 1}',
    '{"text_config": [1], "num_hidden_layers": "many", "model_type": {}}',
)  # fmt: skip
RUN_FILES = (
    "run.json", "images.jsonl", "detections.jsonl", "scores.json", "train.jsonl",
    "erased/erase.json", "erased/config.json", "evaluation.json",
)  # fmt: skip
MODEL_FILES = (
    "sd/model_index.json", "sd/text_encoder/config.json", "sd/tokenizer/tokenizer.json",
    "sd/tokenizer/tokenizer_config.json", "sd/unet/config.json", "sd/vae/config.json",
    "sd/scheduler/scheduler_config.json", "clip/config.json", "clip/preprocessor_config.json",
)  # fmt: skip


def marked_slow(names: Sequence[str]) -> list[ParameterSet]:
    """Parameters that are tried with `-m faults` alone."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def one_line(work: Callable[[], object]) -> None:
    """Does `work`; an EraseError has to be a single line."""
    try:
        work()
    except EraseError as error:
        assert len(str(error).splitlines()) == 1


@pytest.fixture(scope="module")
def finished(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finished")
    run = scored_run(tiny, folder)
    (run.folder / "evaluation.json").write_text("{}")
    return run


@pytest.mark.parametrize("name", ["run.json", *marked_slow(RUN_FILES[1:])])
def test_every_reader_of_a_run_survives_every_shape(
    finished: Run, tiny: Models, name: str, faults: Faults
) -> None:
    for number, text in enumerate(SHAPES):
        folder = Path(f"runs/{number}")
        shutil.copytree(finished.folder, folder)
        (folder / name).write_bytes(text.encode())
        run = Run(folder)
        readers: dict[str, Callable[[], object]] = {
            "records": lambda: run.record, "models": lambda: models_of_run(run),
            "images": run.images, "detections": run.detections, "scores": run.scores,
            "evaluation": run.evaluation, "training": run.training,
            "weights": lambda: erased.check(run.erased), "report": lambda: write(run),
            "sheet": lambda: contact_sheet([run], Path("sheet.png")),
            "export": lambda: export(run, tiny, "comfyui"),
        }  # fmt: skip
        with faults("JSON of the wrong shape: runs", f"{name}: {text[:30]!r}"):
            for reader in readers.values():
                one_line(reader)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", marked_slow(MODEL_FILES))
def test_every_reader_of_a_model_survives_every_shape(
    tiny: Models, name: str, faults: Faults, tmp_path: Path
) -> None:
    for number, text in enumerate(SHAPES):
        place = tmp_path / str(number)
        shutil.copytree(tiny.folder, place / "sd")
        shutil.copytree(tiny.clip_folder(0), place / "clip")
        (place / name).write_bytes(text.encode())
        models = dataclasses.replace(tiny, model=place / "sd", clips=(place / "clip",))

        def load(models: Models = models) -> None:
            [encoder] = text_encoders(models.folder)
            check_fit(models.clip_folder(0), encoder.folder)
            load_clip(models.clip_folder(0), encoder)

        with faults("JSON of the wrong shape: models", f"{name}: {text[:30]!r}"):
            one_line(load)
            one_line(lambda models=models: open_pipeline(models.folder))  # type: ignore[misc]
        shutil.rmtree(place)
