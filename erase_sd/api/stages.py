"""One function for each stage. Nothing heavy is imported before one of them is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EraseError, RunError, SettingError
from ..run import RUNS, Run, run_folder
from ..runtime import Approval, Precision, Progress, log

if TYPE_CHECKING:
    from ..comparison.runner import Comparison
    from ..models.presets import Preset
    from ..models.source import Source
    from ..run.measurements import AttacksRecord, EvaluationRecord, ScoresRecord


def unlearn(
    concepts: str | Sequence[str],
    *,
    synonyms: Sequence[str] = (),
    keep_senses: Sequence[str] = (),
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
    "synth" for pairs that the model generates itself. A `clip` without a `model` is a CLIP or BLIP that
    is unlearned alone, unless the preset has a model that it belongs to. `settings` are fields
    of `erase_sd.unlearning.settings.UnlearnSettings`. Raises EraseError; NotErasedError if the run is
    complete but the concept is still there.
    """
    from ..models.presets import resolve
    from ..unlearning.settings import UnlearnSettings, parse_concepts
    from ..unlearning.stage import check_erased
    from ..unlearning.stage import unlearn as unlearn_stage

    names = [concepts] if isinstance(concepts, str) else list(concepts)
    parsed = UnlearnSettings(concepts=parse_concepts(names, synonyms, keep_senses), **settings)
    folder = run_folder(run, tuple(names))
    models = resolve(preset, model, clip, data, revision=revision)
    own = Run(folder)
    unlearn_stage(parsed, models, own, progress)
    check_erased(own, parsed.max_residual)
    return folder


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
    """Generates images of the prompts with the original and the erased encoder, from the same seeds.

    Returns the run folder; by default the first prompt file names the run, and `-` is standard input.
    A `retain.txt` beside that file is included, with `kinds` also the files of the other prompt kinds
    (`apple.synonym.txt` beside `apple.txt`). `reference` adds the original's images of the
    concept-removed prompts. The model is the run's own unless another is named. `approve` is called
    before a long run. `settings` are fields of `erase_sd.generation.settings.GenerateSettings`. Raises
    EraseError.
    """
    from ..data.kinds import kind_files_beside, parse_prompt_file_name
    from ..data.prompts import STANDARD_INPUT, locate_prompts, prompts_name
    from ..generation.settings import GenerateSettings
    from ..generation.stage import generate as generate_stage
    from ..models.presets import models_of_run

    named = [prompts] if isinstance(prompts, str | Path) else prompts
    files = [locate_prompts(Path(name)) for name in named]
    if not files:
        raise SettingError("needs a file, such as prompts/apple.txt", field="prompts")
    retain = files[0].with_name("retain.txt")
    beside = files[0] not in STANDARD_INPUT and retain.is_file()
    more = [*([retain] if beside else []), *(kind_files_beside(files) if kinds else [])]
    files += [file for file in more if file not in files]
    own = Run(run_folder(run, (parse_prompt_file_name(prompts_name(files[0]))[0],)))
    parsed = GenerateSettings(**settings)
    models = models_of_run(own, preset=preset, model=model, revision=revision)
    generate_stage(files, parsed, models, own, progress, reference, approve)
    return own.folder


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
    detector. Of all runs, one that cannot be scored is left out, logged as an error, and named in
    `unscored` of the result. Raises EraseError.
    """
    from ..models.presets import models_of_run
    from ..scoring.stage import merge, runs_with_images
    from ..scoring.stage import score as score_stage

    runs, unscored = ([Run(run_folder(run))], []) if run is not None else runs_with_images()
    if not runs and not unscored:
        raise RunError(f"no run with images in {RUNS}/; unlearn and generate first")
    classes = [detector_class] if isinstance(detector_class, str) else detector_class
    scores = []
    for own in runs:
        try:
            models = models_of_run(
                own, preset=preset, detector=detector, detector_text=detector_text
            )
            scores.append(score_stage(own, models, classes, progress))
        except (EraseError, OSError) as error:
            if run is not None:
                raise
            unscored.append(str(error))
    for why in unscored:
        log.error("%s; left out of the table", why)
    if not scores:
        raise RunError(f"no run in {RUNS}/ could be scored")
    return merge(*scores, unscored=unscored)


def attack(
    run: str | Path,
    *,
    attacks: Sequence[str] = (),
    budgets: Mapping[str, Any] | None = None,
    detector: str | Path | None = None,
    detector_text: Source | None = None,
    detector_class: str | Sequence[str] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> AttacksRecord:
    """Attacks a run's erased encoder and returns how often the concept is generated again.

    `attacks` are names, by default all; `budgets` such as {"textual-inversion.steps": 1000}, and
    `settings`, are fields of `erase_sd.attacks.settings.AttackSettings`. Raises EraseError.
    """
    from ..attacks.settings import AttackSettings
    from ..attacks.stage import attack as attack_stage
    from ..models.presets import models_of_run

    own = Run(run_folder(run))
    settings |= {"attacks": tuple(attacks)} if attacks else {}
    parsed = AttackSettings(budgets=dict(budgets or {}), **settings)
    classes = [detector_class] if isinstance(detector_class, str) else detector_class
    models = models_of_run(own, detector=detector, detector_text=detector_text)
    return attack_stage(own, models, parsed, classes, progress)


def evaluate(
    run: str | Path,
    *,
    images: str | Path | None = None,
    templates: str | Sequence[str] = (),
    clip: Source | None = None,
    preset: Preset | None = None,
    progress: Progress | None = None,
) -> EvaluationRecord:
    """CLIP-side measures before and after: zero-shot prediction, retrieval, drift of hidden states.

    Measured on the run's held-out pairs, or on `images`: a folder of CIFAR-100, of webdataset shards,
    or with one folder per class. `templates` are prompts with `{}` for the class name. `clip` is a
    CLIP that the erased text tower fits, or a BLIP that the run did not erase, which is measured alone.
    Raises EraseError.
    """
    from ..evaluation.stage import TEMPLATES
    from ..evaluation.stage import evaluate as evaluate_stage
    from ..models.presets import models_of_run

    own = Run(run_folder(run))
    models = models_of_run(own, preset=preset, clip=clip)
    texts = [templates] if isinstance(templates, str) else templates
    folder = Path(images) if images else None
    return evaluate_stage(own, models, folder, texts or TEMPLATES, progress)


def explain(run: str | Path) -> list[Path]:
    """Figures of what an erasure did to CLIP, as PNG files in the run folder; returns their paths.

    t-SNE of the held-out pairs, and what the text and the image tower attend to, before and after.
    Raises EraseError.
    """
    from ..evaluation.explain.stage import explain as explain_stage
    from ..models.presets import models_of_run

    own = Run(run_folder(run))
    return explain_stage(own, models_of_run(own))


def compare(
    concepts: Sequence[str],
    methods: Sequence[str],
    *,
    seeds: int = 3,
    out: str | Path = "comparison",
    prompts_folder: str | Path | None = None,
    images_per_prompt: int = 1,
    dtype: Precision = "auto",
    images: bool = True,
    attacks: Sequence[str] = (),
    preset: Preset = "mini",
    model: Source | None = None,
    revision: str | None = None,
    clip: Source | Sequence[Source] | None = None,
    data: str | Path | None = None,
    detector: str | Path | None = None,
    progress: Progress | None = None,
    approve: Approval | None = None,
) -> Comparison:
    """Runs every concept with every method and seed, and writes tables and figures into `out`.

    Concepts joined by "+" are erased in one run; a method may carry settings, `cliperase:towers=both`.
    `seeds` counts training seeds; data split, prompts and image seeds are the same in all runs. `dtype`
    is the precision of image generation; without `images` only CLIP-side measures are taken; `attacks`
    are names. `approve` is called with the number of images. Finished runs are reused. Each run is a process of its own, so a script needs `if __name__ == "__main__":`.
    Raises EraseError before anything starts; a run that fails later is listed in the result.
    """
    from ..comparison.runner import compare as run_grid
    from ..models.presets import resolve

    return run_grid(
        concepts,
        methods,
        models=resolve(preset, model, clip, data, detector, revision),
        seeds=seeds,
        out=Path(out),
        prompts_folder=None if prompts_folder is None else Path(prompts_folder),
        images_per_prompt=images_per_prompt,
        dtype=dtype,
        images=images,
        attacks=attacks,
        progress=progress,
        approve=approve,
    )
