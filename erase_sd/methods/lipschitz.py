"""Lipschitz unlearning (Kravets and Namboodiri, WACV 2025, arXiv 2407.07485): no data at all."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..data.coco import COCO, named_classes
from ..models.clip import Clip
from ..runtime import say
from .base import Batch, Method, Student, World, at_least, made

# Stage by stage (the paper, and the authors' code): standard deviation of the noise, in processed
# pixels, and how many more tensors of each tower train than in the first.
STDS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
MORE = (0, 2, 5, 8, 10, 15, 20)
JITTER, SHRINK, BLUR_EVERY, BLUR = 16 / 224, 1e-3, 10, 0.5


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Method):
    """Kravets and Namboodiri (WACV 2025, arXiv 2407.07485): smooth around the concept.

    On images that the original itself takes for the concept, its prompt and they are pulled to what
    noise makes of them. Differs: fewer images and copies, for two CPU cores; an image that is not
    surely the concept's when the iterations are used up is kept, and that is said; the other classes
    are those that the retain captions name, so it is not wholly without data; an epoch is a look of
    the loop; a roll-back begins the next stage with a fresh optimizer; tensors are ranked once, not
    at each step; no weight decay; pixels stay in an image's range. Where the text tower trains alone,
    only the prompt moves.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"tower"})
    rate: ClassVar[float] = 5e-4  # the paper's 5e-5 is for a tower fifty times larger
    steps: ClassVar[int] = 240  # its later stages do the most
    trained: ClassVar[str] = "the tensors of the transformer blocks with the largest gradients"
    prompt: str = "A picture of {}"
    """Of a class (the paper's)."""
    images: int = at_least(1, 32)
    """Synthetic images of each concept (64)."""
    iterations: int = at_least(1, 200)
    """Most steps of gradient ascent to an image (3,000)."""
    ascent: float = 25.0
    """Length of a step, in processed pixels of a 224 px image (25); less on smaller ones."""
    probability: float = 0.8
    """From which on an image is the concept's (0.8 in the authors' code)."""
    batch: int = at_least(1, 16)
    """Images a step (64)."""
    copies: int = at_least(1, 2)
    """Noisy copies of each (25)."""
    tensors: int = at_least(1, 25)
    """Tensors of each tower that train in the first stage (25, of a ViT-B's 192)."""
    stop: float = 0.1
    """Share of the synthetic images that may still be the concept's at the end (0.1)."""
    ids: Tensor = made()
    """Of the class prompts, those of the concepts first, (classes, tokens)."""
    pixels: Tensor = made()
    """Synthetic images, (n, 3, size, size)."""
    labels: Tensor = made()
    """The class of each image, (n,)."""
    ranking: tuple[list[str], ...] = dataclasses.field(default=(), metadata={"made": True})
    """The names of each tower's tensors, the largest mean gradient first."""
    stage: int = dataclasses.field(default=0, metadata={"made": True})
    """Of the schedule."""

    def prepare(self, world: World) -> Self:
        """The synthetic images, and the ranking of the tensors."""
        generator = torch.Generator().manual_seed(world.seed)
        seen = " . ".join(world.retain.texts[:: max(1, len(world.retain) // 300)])
        others = [name for name in named_classes(seen, COCO) or COCO if name not in world.concepts]
        ids = world.clip.tokens([self.prompt.format(name) for name in (*world.concepts, *others)])
        text, _ = world.clip.encode_texts(ids)
        images = [self._ascend(world, text, n, generator) for n in range(len(world.concepts))]
        labels = torch.cat([torch.full((len(part),), n) for n, part in enumerate(images)])
        there = dataclasses.replace(
            self, ids=ids, pixels=torch.cat(images), labels=labels.to(text.device)
        )
        return dataclasses.replace(there, ranking=there._rank(world.clip, generator))

    def _ascend(
        self, world: World, text: Tensor, concept: int, generator: torch.Generator
    ) -> Tensor:
        """Images that the original takes for the concept, from noise, (n, 3, size, size).

        Each is done once it is surely the concept's, or when the iterations are used up.
        """
        from torchvision.transforms.v2.functional import gaussian_blur

        clip, scale = world.clip, world.clip.model.logit_scale.exp()
        size = clip.model.config.vision_config.image_size
        mean, std = (
            torch.tensor(values, device=text.device)[:, None, None]
            for values in (clip.processor.image_mean, clip.processor.image_std)
        )
        pixels = torch.randn((self.images, 3, size, size), generator=generator).to(text.device)
        done = torch.zeros(self.images, dtype=torch.bool, device=text.device)
        for number in range(self.iterations):
            drawn = torch.randint(int(JITTER * size) + 1, (2,), generator=generator)
            across, down = drawn.tolist()
            now = pixels[~done].roll((down, across), (2, 3)).requires_grad_()
            logits = scale * clip.encode_image(now) @ text.T
            score = logits[:, concept] - SHRINK * now.flatten(1).norm(dim=1)
            (slope,) = torch.autograd.grad(score.sum(), now)
            slope = slope / slope.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
            moved = (now.detach() + self.ascent * size / 224 * slope).roll((-down, -across), (2, 3))
            moved = moved.clamp(-mean / std, (1 - mean) / std)
            if number % BLUR_EVERY == 0:
                moved = gaussian_blur(moved, [5, 5], [BLUR, BLUR])
            pixels[~done] = moved
            with torch.no_grad():
                sure = (scale * clip.encode_image(moved) @ text.T).softmax(-1)
            took = (sure.argmax(-1) == concept) & (sure[:, concept] > self.probability)
            done[~done] = took
            if done.all():
                break
        if not done.all():
            say(
                f"lipschitz: {int((~done).sum())} of {self.images} images are not surely the concept's"
            )
        return pixels

    def _rank(self, clip: Clip, generator: torch.Generator) -> tuple[list[str], ...]:
        """Each tower's tensors inside its transformer blocks, by mean |gradient| of the loss."""
        model = copy.deepcopy(clip.model).requires_grad_(True)
        student = dataclasses.replace(clip, model=model)
        loss = self._constant(student.encode_text, student.encode_image, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        towers = []
        for tower in ("text_model.encoder.layers.", "vision_model.encoder.layers."):
            mean = {
                name: float(parameter.grad.abs().mean())
                for name, parameter in model.named_parameters()
                if name.startswith(tower) and parameter.grad is not None
            }
            towers.append(sorted(mean, key=lambda name: -mean[name]))
        return tuple(towers)

    def trains(self, name: str) -> bool:
        """The first of each tower's ranking; more of them, stage by stage."""
        most = self.tensors + MORE[self.stage]
        return any(name in tower[:most] for tower in self.ranking)

    def at(self, stage: int) -> Self | None:
        """The next noise, and more tensors."""
        return dataclasses.replace(self, stage=stage) if stage < len(STDS) else None

    def left(self, student: Student) -> float:
        """Share of the synthetic images that are still the concept's; 0 once it is at most `stop`."""
        with torch.no_grad():
            text, _ = student.text(self.ids)
            near = (student.image(self.pixels) @ text.T).argmax(-1)
        share = int((near == self.labels).sum()) / len(near)
        return share if share > self.stop else 0.0

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """One scalar, the Lipschitz constant between the concept and its noisy copies."""
        return {"lipschitz": self._constant(student.text, student.image, batch.generator)}

    def _constant(
        self,
        encode_text: Callable[..., tuple[Tensor, Tensor]],
        encode_image: Callable[..., Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """1/2n of the sum, over images and n copies, of what noise moves over what it measures.

        The features are as they are, not of unit norm; a noisy image stands for the noisy prompt
        too, and gets no gradient.
        """
        picked = torch.randperm(len(self.pixels), generator=generator)[: self.batch]
        clean = self.pixels[picked]
        concepts = self.ids[: int(self.labels.max()) + 1]
        text = encode_text(concepts, unit=False)[0][self.labels[picked]]  # (batch, projection)
        image = encode_image(clean, unit=False)
        total = torch.zeros((), device=text.device)
        for _ in range(self.copies):
            noise = STDS[self.stage] * torch.randn(clean.shape, generator=generator)
            with torch.no_grad():
                noisy = encode_image(clean + noise.to(clean.device), unit=False)
            moved = (text - noisy).norm(dim=-1) + (image - noisy).norm(dim=-1)
            total = total + (moved / (2 * noise.flatten(1).norm(dim=-1).to(moved.device))).sum()
        return total / (2 * self.copies)
