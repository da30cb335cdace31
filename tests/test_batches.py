"""A step's batch holds what the method needs, and nothing else is computed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.split import split_by_concept
from erase_sd.errors import ModelError
from erase_sd.methods.base import Encodings
from erase_sd.methods.cliperase_anchored import AnchoredCLIPErase
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.unlearning import student as student_module
from erase_sd.unlearning.batches import Batches
from erase_sd.unlearning.captions import tokenize_pairs
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.student import ClipStudent

APPLE = (Concept("apple"),)
NAMES = ("text", "image", "hidden_states")


@pytest.fixture
def clip(tiny: Models) -> Clip:
    return load_clip(tiny.clip_folder(0))


@pytest.fixture
def batches(tiny: Models, clip: Clip) -> Batches:
    data = read_flickr30k(tiny.pairs())
    sets = split_by_concept(data.items, APPLE)
    settings = UnlearnSettings(concepts=APPLE, forget_batch=3, retain_batch=4)
    forget = tokenize_pairs(clip, data, sets.pairs("forget", "train")[:20], APPLE, True)
    retain = tokenize_pairs(clip, data, sets.pairs("retain", "train")[:20], APPLE, True)
    return Batches(settings, clip, forget, retain)


def computed(encodings: Encodings) -> set[str]:
    present = set()
    for name in NAMES:
        try:
            getattr(encodings, name)
        except LookupError:
            continue
        present.add(name)
    return present


@pytest.mark.parametrize(
    ("needs", "forget", "retain"),
    [
        (set(), {"image"}, {"image"}),
        ({"features"}, {"image", "text"}, {"image", "text"}),
        ({"hidden_states"}, {"image"}, {"image", "text", "hidden_states"}),
    ],
)
def test_a_batch_holds_what_the_method_needs_and_nothing_else(
    batches: Batches, clip: Clip, needs: set[str], forget: set[str], retain: set[str]
) -> None:
    batch = batches.at(0, 10, frozenset(needs))  # type: ignore[arg-type]
    assert computed(batch.forget.original) == forget
    assert computed(batch.retain.original) == retain
    assert (batch.concept_removed is not None) == ("hidden_states" in needs)
    for pairs, count in ((batch.forget, 3), (batch.retain, 4)):
        norms = pairs.original.image.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones(count))
        if "text" in computed(pairs.original):
            torch.testing.assert_close(pairs.original.text, clip.encode_text(pairs.ids)[0])


def test_the_original_encodes_the_captions_of_the_batch_alone(
    batches: Batches, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    encode_text = Clip.encode_text

    def counted(self: Clip, ids: torch.Tensor, unit: bool = True) -> object:
        rows.append(len(ids))
        return encode_text(self, ids, unit)

    monkeypatch.setattr(Clip, "encode_text", counted)
    monkeypatch.setattr(Clip, "starts_slowly", False)
    for step in range(2):
        batches.at(step, 10, frozenset({"hidden_states"}))
    assert rows == [3, 4, 3, 4]


def test_each_position_has_the_hidden_state_of_its_source_as_target(
    batches: Batches, clip: Clip
) -> None:
    batch = batches.at(0, 10, frozenset({"hidden_states"}))
    assert batch.concept_removed is not None
    pairs = batches.forget
    for ids, targets in zip(batch.forget.ids, batch.concept_removed.hidden_states, strict=True):
        row = next(i for i in range(len(pairs)) if torch.equal(pairs.ids[i], ids))
        removed = clip.encode_text(pairs.concept_removed_ids[row : row + 1])[1][0]
        for position, source in enumerate(pairs.source[row].tolist()):
            torch.testing.assert_close(targets[position], removed[source])


def test_cutting_the_shared_padding_leaves_features_and_hidden_states_as_they_are(
    clip: Clip,
) -> None:
    ids = clip.tokens(["a dog", "a dog next to a red apple"])
    short = clip.cut(ids)
    assert short.shape[1] == int(clip.ends(ids).max()) + 1 < ids.shape[1]
    full, cut = clip.encode_text(ids), clip.encode_text(short)
    torch.testing.assert_close(cut[0], full[0])
    torch.testing.assert_close(cut[1], full[1][:, : short.shape[1]])


def test_the_batch_depends_on_the_step_and_the_seed_alone(batches: Batches) -> None:
    first, again, later = (batches.at(step, 10, frozenset()).retain.ids for step in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, later)
    batches.settings = dataclasses.replace(batches.settings, seed=1)
    assert not torch.equal(first, batches.at(1, 10, frozenset()).retain.ids)


def test_no_retain_pair_is_twice_in_a_batch(batches: Batches) -> None:
    batches.sizes = (3, len(batches.retain))
    sampled = batches.at(0, 10, frozenset()).retain.ids.tolist()
    assert sorted(sampled) == sorted(batches.retain.ids.tolist())


def test_batches_halve_when_memory_runs_out_until_they_cannot(
    batches: Batches, clip: Clip, caplog: pytest.LogCaptureFixture
) -> None:
    student = ClipStudent(clip, "text", torch.float32, AnchoredCLIPErase.needs)
    student.joins = True
    batches.shrink(student)  # first, one set is encoded after the other
    assert not student.joins and batches.sizes == (3, 4) and not caplog.text
    batches.shrink(student)
    assert batches.sizes == (1, 2)
    assert "continuing with 1 forget and 2 retain captions per step" in caplog.text
    with pytest.raises(ModelError, match="out of memory with the smallest batches"):
        batches.shrink(student)


def test_on_a_gpu_each_model_encodes_both_sets_in_one_pass(
    batches: Batches, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, passes = AnchoredCLIPErase(), []
    encode_text = Clip.encode_text

    def counted(self: Clip, ids: torch.Tensor, *others: object) -> object:
        passes.append(len(ids))
        return encode_text(self, ids, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Clip, "encode_text", counted)
    results = []
    for slowly in (False, True):
        monkeypatch.setattr(Clip, "starts_slowly", slowly)
        # Other weights than the original's, so that no term is 0.
        other = clip.copied(image_tower=False)
        positions = other.model.text_model.embeddings.position_embedding.weight.data
        noise = torch.randn(positions.shape, generator=torch.Generator().manual_seed(0))
        positions += 0.1 * noise.to(positions)
        student = ClipStudent(other, "text", torch.float32, method.needs)
        student.train_only(method.trains)
        passes.clear()
        batch = batches.at(3, 10, method.needs)
        terms: dict[str, float] = {}
        for part in method.loss(student, batch):
            torch.stack(list(part.values())).sum().backward()  # type: ignore[no-untyped-call]
            terms |= {name: float(term.detach()) for name, term in part.items()}
        gradients = {n: p.grad for n, p in student.parameters.items() if p.grad is not None}
        results.append((terms, gradients))
        assert passes == ([7, 7] if slowly else [3, 4, 4, 3])
    (terms, gradients), (joined_terms, joined_gradients) = results
    assert set(terms) == {"token", "anchor"} and min(terms.values()) > 1e-3
    assert joined_terms == pytest.approx(terms, rel=1e-4)
    assert gradients.keys() == joined_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(joined_gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_tower_that_recomputes_its_activations_is_not_joined(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clip, "starts_slowly", True)
    needs = AnchoredCLIPErase.needs
    assert ClipStudent(clip.copied(False), "text", torch.float32, needs).joins
    monkeypatch.setattr(student_module, "LARGE", 1_000)
    assert not ClipStudent(clip.copied(False), "text", torch.float32, needs).joins
