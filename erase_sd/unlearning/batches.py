"""A step's batch: the same for the same seed and step, with what the method reads of the original."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import runtime
from ..errors import ModelError
from ..methods import Batch, Reduced, Side
from ..models.clip import Clip, Encoded
from .captions import Rows
from .settings import Settings


class Batches:
    """Draws forget rows with and retain rows without replacement; `sizes` shrink with the memory."""

    def __init__(self, settings: Settings, original: Clip, forget: Rows, retain: Rows) -> None:
        self.settings, self.original = settings, original
        self.forget, self.retain = forget, retain
        self.sizes = (settings.forget_batch, settings.retain_batch)

    def at(self, step: int, steps: int, reads: frozenset[str]) -> Batch:
        """The batch of that step, of as many."""
        generator = torch.Generator().manual_seed(1_000_003 * self.settings.seed + step)
        forget, retain = self.forget, self.retain
        f = torch.randint(len(forget), (self.sizes[0],), generator=generator)
        r = torch.randperm(len(retain), generator=generator)[: self.sizes[1]]
        reduced = Reduced(torch.empty(0), torch.empty(0))
        if "states" in reads:
            states = self._original(forget.reduced_ids[f])[1]
            index = forget.source[f][:, :, None].expand_as(states).to(states.device)
            reduced = Reduced(states.gather(1, index), forget.mask[f].to(states.device))
        sides = (
            self._side(forget, f, reads - {"states"}),
            self._side(retain, r, reads),
        )
        return Batch(*sides, reduced, step / steps, generator)

    def shrink(self) -> None:
        """Halves the batches after memory ran out; ModelError where they are the smallest."""
        forget, retain = (size // 2 for size in self.sizes)
        if forget < 1 or retain < 2:  # a contrastive term needs two
            raise ModelError("out of memory with the smallest batches; needs a larger device")
        self.sizes = (forget, retain)
        runtime.free_memory()
        runtime.say(f"out of memory; goes on with {forget} forget and {retain} retain captions")

    def _side(self, rows: Rows, picked: Tensor, reads: frozenset[str]) -> Side:
        ids = rows.ids[picked]
        text = states = torch.empty(0)
        if "states" in reads:
            text, states = self._original(ids)
        elif "features" in reads:
            text, _ = self._original(self.original.cut(ids))
        pixels = None
        if self.settings.towers == "both":
            pixels = self.original.pixels([rows.paths[i] for i in picked.tolist()])
        image = rows.image[picked].to(self.original.device)
        return Side(ids, Encoded(text, image, states), pixels)

    def _original(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The original's features and token states."""
        with torch.no_grad():
            return self.original.encode_text(ids)
