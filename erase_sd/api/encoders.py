"""The erasure of a run in other programs, and a caption without a concept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..runtime import Precision
from .turns import in_turn

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    from ..data.concept import Concept

Pipeline = TypeVar("Pipeline")


@in_turn
def load(
    run: str | Path,
    module: str = "text_encoder",
    *,
    dtype: Precision | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
) -> CLIPTextModel | UNet2DConditionModel:
    """The erased text encoder of a run, by name or folder, or with "unet" its erased U-Net; SDXL has a
    second encoder, "text_encoder_2".

    In float32 on the CPU by default; `apply` instead writes it into an open pipeline, in the pipeline's
    precision and on its device. Raises EraseError.
    """
    from ..models.erased import load as load_module

    return load_module(run, module, dtype, device)


@in_turn
def apply(pipe: Pipeline, run: str | Path) -> Pipeline:
    """Erases the concepts of a run from an open diffusers pipeline, in place, and returns it.

    What the run erased is written into the pipeline's own text encoders or U-Net, in their precision and
    on their device. LoRA adapters and textual inversions may be loaded before or afterwards. Another
    run's erasure of the same module is overwritten, with a warning: erase several concepts in one run.
    Raises EraseError.
    """
    from ..models.apply import apply as apply_to

    return apply_to(pipe, run)


def concept_removed(text: str, concept: str | Concept) -> str:
    """`text` without what it says of the concept: "a man holding an apple in a park" becomes "a man in
    a park".

    Words that are kept keep their capitals; a text that does not mention the concept is returned as it
    is. In a language other than English, only the noun is removed. Raises EraseError.
    """
    from ..data.concept import Concept
    from ..data.removal import remove_concepts

    return remove_concepts(text, [Concept(concept) if isinstance(concept, str) else concept])[0]
