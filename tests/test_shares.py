"""What is left and what is kept, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from erase_sd.models.clip import Clip
from erase_sd.unlearning.captions import Rows
from erase_sd.unlearning.metrics import shares


class Said:
    """A CLIP that has a feature and one state for each id."""

    device = torch.device("cpu")

    def __init__(self, features: dict[int, list[float]]) -> None:
        self.features = features

    def encode_texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.tensor([self.features[i] for i in ids[:, 0].tolist()])
        return found, found[:, None]


def rows(**tensors: list[list[float]]) -> Any:
    """The fields of `Rows` that are looked at."""

    class Some:
        def __len__(self) -> int:
            return len(next(iter(tensors.values())))

    some = Some()
    for name, values in tensors.items():
        setattr(some, name, torch.tensor(values))
    return cast(Rows, some)


def test_the_shares_equal_the_sums_done_by_hand() -> None:
    # Caption 1 is with its image at 0.8, without the concept, as 2, at 0.2, and now at 0.35: of the
    # 0.6 that the concept gave a quarter is left. Caption 9 mentions nothing and does not count.
    forget = rows(
        ids=[[1], [9]], reduced_ids=[[2], [9]], mask=[[1.0], [0.0]], image=[[1.0, 0.0], [0.0, 1.0]]
    )
    # The others' states are (1, 0) and (-1, 0), so their variance is 1/2; the first moved by 0.4, so
    # their mean squared change is 0.16 / 4.
    retain = rows(ids=[[3], [4]])
    before = {1: [0.8, 0.6], 2: [0.2, 0.0], 3: [1.0, 0.0], 4: [-1.0, 0.0]}
    now = before | {1: [0.35, 0.0], 3: [1.0, 0.4]}
    found = shares(cast(Clip, Said(now)), cast(Clip, Said(before)), forget, retain)
    assert found == pytest.approx({"forget": 0.25, "retain": 1 - 0.04 / 0.5})
    same = shares(cast(Clip, Said(before)), cast(Clip, Said(before)), forget, retain)
    assert same == {"forget": 1.0, "retain": 1.0}
