"""Each loss equals a number worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections import ChainMap

import pytest
import torch
from method_task import apple_task
from torch import Tensor
from torch.nn import functional as F

from erase_sd.methods.base import Batch, ConceptRemoved, EncodedPairs, Encodings, Method
from erase_sd.methods.cliperase import CLIPErase
from erase_sd.methods.cliperase_anchored import AnchoredCLIPErase
from erase_sd.methods.descriptions import describe
from erase_sd.methods.ga import GradientAscent
from erase_sd.methods.graddiff import GradientDifference
from erase_sd.methods.hirm import HiRM
from erase_sd.methods.kl import KLMinimization
from erase_sd.methods.losses import contrast
from erase_sd.methods.multidelete import MultiDelete
from erase_sd.methods.npo import NPO
from erase_sd.methods.registry import METHODS
from erase_sd.models.clip import FreeEmbeddings
from erase_sd.models.presets import Models

X, Y = [1.0, 0.0], [0.0, 1.0]


class FixedStudent:
    """A student with fixed encodings of the forget and the retain pairs."""

    joins = False

    def __init__(self, scale: float, forget: Encodings, retain: Encodings) -> None:
        self.scale = scale
        self.encodings = {0: forget, 1: retain}

    def __call__(self, pairs: EncodedPairs) -> Encodings:
        return self.encodings[int(pairs.ids[0, 0])]

    def text(
        self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        encodings = self.encodings[int(ids[0, 0])]
        return encodings.text, encodings.hidden_states

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        raise AssertionError("no method here has images of its own")


def batch_of(
    original: Encodings,
    concept_removed: ConceptRemoved | None = None,
    forgotten: Encodings | None = None,
) -> Batch:
    """One step's batch; `original` are the original's encodings of both sets, or of the retain set."""
    forget = EncodedPairs(torch.full((2, 1), 0), forgotten or original)
    retain = EncodedPairs(torch.full((2, 1), 1), original)
    return Batch(forget, retain, concept_removed, 0.0, torch.Generator().manual_seed(0))


def unit(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_cliperase_terms_match_hand_computed_sums() -> None:
    # Forget pairs: cosines 1 and 0, mean 0.5. Retain similarities, temperature 2: now [[2, 0],
    # [2, 0]], before [[2, 0], [0, 2]].
    before = Encodings(unit(X, Y), unit(X, Y))
    student = FixedStudent(
        2.0,
        forget=Encodings(unit(X, X), unit(X, Y)),
        retain=Encodings(unit(X, Y), unit(X, X)),
    )
    batch = batch_of(before, forgotten=Encodings())  # consistency is of the retain pairs alone
    terms = CLIPErase(forget_weight=3, retain_weight=2, consistency_weight=3).loss(student, batch)

    high, low = math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)
    by_image = (-math.log(high) - math.log(low)) / 2
    by_text = math.log(2)  # columns are constant
    assert float(terms["forget"]) == pytest.approx(1.5)
    assert float(terms["retain"]) == pytest.approx(2 * (by_image + by_text) / 2)
    # Rows: the first is unchanged, the second swapped: KL = (high - low) * 2. Columns: each
    # was (high, low) and is (1/2, 1/2).
    swapped = (high - low) * 2 / 2
    flat = high * math.log(2 * high) + low * math.log(2 * low)
    assert float(terms["consistency"]) == pytest.approx(3 * (swapped + flat), rel=1e-5)


def test_embedding_consistency_is_tiny_even_for_opposite_vectors() -> None:
    size = 512
    axis = torch.zeros(2, size)
    axis[:, 0] = 1
    before = Encodings(axis, axis)
    terms = [
        CLIPErase(consistency="embedding", consistency_weight=1.0).loss(
            FixedStudent(1.0, before, now), batch_of(before)
        )["consistency"]
        for now in (Encodings(-axis, axis), Encodings(axis, -axis), Encodings(-axis, -axis))
    ]
    p = math.e / (math.e + size - 1)  # of the one large entry, before
    q = math.exp(-1) / (math.exp(-1) + size - 1)  # now
    rest = (1 - p) / (size - 1), (1 - q) / (size - 1)
    by_hand = p * math.log(p / q) + (1 - p) * math.log(rest[0] / rest[1])
    assert [float(term) for term in terms] == pytest.approx(
        [by_hand, by_hand, 2 * by_hand], rel=1e-3
    )
    assert by_hand < 0.01  # the similarity softmax would give 2


def test_embedding_consistency_diverges_from_the_original_not_from_the_student() -> None:
    # Softmax of (ln 3, 0) is (3/4, 1/4), that of (0, 0) is (1/2, 1/2).
    before, now = unit([math.log(3), 0.0], [math.log(3), 0.0]), torch.zeros(2, 2)
    method = CLIPErase(consistency="embedding", consistency_weight=1.0)
    for changed in (Encodings(now, before), Encodings(before, now)):
        student = FixedStudent(1.0, changed, changed)
        change = method.loss(student, batch_of(Encodings(before, before)))["consistency"]
        assert float(change) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_anchored_terms_match_hand_computed_sums() -> None:
    zeros, ones = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    before = Encodings(hidden_states=zeros)
    student = FixedStudent(
        1.0, Encodings(hidden_states=3 * ones), Encodings(hidden_states=0.5 * ones)
    )
    # Only the first caption has a target: (3 - 1)^2 = 4 at each of its positions.
    mask = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    batch = batch_of(before, ConceptRemoved(ones, mask))
    terms = ChainMap(*AnchoredCLIPErase(anchor_weight=10, token_weight=100).loss(student, batch))
    assert {name: float(term) for name, term in terms.items()} == {"anchor": 40.0, "token": 25.0}


def test_the_anchored_forgetting_term_clamps_negative_similarities() -> None:
    hidden_states = torch.zeros(2, 1, 2)
    before = Encodings(hidden_states=hidden_states)
    forget = Encodings(unit(X, [-1.0, 0.0]), unit(X, X), hidden_states)  # cosines 1 and -1
    batch = batch_of(before, ConceptRemoved(hidden_states, torch.zeros(2, 1)))
    parts = AnchoredCLIPErase(forget_weight=2.0).loss(FixedStudent(1.0, forget, before), batch)
    terms = ChainMap(*parts)
    assert float(terms["forget"]) == 1.0  # 2 * (1 + 0) / 2
    assert float(terms["anchor"]) == 0.0  # no caption has a target, and nothing is divided by 0


# A student whose forget captions (X, X) do not match their images (Y, Y) while its retain pairs
# match; the original's pairs all match.
FORGET, RETAIN = Encodings(unit(X, X), unit(Y, Y)), Encodings(unit(X, Y), unit(X, Y))


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


def test_the_reference_implementation_of_the_contrastive_loss_matches_one_case_on_paper() -> None:
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
def test_ascent_terms_match_hand_computed_sums(method: Method, terms: dict[str, float]) -> None:
    got = method.loss(FixedStudent(1.0, FORGET, RETAIN), batch_of(RETAIN))
    assert {name: float(term) for name, term in got.items()} == pytest.approx(terms, abs=1e-6)


def test_the_temperature_multiplies_every_similarity() -> None:
    # The first image's row is 0 0 0 3 now, its caption's column 0 0 3 0.
    [first, *_] = contrast(FixedStudent(3.0, FORGET, RETAIN), FORGET, RETAIN)[0].tolist()
    assert first == pytest.approx(math.log(3 + math.exp(3)))


def test_the_kl_penalty_is_the_divergence_from_the_originals_similarities() -> None:
    swapped = Encodings(unit(Y, X), unit(X, Y))  # each caption now goes with the other image
    terms = KLMinimization(retain_weight=3.0).loss(
        FixedStudent(1.0, FORGET, swapped), batch_of(RETAIN)
    )
    high, low = math.e / (math.e + 1), 1 / (math.e + 1)
    assert float(terms["retain"]) == pytest.approx(3 * 2 * (high - low))  # rows and columns alike


def test_the_kl_penalty_diverges_from_the_original_not_from_the_student() -> None:
    # Both images now go with the first caption. The original's rows are (high, low) and (low, high), its
    # columns too; now the rows are both (high, low), the columns (1/2, 1/2).
    student = FixedStudent(1.0, FORGET, Encodings(unit(X, Y), unit(X, X)))
    terms = KLMinimization().loss(student, batch_of(RETAIN))
    high, low = math.e / (math.e + 1), 1 / (math.e + 1)
    flat = high * math.log(2 * high) + low * math.log(2 * low)
    assert float(terms["retain"]) == pytest.approx((high - low) / 2 + flat, rel=1e-5)
    # The candidates of the ascent are what the student says of the retain pairs, too.
    now = by_hand(texts=[X, X, X, Y], images=[Y, Y, X, X])
    assert float(terms["forget"]) == pytest.approx(-sum(now[:2]) / 2)


def test_the_weights_of_clip_erase_and_npo_are_the_papers() -> None:
    weights = {"forget_weight": 3.0, "retain_weight": 1.0, "consistency_weight": 3.0}
    assert CLIPErase.hyperparameters().items() >= weights.items()
    assert NPO.hyperparameters() == {
        "temperature": 0.1, "forget_weight": 1.0, "retain_weight": 1.0,
    }  # fmt: skip


def test_multidelete_terms_match_hand_computed_sums() -> None:
    # With two retain pairs the only shift is by one, so unrelated pairs have similarity 0. The forget
    # pairs have 1 and 0; the first retain pair fell from 1 to 0 as its caption moved from X to Y.
    forget = Encodings(unit(X, X), unit(X, Y))
    now = Encodings(unit(Y, Y), unit(X, Y))
    method = MultiDelete(decouple_weight=2, retain_weight=3, unimodal_weight=5)
    terms = method.loss(FixedStudent(9.0, forget, now), batch_of(RETAIN))
    assert {name: float(term) for name, term in terms.items()} == {
        "decouple": 2 * 0.5, "retain": 3 * 0.5, "unimodal": 5 * 1.0,
    }  # fmt: skip


def test_hirm_redirects_all_hidden_states_but_the_first() -> None:
    hidden_states = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]])
    student = FixedStudent(1.0, Encodings(unit(X), hidden_states=hidden_states), RETAIN)
    method = HiRM(ids=torch.zeros(1, 3, dtype=torch.long), target=torch.tensor([1.0, 0.0]))
    terms = method.loss(student, batch_of(RETAIN))
    assert float(terms["redirect"]) == 0.5  # (0 + 0 + 1 + 1) / 4
    assert method.trains("text_model.encoder.layers.0.mlp.fc1.weight")
    assert not method.trains("text_model.encoder.layers.1.mlp.fc1.weight")


def test_every_method_documents_its_source_and_its_hyperparameters() -> None:
    for name, method in METHODS.items():
        description = describe(name)
        assert "arXiv" in description.citation or "source" in description.citation, name
        names = {hyperparameter.name for hyperparameter in description.hyperparameters}
        assert names == set(method.hyperparameters()), name
        assert all(hyperparameter.meaning for hyperparameter in description.hyperparameters), name
        assert "Differs: " in description.about, name


def test_reading_encodings_that_the_method_does_not_need_is_an_error() -> None:
    with pytest.raises(LookupError, match="image was not computed; the method's `needs`"):
        _ = Encodings(text=unit(X)).image


def test_hirm_turns_to_a_random_direction_or_a_word_at_the_norm_of_the_original(
    tiny: Models,
) -> None:
    task = apple_task(tiny)
    prepared = [HiRM().prepare(dataclasses.replace(task, seed=seed)) for seed in (0, 0, 1)]
    _, hidden_states = task.clip.encode_texts(prepared[0].ids)
    assert len(prepared[0].ids) == len(HiRM().templates)
    norm = float(hidden_states[:, 1:].norm(dim=-1).mean())
    assert all(float(m.target.norm()) == pytest.approx(norm, rel=1e-5) for m in prepared)
    assert torch.equal(prepared[0].target, prepared[1].target)
    assert not torch.equal(prepared[0].target, prepared[2].target)
    both = HiRM().prepare(dataclasses.replace(task, concepts=("apple", "chair")))
    names = task.clip.tokens(["apple", "a apple", "a picture of a apple"])
    chairs = task.clip.tokens(["chair", "a chair", "a picture of a chair"])
    assert both.ids.equal(torch.cat([names, chairs]))
    _, orange = task.clip.encode_texts(task.clip.tokens(["orange"]))
    toward = HiRM(toward="orange").prepare(task).target
    assert float(F.cosine_similarity(toward, orange[0, -1], dim=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["lipschitz", "emmn", "hirm"])
def test_fitted_fields_are_not_hyperparameters(name: str) -> None:
    fitted = {"ids", "pixels", "labels", "ranking", "stage", "target"}
    assert not fitted & set(METHODS[name].hyperparameters())
