"""The erased encoder of a run in other programs, and a caption without a concept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..runtime import Precision

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTextModel

    from ..data.concept import Concept

Pipeline = TypeVar("Pipeline")


def load(
    run: str | Path,
    encoder: str = "text_encoder",
    *,
    dtype: Precision | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> CLIPTextModel:
    """The erased text encoder of a run, by name or folder; SDXL has a second one, `text_encoder_2`.

    In float32 on the CPU by default; `apply` puts it into a pipeline as it is. Raises EraseError.
    """
    from ..models.erased import load as load_encoder

    return load_encoder(run, encoder, dtype, device)


def apply(pipe: Pipeline, run: str | Path) -> Pipeline:
    """Erases the concepts of a run from an open diffusers pipeline, in place, and returns it.

    Every erased encoder is written into the pipeline's own, in its precision and on its device. LoRA
    adapters and textual inversions may be loaded before or afterwards. Raises EraseError.
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
