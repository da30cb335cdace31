"""One function for each stage. Nothing heavy is imported before one of them is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EraseError, RunError, SettingError
from ..run import RUNS, Run, run_folder
from ..run.differences import different_settings
from ..runtime import Approval, Progress, log
from .arguments import texts
from .turns import in_turn

if TYPE_CHECKING:
    from ..models.presets import Preset
    from ..models.source import Source
    from ..run.measurements import ScoresRecord


@in_turn
def unlearn(
    concepts: str | Sequence[str],
    *,
    synonyms: str | Sequence[str] = (),
    keep_senses: str | Sequence[str] = (),
    run: str | Path | None = None,
    preset: Preset = "mini",
    model: Source | None = None,
    revision: str | None = None,
    clip: Source | Sequence[Source] | None = None,
    data: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Path:
    """Erases one or more concepts from the text encoder or the U-Net and returns the run folder.

    `synonyms` are erased with the concept; phrases in `keep_senses` ("apple laptop") are not. `data`
    is a folder of Flickr30K, CIFAR-100 or webdataset shards, or with one folder of images per class, or
    "synth" for pairs that the model generates itself. With preset "mini", a `clip` without a `model` is a
    CLIP or BLIP to unlearn alone. `settings` are fields of
    `erase_sd.unlearning.settings.UnlearnSettings`. Raises EraseError; NotErasedError if the run is
    complete but the concept is still there.
    """
    from ..models.presets import resolve
    from ..unlearning.settings import UnlearnSettings, parse_concepts
    from ..unlearning.stage import check_erased
    from ..unlearning.stage import unlearn as unlearn_stage

    names = texts(concepts)
    words = parse_concepts(names, texts(synonyms), texts(keep_senses))
    parsed = UnlearnSettings(concepts=words, **settings)
    folder = run_folder(run, names)
    models = resolve(preset, model, clip, data, revision=revision)
    own = Run(folder)
    unlearn_stage(parsed, models, own, progress)
    assert parsed.max_residual is not None  # the method's, if none was set
    check_erased(own, parsed.max_residual)
    return folder


@in_turn
def generate(
    prompts: str | Path | Sequence[str | Path],
    *,
    run: str | Path | None = None,
    kinds: bool = False,
    reference: bool = False,
    preset: Preset | None = None,
    model: Source | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    approve: Approval | None = None,
    **settings: Any,
) -> Path:
    """Generates images of the prompts with the original and the erased model, from the same seeds.

    Returns the run folder; by default the first prompt file names the run, and `-` is standard input.
    A `retain.txt` beside that file is included, with `kinds` also the files of the other prompt kinds
    (`apple.synonym.txt` beside `apple.txt`). `reference` adds the original's images of the
    concept-removed prompts. The model is the run's own unless another is named. `approve` is called
    before a long run. `settings` are fields of `erase_sd.generation.settings.GenerateSettings`. Raises
    EraseError.
    """
    from ..data.kinds import parse_prompt_file_name
    from ..data.prompts import locate_prompts, prompts_name, with_files_beside
    from ..generation.settings import GenerateSettings
    from ..generation.stage import generate as generate_stage
    from ..models.recorded import models_of_run

    named = [prompts] if isinstance(prompts, str | Path) else prompts
    files = [locate_prompts(Path(name)) for name in named]
    if not files:
        raise SettingError("needs a file, such as prompts/apple.txt", field="prompts")
    files = with_files_beside(files, kinds)
    own = Run(run_folder(run, (parse_prompt_file_name(prompts_name(files[0]))[0],)))
    parsed = GenerateSettings(**settings)
    models = models_of_run(own, preset=preset, model=model, revision=revision)
    generate_stage(files, parsed, models, own, progress, reference, approve)
    return own.folder


@in_turn
def score(
    run: str | Path | None = None,
    *,
    preset: Preset | None = None,
    detector: str | Path | None = None,
    detector_text: Source | None = None,
    detector_class: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> ScoresRecord:
    """Detects objects in the images of a run, by default of all under `runs/`, and returns the rates.

    `detector_class` is the detector's class for the concept; `concept=class`, or several of these,
    for a run that erased more than one. `detector_text` is the text encoder of an open-vocabulary
    detector. Without `run`, a run that cannot be scored is left out, logged as an error, and named in
    `unscored` of the result; different settings, prompts or detectors are logged. Raises EraseError.
    """
    from ..detection.detector import detector_kept
    from ..models.recorded import models_of_run
    from ..scoring.stage import merge, runs_with_images
    from ..scoring.stage import score as score_stage

    runs, unscored = ([Run(run_folder(run))], []) if run is not None else runs_with_images()
    if not runs and not unscored:
        raise RunError(f"no run with images in {RUNS}/; unlearn and generate first")
    classes = texts(detector_class)
    scored = []
    with detector_kept():
        for own in runs:
            try:
                models = models_of_run(
                    own, preset=preset, detector=detector, detector_text=detector_text
                )
                rates = score_stage(own, models, classes, progress)
                scored.append((own.stages, rates))
            except (EraseError, OSError) as error:
                if run is not None:
                    raise
                unscored.append(str(error))
    for why in unscored:
        log.error("%s; left out of the table", why)
    if different := different_settings(scored):
        log.warning("the runs differ in %s, on which their rates depend", ", ".join(different))
    if not scored:
        raise RunError(f"no run in {RUNS}/ could be scored")
    return merge(*(rates for _, rates in scored), unscored=unscored)
