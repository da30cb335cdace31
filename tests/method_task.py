"""What the tests of the methods that prepare have in common."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.split import split_by_concept
from erase_sd.methods.base import Batch, EncodedPairs, Encodings, Task
from erase_sd.mini import WEIGHTS
from erase_sd.models.clip import Clip, FreeEmbeddings
from erase_sd.models.pipeline_kinds import text_encoders
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.unlearning.captions import tokenize_pairs

APPLE = (Concept("apple"),)
X, Y = [1.0, 0.0], [0.0, 1.0]


class LinearStudent:
    """The feature of caption n is `texts[n]`, that of an image its pixels times `gain`; normalized if `unit`.

    The retain pairs are X and Y, and match.
    """

    scale = 1.0
    joins = False

    def __init__(self, texts: list[list[float]], gain: float = 1.0) -> None:
        self.texts = torch.tensor(texts)
        self.gain = torch.tensor(gain, requires_grad=True)

    def text(
        self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        text = self.texts[ids[:, 0].long()]
        return F.normalize(text, dim=-1) if unit else text, torch.zeros(len(ids), 1, 1)

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        image = self.gain * pixels.flatten(1)
        return F.normalize(image, dim=-1) if unit else image

    def __call__(self, pairs: EncodedPairs) -> Encodings:
        return Encodings(torch.tensor([X, Y]), torch.tensor([X, Y]))


def empty_batch(done: float = 0.0) -> Batch:
    """Two forget and two retain pairs without encodings."""
    forget, retain = (EncodedPairs(torch.full((2, 1), n), Encodings()) for n in (0, 1))
    return Batch(forget, retain, None, done, torch.Generator().manual_seed(0))


def flat_images(*rows: list[float]) -> Tensor:
    """Images whose pixels are the rows."""
    return torch.tensor(rows)[:, None, None]


def apple_task(models: Models, clip: Clip | None = None) -> Task:
    """Erasing apple from a CLIP, by default that of `models`."""
    clip = clip or load_clip(models.clip_folder(0), text_encoders(models.folder)[0])
    data = read_flickr30k(models.pairs())
    sets = split_by_concept(data.items, APPLE).present(data)
    forget, retain = (
        tokenize_pairs(clip, data, sets.pairs(concept_set, "train"), APPLE, True)
        for concept_set in ("forget", "retain")
    )
    return Task(clip, ("apple",), forget, retain, seed=0)


def mini_clip() -> Clip:
    return load_clip(WEIGHTS / "clip", text_encoders(WEIGHTS / "sd")[0])
