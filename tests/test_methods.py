"""Each loss equals a number worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from erase_sd.methods import METHODS, Batch, Method, Reduced, Side
from erase_sd.methods.anchored import AnchoredCLIPErase
from erase_sd.methods.base import contrast
from erase_sd.methods.cliperase import CLIPErase
from erase_sd.methods.descriptions import page_of
from erase_sd.methods.ga import GradientAscent
from erase_sd.methods.graddiff import GradientDifference
from erase_sd.methods.hirm import HiRM
from erase_sd.methods.kl import KLMinimization
from erase_sd.methods.multidelete import MultiDelete
from erase_sd.methods.npo import NPO
from erase_sd.models.clip import Encoded

X, Y = [1.0, 0.0], [0.0, 1.0]
NONE = torch.empty(0)


class Fixed:
    """A student that answers what it was told, in the order forget, retain."""

    def __init__(self, scale: float, forget: Encoded, retain: Encoded) -> None:
        self.scale = scale
        self.answers = {0: forget, 1: retain}

    def __call__(self, side: Side) -> Encoded:
        return self.answers[int(side.ids[0, 0])]

    def text(self, ids: Tensor, unit: bool = True) -> tuple[Tensor, Tensor]:
        return self.answers[int(ids[0, 0])].text, self.answers[int(ids[0, 0])].states

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        raise AssertionError("no method here has images of its own")


def side(number: int, original: Encoded) -> Side:
    return Side(torch.full((2, 1), number), original)


def both(original: Encoded, reduced: Reduced | None = None) -> Batch:
    """One step's batch; `original` is what the original makes of either side."""
    seeded = torch.Generator().manual_seed(0)
    return Batch(side(0, original), side(1, original), reduced or Reduced(NONE, NONE), 0.0, seeded)


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
    batch = both(before)
    terms = CLIPErase(forget_weight=3, retain_weight=2, consistency_weight=3).loss(student, batch)

    high, low = math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)
    by_image = (-math.log(high) - math.log(low)) / 2
    by_text = math.log(2)  # columns are constant
    assert float(terms["forget"]) == pytest.approx(1.5)
    assert float(terms["retain"]) == pytest.approx(2 * (by_image + by_text) / 2)
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
    batch = both(before)
    terms = CLIPErase(consistency="embedding", consistency_weight=1.0).loss(student, batch)
    p = math.e / (math.e + size - 1)  # of the one large entry, before
    q = math.exp(-1) / (math.exp(-1) + size - 1)  # now
    rest = (1 - p) / (size - 1), (1 - q) / (size - 1)
    by_hand = p * math.log(p / q) + (1 - p) * math.log(rest[0] / rest[1])
    assert float(terms["consistency"]) == pytest.approx(by_hand, rel=1e-3)
    assert by_hand < 0.01  # where the other reading would give 2


def test_anchored_terms_equal_the_sums_done_by_hand() -> None:
    zeros, ones = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    before = Encoded(NONE, NONE, zeros)
    student = Fixed(1.0, Encoded(NONE, NONE, 3 * ones), Encoded(NONE, NONE, 0.5 * ones))
    # Only the first caption has a counterpart: (3 - 1)^2 = 4 at each of its positions.
    mask = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    batch = both(before, Reduced(ones, mask))
    terms = AnchoredCLIPErase(anchor_weight=10, token_weight=100).loss(student, batch)
    assert {name: float(term) for name, term in terms.items()} == {"anchor": 40.0, "token": 25.0}


def test_the_anchored_forgetting_term_stops_at_strangers() -> None:
    states = torch.zeros(2, 1, 2)
    before = Encoded(NONE, NONE, states)
    forget = Encoded(unit(X, [-1.0, 0.0]), unit(X, X), states)  # cosines 1 and -1
    batch = both(before, Reduced(states, torch.zeros(2, 1)))
    terms = AnchoredCLIPErase(forget_weight=2.0).loss(Fixed(1.0, forget, before), batch)
    assert float(terms["forget"]) == 1.0  # 2 * (1 + 0) / 2
    assert (
        float(terms["anchor"]) == 0.0
    )  # no caption has a counterpart, and nothing is divided by 0


# A student whose forget captions (X, X) are not those of their images (Y, Y) and whose retain pairs
# are together; the original has both sides together.
FORGET, RETAIN = Encoded(unit(X, X), unit(Y, Y), NONE), Encoded(unit(X, Y), unit(X, Y), NONE)


def by_hand(texts: list[list[float]], images: list[list[float]]) -> list[float]:
    """Each pair's contrastive loss, from the definition, in plain Python."""
    table = [[sum(a * b for a, b in zip(i, t, strict=True)) for t in texts] for i in images]
    losses = []
    for n in range(len(table)):
        rows = math.log(sum(math.exp(v) for v in table[n])) - table[n][n]
        columns = math.log(sum(math.exp(row[n]) for row in table)) - table[n][n]
        losses.append((rows + columns) / 2)
    return losses


NOW = by_hand(texts=[X, X, X, Y], images=[Y, Y, X, Y])
THEN = by_hand(texts=[X, Y, X, Y], images=[X, Y, X, Y])
FORGET_LOSS, RETAIN_LOSS = sum(NOW[:2]) / 2, sum(NOW[2:]) / 2


def test_the_contrastive_loss_by_hand_is_what_a_pencil_gives() -> None:
    # Images Y Y X Y, texts X X X Y: the first image's row is 0 0 0 1, its own caption at 0; the
    # first caption's column is 0 0 1 0.
    assert NOW[0] == pytest.approx(math.log(3 + math.e))


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        (GradientAscent(forget_weight=2.0), {"forget": -2 * FORGET_LOSS}),
        (
            GradientDifference(forget_weight=2.0, retain_weight=3.0),
            {"forget": -2 * FORGET_LOSS, "retain": 3 * RETAIN_LOSS},
        ),
        (KLMinimization(forget_weight=2.0), {"forget": -2 * FORGET_LOSS, "retain": 0.0}),
        (
            NPO(temperature=0.5, forget_weight=5.0, retain_weight=3.0),
            {
                "forget": 5 * 4 * sum(
                    math.log(1 + math.exp(-0.5 * (now - then)))
                    for now, then in zip(NOW[:2], THEN[:2], strict=True)
                ) / 2,
                "retain": 3 * RETAIN_LOSS,
            },
        ),
    ],
)  # fmt: skip
def test_the_ascents_equal_the_sums_done_by_hand(method: Method, terms: dict[str, float]) -> None:
    got = method.loss(Fixed(1.0, FORGET, RETAIN), both(RETAIN))
    assert {name: float(term) for name, term in got.items()} == pytest.approx(terms, abs=1e-6)


def test_clips_temperature_multiplies_every_similarity() -> None:
    # The first image's row is 0 0 0 3 now, its caption's column 0 0 3 0.
    [first, *_] = contrast(Fixed(3.0, FORGET, RETAIN), FORGET, RETAIN)[0].tolist()
    assert first == pytest.approx(math.log(3 + math.exp(3)))


def test_kl_holds_the_retain_pairs_to_what_the_original_says_of_them() -> None:
    turned = Encoded(unit(Y, X), unit(X, Y), NONE)  # each caption now goes with the other image
    terms = KLMinimization(retain_weight=3.0).loss(Fixed(1.0, FORGET, turned), both(RETAIN))
    high, low = math.e / (math.e + 1), 1 / (math.e + 1)
    assert float(terms["retain"]) == pytest.approx(3 * 2 * (high - low))  # rows and columns alike


def test_multidelete_terms_equal_the_sums_done_by_hand() -> None:
    # Two retain pairs: a shift can only be by one, so strangers have similarity 0. The forget pairs
    # have 1 and 0; the first retain pair fell from 1 to 0, its caption moved from X to Y.
    forget = Encoded(unit(X, X), unit(X, Y), NONE)
    now = Encoded(unit(Y, Y), unit(X, Y), NONE)
    method = MultiDelete(decouple_weight=2, retain_weight=3, unimodal_weight=5)
    terms = method.loss(Fixed(9.0, forget, now), both(RETAIN))
    assert {name: float(term) for name, term in terms.items()} == {
        "decouple": 2 * 0.5, "retain": 3 * 0.5, "unimodal": 5 * 1.0,
    }  # fmt: skip


def test_hirm_redirects_every_state_but_the_first() -> None:
    states = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]])
    student = Fixed(1.0, Encoded(NONE, NONE, states), RETAIN)
    method = HiRM(ids=torch.zeros(1, 3, dtype=torch.long), target=torch.tensor([1.0, 0.0]))
    terms = method.loss(student, both(RETAIN))
    assert float(terms["redirect"]) == 0.5  # (0 + 0 + 1 + 1) / 4
    assert method.trains("text_model.encoder.layers.0.mlp.fc1.weight")
    assert not method.trains("text_model.encoder.layers.1.mlp.fc1.weight")


def test_every_method_says_where_it_comes_from_and_what_its_settings_mean() -> None:
    for name, kind in METHODS.items():
        page = page_of(name)
        assert "arXiv" in page.citation or "source" in page.citation, name
        assert {setting.name for setting in page.settings} == set(kind.settings()), name
        assert all(setting.meaning for setting in page.settings), name
        assert "Differs: " in page.about, name
