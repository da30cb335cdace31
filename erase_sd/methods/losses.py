"""Loss terms that several methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SettingError
from .base import Encodings, Student


def contrast(
    student: Student, forget: Encodings | None, retain: Encodings
) -> tuple[Tensor, Tensor]:
    """CLIP's contrastive loss of each forget pair and of each retain pair, (n,) each.

    The mean of the image-to-text and text-to-image cross entropies (Radford et al., 2021, arXiv
    2103.00020); the captions and images of both sets are the candidates. In labelled data the captions
    of a class repeat and would be each other's negatives: there, the loss is the cross entropy of an
    image over one prompt of every class.
    """
    if forget is None:
        forget = Encodings(
            retain.text[:0],
            retain.image[:0],
            label=None if retain.label is None else retain.label[:0],
        )
    if retain.prompts is not None:
        return _classification(student, forget, retain), _classification(student, retain, retain)
    image = torch.cat([forget.image, retain.image])
    text = torch.cat([forget.text, retain.text])
    similarity = student.scale * image @ text.T
    target = torch.arange(len(similarity), device=similarity.device)
    by_image, by_text = (
        F.cross_entropy(logits, target, reduction="none") for logits in (similarity, similarity.T)
    )
    loss = (by_image + by_text) / 2
    return loss[: len(forget.text)], loss[len(forget.text) :]


def _classification(student: Student, pairs: Encodings, retain: Encodings) -> Tensor:
    """Cross entropy of each pair's image over the class prompts, (n,)."""
    assert pairs.label is not None
    logits = student.scale * pairs.image @ retain.candidates.T
    return F.cross_entropy(logits, pairs.label, reduction="none")


def divergence(original: Tensor, current: Tensor) -> Tensor:
    """KL(softmax(original) || softmax(current)) over the last dimension, averaged over the rows."""
    return F.kl_div(
        current.log_softmax(-1), original.log_softmax(-1), reduction="batchmean", log_target=True
    )


def similarity_divergence(student: Student, original: Encodings, current: Encodings) -> Tensor:
    """`divergence` of the batch's similarities, image to text plus text to image; the texts are one
    prompt of every class in labelled data."""
    before = student.scale * original.image @ original.candidates.T
    after = student.scale * current.image @ current.candidates.T
    return divergence(before, after) + divergence(before.T, after.T)


def fill(template: str, name: str) -> str:
    """The template with `{}` replaced by a concept's name; SettingError if it has none."""
    if "{}" not in template:
        raise SettingError(f"needs {{}} for the name, got {template!r}", field="hyperparameters")
    return template.replace("{}", name)
