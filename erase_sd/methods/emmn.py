"""Error-maximising noise (Chundawat et al., IEEE TIFS 2023, arXiv 2201.05629), carried over to CLIP."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.clip import Encoded
from .base import Batch, Method, Student, World, at_least, contrast, made


@dataclass(frozen=True, kw_only=True)
class EMMN(Method):
    """Chundawat et al. (IEEE TIFS 2023, arXiv 2201.05629): impaired by noise, then repaired.

    Noise images are learned that the original takes for anything but the forget captions; the student
    learns that they are what these captions mean. Differs: the class is a set of captions, the error
    CLIP's image-to-text cross entropy among them and retain captions; the retain pairs are real
    ones, not error-minimising noise; a tenth of the steps impairs, as after half of them no repair
    brings the token states back.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"images", "tower"})
    rate: ClassVar[float] = 3e-3
    images: int = at_least(1, 32)
    """Noise images, each beside a forget caption of its own (a batch of them in the paper)."""
    noise_steps: int = 40
    """Of Adam, to the noise (5 x 8)."""
    noise_rate: float = 0.1
    """Of Adam, to the noise (0.1)."""
    noise_decay: float = 0.1
    """Of the noise's mean square (inferred; public code has 0.1 of the sum over an image's pixels)."""
    impair_share: float = 0.1
    """Of the steps that impair; the others repair (one epoch each in the paper)."""
    impair_weight: float = 1.0
    """Of the noise pairs' loss (1)."""
    retain_weight: float = 1.0
    """Of the retain pairs' loss, in both (1)."""
    ids: Tensor = made()
    """Of the noise images' captions, (images, tokens)."""
    pixels: Tensor = made()
    """The noise images, (images, 3, size, size), in processed pixels."""

    def prepare(self, world: World) -> Self:
        """The noise, up the original's error on forget captions that name the concept."""
        generator, clip = torch.Generator().manual_seed(world.seed), world.clip
        named = torch.nonzero(world.forget.mask.sum(1)).flatten()
        picked = named[torch.randperm(len(named), generator=generator)[: self.images]]
        other = torch.randperm(len(world.retain), generator=generator)[: self.images]
        text, _ = clip.encode_texts(torch.cat([world.forget.ids[picked], world.retain.ids[other]]))
        size = clip.model.config.vision_config.image_size
        pixels = torch.randn((len(picked), 3, size, size), generator=generator).to(clip.device)
        optimizer = torch.optim.Adam([pixels.requires_grad_()], lr=self.noise_rate)
        target = torch.arange(len(picked), device=clip.device)
        for _ in range(self.noise_steps):
            logits = clip.model.logit_scale.exp() * clip.encode_image(pixels) @ text.T
            error = F.cross_entropy(logits, target)
            optimizer.zero_grad(set_to_none=True)
            (self.noise_decay * pixels.square().mean() - error).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return dataclasses.replace(self, ids=world.forget.ids[picked], pixels=pixels.detach())

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Two scalars while it impairs, then one."""
        retain = student(batch.retain)
        if batch.done >= self.impair_share:
            none = Encoded(retain.text[:0], retain.image[:0], retain.states[:0])
            return {"retain": self.retain_weight * contrast(student, none, retain)[1].mean()}
        some = torch.randperm(len(self.ids), generator=batch.generator)[: len(batch.forget.ids)]
        text, states = student.text(self.ids[some])
        noise = Encoded(text, student.image(self.pixels[some]), states)
        impaired, kept = contrast(student, noise, retain)
        return {
            "impair": self.impair_weight * impaired.mean(),
            "retain": self.retain_weight * kept.mean(),
        }
