"""What goes beyond erasing: attacks, measures, figures, comparisons. As lazy as `stages`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..run import Run, run_folder
from ..runtime import Approval, Precision, Progress
from .arguments import texts
from .turns import in_turn

if TYPE_CHECKING:
    from ..comparison.runner import Comparison
    from ..models.presets import Preset
    from ..models.source import Source
    from ..run.measurements import AttacksRecord, EvaluationRecord


@in_turn
def attack(
    run: str | Path,
    *,
    attacks: str | Sequence[str] = (),
    budgets: Mapping[str, Any] | None = None,
    detector: str | Path | None = None,
    detector_text: Source | None = None,
    detector_class: str | Sequence[str] = (),
    progress: Progress | None = None,
    approve: Approval | None = None,
    **settings: Any,
) -> AttacksRecord:
    """Attacks a run's erased model and returns how often the concept is generated again.

    `attacks` are names, by default all; `budgets` change their defaults, as in
    {"textual-inversion.steps": 1000}. `settings` are the other fields of
    `erase_sd.attacks.settings.AttackSettings`. `approve` is called with the minimum number of images
    before a long run. Raises EraseError.
    """
    from ..attacks.settings import AttackSettings
    from ..attacks.stage import attack as attack_stage
    from ..models.recorded import models_of_run

    own = Run(run_folder(run))
    settings |= {"attacks": names} if (names := texts(attacks)) else {}
    parsed = AttackSettings(budgets=dict(budgets or {}), **settings)
    models = models_of_run(own, detector=detector, detector_text=detector_text)
    return attack_stage(own, models, parsed, texts(detector_class), progress, approve)


@in_turn
def evaluate(
    run: str | Path,
    *,
    images: str | Path | None = None,
    templates: str | Sequence[str] = (),
    clip: Source | None = None,
    preset: Preset | None = None,
    progress: Progress | None = None,
) -> EvaluationRecord:
    """Measures CLIP before and after: zero-shot prediction, retrieval, drift of hidden states.

    The measures are taken on the run's held-out pairs, or on `images`: a folder of CIFAR-100, of
    webdataset shards, or with one folder per class. `templates` are prompts with `{}` for the class
    name. `clip` is a CLIP that the erased text tower fits, or a BLIP that the run did not erase, which
    is measured alone. Raises EraseError.
    """
    from ..data.classes import TEMPLATES
    from ..evaluation.stage import evaluate as evaluate_stage
    from ..models.recorded import models_of_run

    own = Run(run_folder(run))
    models = models_of_run(own, preset=preset, clip=clip)
    folder = Path(images) if images else None
    return evaluate_stage(own, models, folder, texts(templates) or TEMPLATES, progress)


@in_turn
def explain(run: str | Path) -> list[Path]:
    """Figures of what an erasure did to CLIP, as PNG files in the run folder; returns their paths.

    t-SNE of the held-out pairs, and what the text and the image tower attend to, before and after.
    Raises EraseError.
    """
    from ..evaluation.explain.stage import explain as explain_stage
    from ..models.recorded import models_of_run

    own = Run(run_folder(run))
    return explain_stage(own, models_of_run(own))


@in_turn
def compare(
    concepts: str | Sequence[str],
    methods: str | Sequence[str],
    *,
    seeds: int = 3,
    out: str | Path = "comparison",
    prompts_folder: str | Path | None = None,
    images_per_prompt: int = 1,
    dtype: Precision = "auto",
    images: bool = True,
    attacks: str | Sequence[str] = (),
    preset: Preset = "mini",
    model: Source | None = None,
    revision: str | None = None,
    clip: Source | Sequence[Source] | None = None,
    data: str | Path | None = None,
    detector: str | Path | None = None,
    detector_text: Source | None = None,
    detector_class: str | Sequence[str] = (),
    progress: Progress | None = None,
    approve: Approval | None = None,
) -> Comparison:
    """Runs every concept with every method and seed, and writes tables and figures into `out`.

    Concepts joined by "+" are erased in one run; a method may carry settings, `cliperase:towers=both`.
    `seeds` counts training seeds; data split, prompts and image seeds are the same in all runs. `dtype`
    is the precision of image generation; without `images` only CLIP-side measures are taken; `attacks`
    are names. `detector_class` and `detector_text` are those of `score`. `approve` is called with the
    number of images. Finished runs are reused. Each run is a process of its own, so a script needs
    `if __name__ == "__main__":`. Raises EraseError before anything starts; a run that fails later is
    listed in the result.
    """
    from ..comparison.runner import compare as run_grid
    from ..models.presets import resolve

    return run_grid(
        texts(concepts),
        texts(methods),
        models=resolve(preset, model, clip, data, detector, revision, detector_text),
        seeds=seeds,
        out=Path(out),
        prompts_folder=None if prompts_folder is None else Path(prompts_folder),
        images_per_prompt=images_per_prompt,
        dtype=dtype,
        images=images,
        attacks=texts(attacks),
        detector_class=texts(detector_class),
        progress=progress,
        approve=approve,
    )
