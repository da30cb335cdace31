"""Each loss equals a number worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from erase_sd.encoders import Encoded
from erase_sd.methods import Batch, Reduced, Side
from erase_sd.methods.anchored import AnchoredCLIPErase
from erase_sd.methods.cliperase import CLIPErase

X, Y = [1.0, 0.0], [0.0, 1.0]
NONE = torch.empty(0)


class Fixed:
    """A student that answers what it was told, in the order forget, retain."""

    def __init__(self, scale: float, forget: Encoded, retain: Encoded) -> None:
        self.scale = scale
        self.answers = {0: forget, 1: retain}

    def __call__(self, side: Side) -> Encoded:
        return self.answers[int(side.ids[0, 0])]


def side(number: int, original: Encoded) -> Side:
    return Side(torch.full((2, 1), number), original)


def unit(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_cliperase_terms_equal_the_sums_done_by_hand() -> None:
    # Forget pairs: cosines 1 and 0, mean 0.5. Retain similarities, temperature 2: now [[2, 0],
    # [2, 0]], before [[2, 0], [0, 2]].
    before = Encoded(unit(X, Y), unit(X, Y), NONE)
    student = Fixed(
        2.0,
        forget=Encoded(unit(X, X), unit(X, Y), NONE),
        retain=Encoded(unit(X, Y), unit(X, X), NONE),
    )
    batch = Batch(side(0, before), side(1, before), Reduced(NONE, NONE))
    terms = CLIPErase(forget_weight=3, retain_weight=1, consistency_weight=3).loss(student, batch)

    high, low = math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)
    by_image = (-math.log(high) - math.log(low)) / 2
    by_text = math.log(2)  # columns are constant
    assert float(terms["forget"]) == pytest.approx(1.5)
    assert float(terms["retain"]) == pytest.approx((by_image + by_text) / 2)
    # Rows: the first is the same, the second turned round: KL = (high - low) * 2. Columns: each
    # before is (high, low), now (1/2, 1/2).
    turned = (high - low) * 2 / 2
    flat = high * math.log(2 * high) + low * math.log(2 * low)
    assert float(terms["consistency"]) == pytest.approx(3 * (turned + flat), rel=1e-5)


def test_the_embedding_reading_of_consistency_is_tiny_even_for_opposite_vectors() -> None:
    size = 512
    axis = torch.zeros(2, size)
    axis[:, 0] = 1
    before = Encoded(axis, axis, NONE)
    student = Fixed(1.0, before, Encoded(-axis, axis, NONE))
    batch = Batch(side(0, before), side(1, before), Reduced(NONE, NONE))
    terms = CLIPErase(consistency="embedding", consistency_weight=1.0).loss(student, batch)
    p = math.e / (math.e + size - 1)  # of the one large entry, before
    q = math.exp(-1) / (math.exp(-1) + size - 1)  # now
    rest = (1 - p) / (size - 1), (1 - q) / (size - 1)
    by_hand = p * math.log(p / q) + (1 - p) * math.log(rest[0] / rest[1])
    assert float(terms["consistency"]) == pytest.approx(by_hand, rel=1e-3)
    assert by_hand < 2 * 4 / size


def test_anchored_terms_equal_the_sums_done_by_hand() -> None:
    zeros, ones = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    before = Encoded(NONE, NONE, zeros)
    student = Fixed(1.0, Encoded(NONE, NONE, 3 * ones), Encoded(NONE, NONE, 0.5 * ones))
    # Only the first caption has a counterpart: (3 - 1)^2 = 4 at each of its positions.
    mask = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    batch = Batch(side(0, before), side(1, before), Reduced(ones, mask))
    terms = AnchoredCLIPErase(anchor_weight=10, token_weight=100).loss(student, batch)
    assert {name: float(term) for name, term in terms.items()} == {"anchor": 40.0, "token": 25.0}


def test_the_anchored_forgetting_term_stops_at_strangers() -> None:
    states = torch.zeros(2, 1, 2)
    before = Encoded(NONE, NONE, states)
    forget = Encoded(unit(X, [-1.0, 0.0]), unit(X, X), states)  # cosines 1 and -1
    batch = Batch(side(0, before), side(1, before), Reduced(states, torch.zeros(2, 1)))
    terms = AnchoredCLIPErase(forget_weight=2.0).loss(Fixed(1.0, forget, before), batch)
    assert float(terms["forget"]) == 1.0  # 2 * (1 + 0) / 2
    assert (
        float(terms["anchor"]) == 0.0
    )  # no caption has a counterpart, and nothing is divided by 0
