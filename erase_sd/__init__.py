"""erase-sd takes a concept out of Stable Diffusion, and shows that it is gone.

The Python words are the commands' own: `unlearn`, `generate`, `score`, `load`. Nothing heavy is
imported before one of them is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, DivergedError, EraseError, ModelError, RunError, SettingError

if TYPE_CHECKING:
    from transformers import CLIPTextModel

    from .scoring import Tables

__version__ = "0.1.0"
__all__ = [
    "DataError",
    "DivergedError",
    "EraseError",
    "ModelError",
    "RunError",
    "SettingError",
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
    `erase_sd.settings.Settings`. Raises EraseError.
    """
    from . import presets, rundir, unlearning
    from .settings import Settings, concepts_from

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
    preset: str | None = None,
    model: str | Path | None = None,
    revision: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **settings: Any,
) -> Path:
    """Draws the prompts of one or more files with both encoders; returns the run folder.

    The run is found by the first file's name where none is given, and a `retain.txt` beside that
    file is drawn too. The model is the run's own where none is named. `settings` are fields of
    `erase_sd.generation.Settings`. Raises EraseError.
    """
    from . import generation, presets, rundir

    files = [Path(p) for p in ([prompts] if isinstance(prompts, str | Path) else prompts)]
    if not files:
        raise SettingError("--prompts: needs a file, e.g. prompts/apple.txt")
    beside = files[0].with_name("retain.txt")
    if beside.is_file() and beside not in files:
        files.append(beside)
    folder = rundir.folder_of(run, (files[0].stem,))
    made = generation.Settings(**settings)
    found = rundir.Run(folder)
    models = presets.of_run(found, preset=preset, model=model, revision=revision)
    generation.generate(files, made, models, found, progress)
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
    from . import presets, rundir, scoring

    runs = [rundir.Run(rundir.folder_of(run))] if run is not None else scoring.all_runs()
    if not runs:
        raise RunError(f"no run with images in {rundir.RUNS}/; unlearn and generate first")
    tables = scoring.Tables()
    for found in runs:
        models = presets.of_run(found, preset=preset, detector=detector)
        tables += scoring.score(found, models, detector_class, progress)
    return tables


def load(run: str | Path, encoder: str = "text_encoder") -> CLIPTextModel:
    """The erased text encoder of a run folder: `pipe.text_encoder = erase_sd.load("runs/apple")`.

    SDXL has a second one, `text_encoder_2`. Raises EraseError.
    """
    from . import artifact

    return artifact.load(run, encoder)
