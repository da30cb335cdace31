"""erase-sd takes a concept out of Stable Diffusion, and shows that it is gone.

The Python words are the commands' own: `unlearn`, `generate`, `score`, `evaluate`, `load`.
Nothing heavy is imported before one of them is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, DivergedError, EraseError, ModelError, RunError, SettingError

if TYPE_CHECKING:
    from transformers import CLIPTextModel

    from .comparison.runner import Comparison
    from .evaluation.stage import Evaluation
    from .scoring.stage import Tables

__version__ = "0.1.0"
__all__ = [
    "DataError",
    "DivergedError",
    "EraseError",
    "ModelError",
    "RunError",
    "SettingError",
    "compare",
    "evaluate",
    "explain",
    "generate",
    "load",
    "score",
    "unlearn",
]


def unlearn(
    concepts: str | Sequence[str],
    *,
    synonyms: Sequence[str] = (),
    keep_senses: Sequence[str] = (),
    run: str | Path | None = None,
    preset: str = "mini",
    model: str | Path | None = None,
    revision: str | None = None,
    clip: str | Path | Sequence[str | Path] | None = None,
    data: Path | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    **settings: Any,
) -> Path:
    """Erases one or more concepts from a text encoder; returns the run folder.

    `model` and `clip` are folders or model hub ids; `settings` are fields of
    `erase_sd.unlearning.settings.Settings`. Raises EraseError.
    """
    from . import run as rundir
    from .models import presets
    from .unlearning import stage as unlearning
    from .unlearning.settings import Settings, concepts_from

    names = [concepts] if isinstance(concepts, str) else list(concepts)
    made = Settings(concepts=concepts_from(names, synonyms, keep_senses), **settings)
    folder = rundir.folder_of(run, tuple(names))
    models = presets.resolve(preset, model, clip, data, revision=revision)
    unlearning.unlearn(made, models, rundir.Run(folder), progress)
    return folder


def generate(
    prompts: Path | str | Sequence[Path | str],
    *,
    run: str | Path | None = None,
    kinds: bool = False,
    reference: bool = False,
    preset: str | None = None,
    model: str | Path | None = None,
    revision: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **settings: Any,
) -> Path:
    """Draws the prompts of one or more files with both encoders; returns the run folder.

    The run is found by the first file's name where none is given, and a `retain.txt` beside that
    file is drawn too; with `kinds` also the files of the prompts' kinds, `apple.synonym.txt` beside
    `apple.txt`. `reference` adds the original's images of the prompts without the concept. The model
    is the run's own where none is named. `settings` are fields of `erase_sd.generation.stage.Settings`.
    Raises EraseError.
    """
    from . import run as rundir
    from .data.kinds import beside, read_name
    from .generation import stage as generation
    from .models import presets

    files = [Path(p) for p in ([prompts] if isinstance(prompts, str | Path) else prompts)]
    if not files:
        raise SettingError("--prompts: needs a file, e.g. prompts/apple.txt")
    retain = files[0].with_name("retain.txt")
    more = [*([retain] if retain.is_file() else []), *(beside(files) if kinds else [])]
    files += [file for file in more if file not in files]
    folder = rundir.folder_of(run, (read_name(files[0].stem)[0],))
    made = generation.Settings(**settings)
    found = rundir.Run(folder)
    models = presets.of_run(found, preset=preset, model=model, revision=revision)
    generation.generate(files, made, models, found, progress, reference)
    return folder


def score(
    run: str | Path | None = None,
    *,
    preset: str | None = None,
    detector: Path | None = None,
    detector_class: str | Sequence[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Tables:
    """Detection rates of one run, or of all under `runs/` in the order of their names.

    `detector_class` is the detector's word for the concept; `concept=class`, or several of these,
    where a run erased more than one. Raises EraseError.
    """
    from . import run as rundir
    from .models import presets
    from .scoring import stage as scoring

    runs = [rundir.Run(rundir.folder_of(run))] if run is not None else scoring.all_runs()
    if not runs:
        raise RunError(f"no run with images in {rundir.RUNS}/; unlearn and generate first")
    tables = scoring.Tables()
    for found in runs:
        models = presets.of_run(found, preset=preset, detector=detector)
        tables += scoring.score(found, models, detector_class, progress)
    return tables


def compare(
    concepts: Sequence[str],
    methods: Sequence[str],
    *,
    seeds: int = 3,
    out: Path | str = "comparison",
    prompts_folder: Path | str = "prompts",
    images_per_prompt: int = 1,
    dtype: str = "auto",
    images: bool = True,
    preset: str = "mini",
    model: str | Path | None = None,
    revision: str | None = None,
    clip: str | Path | Sequence[str | Path] | None = None,
    data: Path | None = None,
    detector: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Runs every concept with every method from every seed, and puts them side by side in `out`.

    The split, the prompts and the images' seeds are the same in all runs; the seed is of the batches.
    Concepts joined by "+" go in one run; a method may carry settings, `cliperase:towers=both`. What
    is done is not done again. `dtype` is that of the images; without `images` only the CLIP side is
    measured. Each run is a process of its own, so a script needs `if __name__ == "__main__":`. Raises
    EraseError before anything starts; what ends one run is told in the result.
    """
    from .comparison import runner as comparison

    places = {"preset": preset, "model": model, "revision": revision, "clip": clip, "data": data}
    return comparison.compare(
        concepts, methods, seeds=seeds, out=Path(out), prompts_folder=Path(prompts_folder),
        images_per_prompt=images_per_prompt, dtype=dtype, images=images, places=places,
        detector=detector, progress=progress,
    )  # fmt: skip


def evaluate(
    run: str | Path,
    *,
    images: str | Path | None = None,
    templates: str | Sequence[str] = (),
    clip: str | Path | None = None,
    preset: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """CLIP-side measures of a run, before and after: zero-shot, retrieval, drift; written into the
    run folder.

    They are made on the run's own held-out pairs, or on `images`: a folder of CIFAR-100, of
    webdataset shards, or of a folder for each class. `templates` are prompts with `{}` for the
    class's name. `clip` is a folder or hub id of a CLIP whose text tower the erased one fits, or of a
    BLIP, which is measured alone. Raises EraseError.
    """
    from . import run as rundir
    from .evaluation import stage as evaluation
    from .models import presets

    found = rundir.Run(rundir.folder_of(run))
    models = presets.of_run(found, preset=preset, clip=clip)
    given = [templates] if isinstance(templates, str) else templates
    return evaluation.evaluate(
        found, models, Path(images) if images else None, given or evaluation.TEMPLATES, progress
    )


def explain(run: str | Path) -> list[Path]:
    """Pictures of what an erasure did to CLIP, as PNG in the run folder; returns their paths.

    t-SNE of the held-out pairs, and where the text and the image tower look on forget pairs, before
    and after. Raises EraseError.
    """
    from . import run as rundir
    from .evaluation.explain import stage as explanation
    from .models import presets

    found = rundir.Run(rundir.folder_of(run))
    return explanation.explain(found, presets.of_run(found))


def load(run: str | Path, encoder: str = "text_encoder") -> CLIPTextModel:
    """The erased text encoder of a run folder: `pipe.text_encoder = erase_sd.load("runs/apple")`.

    SDXL has a second one, `text_encoder_2`. Raises EraseError.
    """
    from .models import erased as artifact

    return artifact.load(run, encoder)
