"""Lipschitz unlearning (Kravets and Namboodiri, WACV 2025, arXiv 2407.07485): no training data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..data.coco import COCO, named_classes
from ..models.clip import Clip
from ..runtime import log
from .base import Batch, Need, StagedMethod, Student, Task, TokenizedPairs, fitted, minimum
from .losses import fill

# Stage by stage, as in the paper and the authors' code: standard deviation of the noise, in
# processed pixels, and how many more tensors of each tower train than in the first stage.
NOISE_STDS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
EXTRA_TENSORS = (0, 2, 5, 8, 10, 15, 20)

# Regularization of the synthetic images, as in the paper: jitter as a share of the image size,
# weight of the image's norm, and a blur of some sigma every few iterations.
JITTER, NORM_WEIGHT, BLUR_EVERY, BLUR_SIGMA = 16 / 224, 1e-3, 10, 0.5


@dataclass(frozen=True, kw_only=True)
class Lipschitz(StagedMethod):
    """Kravets and Namboodiri (WACV 2025, arXiv 2407.07485): smoothing around the concept.

    Images that the original classifies as the concept are synthesized; they and the concept's prompt
    are pulled to the features of noisy copies. Differs: fewer images and copies, for two CPU cores;
    an image that is not confidently classified after the last iteration is used nonetheless, with a
    warning; the other classes are those that the retain captions name, so some data is used; an epoch
    is a validation interval; a roll-back begins the next stage with a fresh optimizer; tensors are
    ranked once, not at each step; no weight decay; pixels are clamped to the range of an image. If
    only the text tower trains, only the prompt moves.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"image_tower"})
    learning_rate: ClassVar[float] = 5e-4  # the paper's 5e-5 is for a tower fifty times larger
    steps: ClassVar[int] = 240  # the later stages have the largest effect
    trained_parameters: ClassVar[str] = (
        "the tensors of the transformer blocks with the largest gradients"
    )
    prompt: str = "A picture of {}"
    """Prompt of a class, with {} for its name (as in the paper)."""
    images: int = minimum(1, 32)
    """Number of synthetic images per concept (64 in the paper)."""
    iterations: int = minimum(1, 200)
    """Maximum number of gradient ascent steps per synthetic image (3,000 in the paper)."""
    ascent: float = 25.0
    """Length of a gradient ascent step, in processed pixels of a 224 px image and scaled to the image
    size (25 in the paper)."""
    probability: float = 0.8
    """Probability of the concept above which a synthetic image is accepted (0.8 in the authors' code)."""
    batch: int = minimum(1, 16)
    """Synthetic images per training step (64 in the paper)."""
    copies: int = minimum(1, 2)
    """Noisy copies per synthetic image (25 in the paper)."""
    tensors: int = minimum(1, 25)
    """Tensors of each tower that train in the first stage (25 in the paper, of a ViT-B's 192)."""
    stop: float = 0.1
    """Share of the synthetic images (0-1) still classified as the concept at which training ends (0.1
    in the paper)."""
    ids: Tensor = fitted()
    """Token ids of the class prompts, the concepts first, (classes, tokens)."""
    pixels: Tensor = fitted()
    """Synthetic images, (n, 3, size, size)."""
    labels: Tensor = fitted()
    """Class of each synthetic image, (n,)."""
    ranking: tuple[list[str], ...] = fitted(())
    """Names of each tower's tensors, largest mean gradient first."""
    stage: int = fitted(0)
    """Stage of the schedule, from 0."""

    def prepare(self, task: Task) -> Self:
        """Synthesizes the images and ranks the tensors."""
        generator = torch.Generator().manual_seed(task.seed)
        others = [name for name in _classes_named_by(task.retain) if name not in task.concepts]
        ids = task.clip.tokens([fill(self.prompt, name) for name in (*task.concepts, *others)])
        text, _ = task.clip.encode_texts(ids)
        images = [self._synthesize(task, text, n, generator) for n in range(len(task.concepts))]
        labels = torch.cat([torch.full((len(image),), n) for n, image in enumerate(images)])
        method = dataclasses.replace(
            self, ids=ids, pixels=torch.cat(images), labels=labels.to(text.device)
        )
        return dataclasses.replace(method, ranking=method._rank(task.clip, generator))

    def _synthesize(
        self, task: Task, text: Tensor, concept: int, generator: torch.Generator
    ) -> Tensor:
        """Images that the original classifies as the concept, by gradient ascent from noise.

        Returns (n, 3, size, size). An image is done once it is accepted or the iterations are used up.
        """
        from torchvision.transforms.v2.functional import gaussian_blur

        clip, scale, size = task.clip, task.clip.scale, task.clip.image_size
        mean, std = (
            torch.tensor(values, device=text.device)[:, None, None]
            for values in (clip.processor.image_mean, clip.processor.image_std)
        )
        pixels = torch.randn((self.images, 3, size, size), generator=generator).to(text.device)
        done = torch.zeros(self.images, dtype=torch.bool, device=text.device)
        for iteration in range(self.iterations):
            shift = torch.randint(int(JITTER * size) + 1, (2,), generator=generator)
            across, down = shift.tolist()
            current = pixels[~done].roll((down, across), (2, 3)).requires_grad_()
            logits = scale * clip.encode_image(current) @ text.T
            score = logits[:, concept] - NORM_WEIGHT * current.flatten(1).norm(dim=1)
            (slope,) = torch.autograd.grad(score.sum(), current)
            slope = slope / slope.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
            updated = current.detach() + self.ascent * size / 224 * slope
            updated = updated.roll((-down, -across), (2, 3)).clamp(-mean / std, (1 - mean) / std)
            if iteration % BLUR_EVERY == 0:
                updated = gaussian_blur(updated, [5, 5], [BLUR_SIGMA, BLUR_SIGMA])
            pixels[~done] = updated
            with torch.no_grad():
                probability = (scale * clip.encode_image(updated) @ text.T).softmax(-1)
            accepted = probability.argmax(-1) == concept
            done[~done] = accepted & (probability[:, concept] > self.probability)
            if done.all():
                return pixels
        log.warning(
            "lipschitz: %d of %d synthetic images of %s are below the probability of %g",
            int((~done).sum()), self.images, task.concepts[concept], self.probability,
        )  # fmt: skip
        return pixels

    def _rank(self, clip: Clip, generator: torch.Generator) -> tuple[list[str], ...]:
        """Names of each tower's tensors inside its transformer blocks, by mean |gradient|."""
        model = copy.deepcopy(clip.model).requires_grad_(True)
        student = dataclasses.replace(clip, model=model)
        loss = self._constant(student.encode_text, student.encode_image, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        rankings = []
        for tower in clip.blocks:
            mean = {
                name: float(parameter.grad.abs().mean())
                for name, parameter in model.named_parameters()
                if name.startswith(tower) and parameter.grad is not None
            }
            rankings.append(sorted(mean, key=lambda name: -mean[name]))
        return tuple(rankings)

    def stages(self) -> tuple[Self, ...]:
        """Stages with more noise and more tensors each."""
        return tuple(dataclasses.replace(self, stage=stage) for stage in range(len(NOISE_STDS)))

    def trains(self, name: str) -> bool:
        """Whether the tensor ranks high enough in its tower for this stage."""
        count = self.tensors + EXTRA_TENSORS[self.stage]
        return any(name in ranking[:count] for ranking in self.ranking)

    def residual(self, student: Student) -> float:
        """Share of the synthetic images still classified as the concept; 0 if it is at most `stop`."""
        with torch.no_grad():
            text, _ = student.text(self.ids)
            nearest = (student.image(self.pixels) @ text.T).argmax(-1)
        share = int((nearest == self.labels).sum()) / len(nearest)
        return share if share > self.stop else 0.0

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The term `lipschitz`: the Lipschitz constant between the concept and its noisy copies."""
        return {"lipschitz": self._constant(student.text, student.image, batch.generator)}

    def _constant(
        self,
        encode_text: Callable[..., tuple[Tensor, Tensor]],
        encode_image: Callable[..., Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """1/2n of the sum, over images and their n copies, of feature distance over noise norm.

        The features are not normalized. A noisy image also stands for the noisy prompt, and gets no
        gradient.
        """
        sample = torch.randperm(len(self.pixels), generator=generator)[: self.batch]
        clean = self.pixels[sample]
        concepts = self.ids[: int(self.labels.max()) + 1]
        text = encode_text(concepts, unit=False)[0][self.labels[sample]]  # (batch, projection)
        image = encode_image(clean, unit=False)
        total = torch.zeros((), device=text.device)
        for _ in range(self.copies):
            noise = NOISE_STDS[self.stage] * torch.randn(clean.shape, generator=generator)
            with torch.no_grad():
                noisy = encode_image(clean + noise.to(clean.device), unit=False)
            distance = (text - noisy).norm(dim=-1) + (image - noisy).norm(dim=-1)
            norm = noise.flatten(1).norm(dim=-1).to(distance.device)
            total = total + (distance / (2 * norm)).sum()
        return total / (2 * self.copies)


def _classes_named_by(pairs: TokenizedPairs) -> Sequence[str]:
    """The classes of labelled pairs; else the COCO classes that some of the captions name, or all."""
    if labels := sorted({pair.label for pair in pairs.pairs if pair.label is not None}):
        return labels
    every = max(1, len(pairs) // 300)
    captions = " . ".join(pair.caption for pair in pairs.pairs[::every])
    return named_classes(captions, COCO) or COCO
