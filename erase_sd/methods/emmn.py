"""Error-maximizing noise (Chundawat et al., IEEE TIFS 2023, arXiv 2201.05629), adapted to CLIP."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.clip import Clip
from .base import Batch, Encodings, Method, Need, Student, Task, fitted, minimum
from .losses import contrast


@dataclass(frozen=True, kw_only=True)
class EMMN(Method):
    """Chundawat et al. (IEEE TIFS 2023, arXiv 2201.05629): impair with noise, then repair.

    Noise images are optimized until the original matches them with anything but the forget captions,
    and the student is trained on them as images of these captions. Differs: the forget class is a
    set of captions, and the error is CLIP's image-to-text cross entropy among them and retain
    captions; the retain pairs are real ones instead of error-minimizing noise; only a tenth of the
    steps impairs, because after half of them no repair recovers the hidden states.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"images", "image_tower"})
    learning_rate: ClassVar[float] = 3e-3
    images: int = minimum(1, 32)
    """Number of noise images, each paired with a forget caption (one batch in the paper)."""
    noise_steps: int = 40
    """Optimization steps of the noise (5 x 8 in the paper)."""
    noise_learning_rate: float = 0.1
    """Adam's learning rate for the noise (0.1 in the paper)."""
    noise_decay: float = 0.1
    """Weight of the noise's mean square (inferred; public code has 0.1 times the sum over an image)."""
    impair_share: float = 0.1
    """Share of the steps that impair, before the rest repairs (ours; one epoch each in the paper)."""
    impair_weight: float = 1.0
    """Weight of the contrastive loss on the noise pairs (1 in the paper)."""
    retain_weight: float = 1.0
    """Weight of the contrastive loss on the retain pairs, in both phases (1 in the paper)."""
    ids: Tensor = fitted()
    """Token ids of the noise images' captions, (images, tokens)."""
    pixels: Tensor = fitted()
    """Noise images, in processed pixels, (images, 3, size, size)."""
    label: Tensor | None = fitted()
    """In labelled data, the class of each noise image's caption, (images,)."""

    def prepare(self, task: Task) -> Self:
        """Optimizes the noise against forget captions that mention a concept."""
        generator, clip = torch.Generator().manual_seed(task.seed), task.clip
        mentions = torch.nonzero(task.forget.mask.sum(1)).flatten()
        sample = mentions[torch.randperm(len(mentions), generator=generator)[: self.images]]
        others = torch.randperm(len(task.retain), generator=generator)[: self.images]
        size = clip.image_size
        pixels = torch.randn((len(sample), 3, size, size), generator=generator).to(clip.device)
        label = None if task.forget.label is None else task.forget.label[sample].to(clip.device)
        if task.prompts is None or label is None:
            ids, target = torch.cat([task.forget.ids[sample], task.retain.ids[others]]), None
        else:
            ids, target = task.prompts[0], label
        pixels = self._noise(clip, pixels, ids, target)
        return dataclasses.replace(self, ids=task.forget.ids[sample], pixels=pixels, label=label)

    def _noise(self, clip: Clip, pixels: Tensor, ids: Tensor, target: Tensor | None) -> Tensor:
        """The pixels after the ascent of their error among the captions `ids` (m, tokens).

        `target` (n,) are the rows of the images' own captions; None: the first n, in order.
        """
        text, _ = clip.encode_texts(ids)
        optimizer = torch.optim.Adam([pixels.requires_grad_()], lr=self.noise_learning_rate)
        target = torch.arange(len(pixels), device=clip.device) if target is None else target
        for _ in range(self.noise_steps):
            logits = clip.scale * clip.encode_image(pixels) @ text.T
            error = F.cross_entropy(logits, target)
            optimizer.zero_grad(set_to_none=True)
            (self.noise_decay * pixels.square().mean() - error).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return pixels.detach()

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The terms `impair` and `retain` at first, then `retain` alone."""
        retain = student(batch.retain)
        if batch.done >= self.impair_share:
            return {"retain": self.retain_weight * contrast(student, None, retain)[1].mean()}
        sample = torch.randperm(len(self.ids), generator=batch.generator)[: len(batch.forget.ids)]
        text, _ = student.text(self.ids[sample])
        label = None if self.label is None else self.label[sample]
        noise = Encodings(text, student.image(self.pixels[sample]), label=label)
        impaired, retained = contrast(student, noise, retain)
        return {
            "impair": self.impair_weight * impaired.mean(),
            "retain": self.retain_weight * retained.mean(),
        }
