"""Hardened CLIPErase: its adversaries and terms worked out by hand."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from pathlib import Path

import pytest
import torch
from method_task import apple_task
from torch import Tensor
from unlearn_runs import KilledError, kill_at, same, short, weights

from erase_sd.errors import ModelError
from erase_sd.methods import concept_prompts
from erase_sd.methods.adversaries import (
    AttackedCaptions,
    captions_to_attack,
    distance,
    free_embeddings,
    sampled,
    stepped,
)
from erase_sd.methods.base import Batch, ConceptRemoved, EncodedPairs, Encodings
from erase_sd.methods.cliperase_hardened import HardenedCLIPErase
from erase_sd.methods.concept_prompts import denoiser_of
from erase_sd.models.clip import FreeEmbeddings
from erase_sd.models.denoiser import open_denoiser
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.unlearning.checkpoint import Checkpoint, Snapshot, TrainerState
from erase_sd.unlearning.stage import unlearn


class EmbeddingStudent:
    """Its hidden states are the free embeddings, and 0 elsewhere, times `gain`."""

    scale = 1.0
    joins = False

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = torch.tensor(gain, requires_grad=True)
        self.read: list[FreeEmbeddings] = []

    def text(
        self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        assert free is not None
        self.read.append(free)
        return torch.zeros(len(ids), 1), self.gain * free.embeddings

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        raise AssertionError("the method has no images of its own")

    def __call__(self, pairs: EncodedPairs) -> Encodings:
        return Encodings(hidden_states=torch.zeros(*pairs.ids.shape, 2))


def attacked(original: float, target: float) -> AttackedCaptions:
    """One caption of four tokens, whose name is the third."""
    states = torch.ones(1, 4, 2)
    return AttackedCaptions(
        torch.arange(4)[None], torch.tensor([2]), original * states, target * states
    )


def batch_of(done: float = 0.5) -> Batch:
    """A forget and a retain caption of four tokens, all of their encodings 0."""
    zeros = torch.zeros(1, 4, 2)
    pairs = EncodedPairs(torch.arange(4)[None], Encodings(hidden_states=zeros))
    removed = ConceptRemoved(zeros, torch.ones(1, 4))
    return Batch(pairs, pairs, removed, done, torch.Generator().manual_seed(0))


def hardened(**changes: float) -> HardenedCLIPErase:
    """One caption, one adversary of one token that begins at (1, 1) and never restarts."""
    method = HardenedCLIPErase(
        **{  # type: ignore[arg-type]
            "rows": 1, "tokens": 1, "pool": 1, "attack_steps": 1, "restart": 0.0, "random": 0.0,
            "neighbour_weight": 0.0, **changes,
        }
    )  # fmt: skip
    one = torch.ones(1, 2)
    return dataclasses.replace(method, attacked=attacked(3.0, 0.0), words=one, names=one[None])


def test_free_embeddings_end_at_the_name() -> None:
    free = free_embeddings(
        torch.zeros(2, 5), torch.tensor([2, 4]), torch.arange(8.0).reshape(2, 2, 2)
    )
    assert free.mask.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert free.embeddings[0, 1:3].tolist() == [[0, 1], [2, 3]]
    assert free.embeddings[1, 3:].tolist() == [[4, 5], [6, 7]]


def test_the_names_tokens_are_in_the_order_of_the_caption() -> None:
    assert attacked(1.0, 0.0).names(2).tolist() == [[1, 2]]  # the ids are the positions


def test_the_captions_to_attack_hold_the_name_behind_enough_tokens(tiny: Models) -> None:
    task = apple_task(tiny)
    mask, end = task.forget.mask.clone(), task.forget.mention_end.clone()
    mask[::3], end[1::3] = 0, 1
    forget = dataclasses.replace(task.forget, mask=mask, mention_end=end)
    usable = torch.arange(2, len(end), 3)
    usable = usable[mask[usable].any(1) & (end[usable] >= 2)]
    every = captions_to_attack(task.clip, forget, 1000, 2)
    assert every.ids.equal(forget.ids[usable]) and every.end.equal(end[usable])
    _, removed = task.clip.encode_texts(forget.concept_removed_ids[usable])
    torch.testing.assert_close(every.target, forget.aligned(usable, removed))
    assert not torch.allclose(every.target, removed)
    _, original = task.clip.encode_texts(forget.ids[usable])
    torch.testing.assert_close(every.original, original)
    few = captions_to_attack(task.clip, forget, 3, 2)  # the first, the middle one and the last
    assert few.ids.equal(forget.ids[usable[[0, (len(usable) - 1) // 2, -1]]])


def test_distance_counts_what_reads_the_embeddings() -> None:
    captions = attacked(1.0, 0.0)
    assert captions.reached(1).tolist() == [[0, 0, 1, 1]]
    assert captions.reached(2).tolist() == [[0, 1, 1, 1]]
    states = torch.tensor([[[9.0, 9.0], [9.0, 9.0], [1.0, 3.0], [1.0, 1.0]]])
    # Position 2 differs by (0, 2), mean square 2; position 3 not at all.
    assert distance(states, captions.original, captions.reached(1)).tolist() == [1.0]


def test_a_step_has_the_size_it_is_given_and_moves_members_only() -> None:
    pool = torch.zeros(3, 1, 2)
    members = torch.tensor([0, 2, 2])
    leaves = pool[members].requires_grad_()
    # Gradients (3, 4) of member 0; (1, 0) and (-1, 2) of member 2, together (0, 2).
    slopes = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[-1.0, 2.0]]])
    moved = stepped(pool, members, leaves, (leaves * slopes).sum((1, 2)), 0.5)
    rms = (25 / 2) ** 0.5
    third = 0.5 * 10 ** (2 / 3)  # the fourth member's step would be 5
    torch.testing.assert_close(moved[0], torch.tensor([[-0.5 * 3 / rms, -0.5 * 4 / rms]]))
    assert moved[1].tolist() == [[0.0, 0.0]]
    torch.testing.assert_close(moved[2], torch.tensor([[0.0, -third * 2**0.5]]))


def test_the_adversary_term_is_the_distance_to_the_target_after_the_adversarys_step() -> None:
    batch = batch_of()
    batch.memory["pool"] = torch.ones(1, 1, 2)
    student = EmbeddingStudent()
    terms = ChainMap(*hardened(adversary_weight=10.0, step_size=0.5).loss(student, batch))
    # The original's states are 3, so the step goes up from 1 to 1.5. Of the two positions from the
    # name on, the first is then at 1.5 of target 0, the second at 0: (2.25 + 0) / 2.
    assert batch.memory["pool"].tolist() == [[[1.5, 1.5]]]
    assert float(terms["adversary"].detach()) == pytest.approx(10 * 2.25 / 2)
    terms["adversary"].backward()
    assert float(student.gain.grad) == pytest.approx(10 * 2 * 2.25 / 2)  # type: ignore[arg-type]
    assert {name: float(terms[name].detach()) for name in ("anchor", "token")} == {
        "anchor": 0.0, "token": 0.0,
    }  # fmt: skip


def test_the_adversaries_take_several_steps_before_the_student_takes_one() -> None:
    batch = batch_of()
    batch.memory["pool"] = torch.ones(1, 1, 2)
    list(hardened(step_size=0.25, attack_steps=3).loss(EmbeddingStudent(), batch))
    assert batch.memory["pool"].tolist() == [[[1.75, 1.75]]]


@pytest.mark.parametrize(("restart", "random"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_adversaries_restart_or_are_replaced_for_the_student_as_often_as_set(
    restart: float, random: float
) -> None:
    # Random embeddings have other numbers than 7, from which a step toward 3 leads to 6.5.
    batch, student = batch_of(), EmbeddingStudent()
    batch.memory["pool"] = torch.full((1, 1, 2), 7.0)
    list(hardened(restart=restart, random=random, step_size=0.5).loss(student, batch))
    kept = batch.memory["pool"].tolist() == [[[6.5, 6.5]]]
    assert kept == (restart == 0)
    learned = student.read[-1].embeddings[:, 2:3]
    assert torch.equal(learned, batch.memory["pool"]) == (random == 0)


def test_each_step_has_a_random_number_of_embeddings_up_to_the_name() -> None:
    names, counts = torch.zeros(1, 2, 2), set()
    method = dataclasses.replace(hardened(tokens=2, step_size=0.1), names=names)
    for seed in range(8):
        batch = dataclasses.replace(batch_of(), generator=torch.Generator().manual_seed(seed))
        batch.memory["pool"] = torch.tensor([[[5.0, 5.0], [7.0, 7.0]]])
        student = EmbeddingStudent()
        list(method.loss(student, batch))
        for free in student.read:  # of the attack, and of the student's own step
            _, before, end, _ = free.embeddings[0, :, 0].tolist()
            assert 6 < end <= 7  # the last embedding, whatever their number
            assert not free.mask[0, 1] or 4 < before <= 5
        counts.add(int(student.read[0].mask.sum()))
    assert counts == {1, 2}


def test_hardening_begins_after_its_share_of_the_steps() -> None:
    method = hardened(start=0.6)
    assert "adversary" not in ChainMap(*method.loss(EmbeddingStudent(), batch_of(done=0.5)))
    assert "adversary" in ChainMap(*method.loss(EmbeddingStudent(), batch_of(done=0.6)))
    unattacked = hardened(adversary_weight=0.0).loss(EmbeddingStudent(), batch_of())
    assert "adversary" not in ChainMap(*unattacked)


def test_sampled_embeddings_are_near_the_names_anywhere_or_between_words() -> None:
    words, names = torch.eye(4), torch.full((1, 2, 4), 100.0)
    drawn = sampled(words, names, 300, torch.Generator().manual_seed(0))
    assert drawn.shape == (300, 2, 4)
    near = (drawn - 100).norm(dim=-1).amax(1) < 10
    norms = drawn[~near].norm(dim=-1)
    assert 60 < int(near.sum()) < 140
    assert float((drawn[near] - 100).std()) == pytest.approx(float(words.std()), rel=0.1)
    # Points on a line through two of these words have numbers that sum to 1.
    between = drawn[((drawn.sum(-1) - 1).abs() < 1e-5).all(1)]
    assert 60 < len(between) < 140
    assert -1 <= float(between.min()) < -0.9 and 1.9 < float(between.max()) <= 2
    assert float(norms.min()) < 0.5 and 50 < float(norms.max()) <= 64.001
    assert torch.equal(drawn, sampled(words, names, 300, torch.Generator().manual_seed(0)))


def test_the_neighbour_term_is_the_change_under_a_word_that_the_caption_does_not_have(
    tiny: Models,
) -> None:
    method = HardenedCLIPErase(adversary_weight=0.0, neighbour_weight=4.0)
    task = apple_task(tiny)
    method = method.prepare(task)

    class Shifted(EmbeddingStudent):
        def text(
            self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
        ) -> tuple[Tensor, Tensor]:
            assert free is not None
            self.read.append(free)
            text, hidden_states = task.clip.encode_text(ids, unit, free)
            return text, hidden_states + 0.5

        def __call__(self, pairs: EncodedPairs) -> Encodings:
            return pairs.original

    ids = task.retain.ids[:60]
    states = torch.zeros(*ids.shape, 2)
    pairs = EncodedPairs(ids, Encodings(hidden_states=states))
    batch = dataclasses.replace(
        batch_of(),
        forget=pairs,
        retain=pairs,
        concept_removed=ConceptRemoved(states, states[..., 0]),
    )
    student = Shifted()
    assert float(ChainMap(*method.loss(student, batch))["neighbour"]) == pytest.approx(4 * 0.25)
    [free] = student.read
    assert len(free.mask) == 48  # twice as many as `rows`
    # One word of each caption, neither its start nor its end, the first and the last one too.
    place, last = free.mask.int().argmax(1), task.clip.ends(ids[:48]) - 1
    assert bool((free.mask.sum(1) == 1).all()) and int(place.min()) == 1
    assert bool((place <= last).all()) and bool((place == last).any())
    apple = task.clip.model.text_model.embeddings.token_embedding.weight[
        task.clip.tokens(["apple"])
    ]
    assert method.words is not None and not (method.words == apple[0, 1]).all(1).any()


def test_a_checkpoint_holds_what_a_method_remembers(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", {})
    memory = {"pool": torch.arange(6.0).reshape(3, 1, 2)}
    weights = {"text_model.weight": torch.ones(2)}
    checkpoint.save(Snapshot(TrainerState(batch_sizes=(2, 2)), weights, {}, {}, memory, ()))
    snapshot = checkpoint.load()
    assert snapshot is not None and same(dict(snapshot.memory), memory)
    assert same(dict(snapshot.accepted), weights) and not snapshot.optimizer


def test_a_resumed_run_continues_with_the_same_adversaries(tiny: Models) -> None:
    settings = short(method="cliperase-hardened", hyperparameters={"rows": 4})
    whole, broken = Run(Path("runs/whole")), Run(Path("runs/broken"))
    unlearn(settings, tiny, whole)
    with pytest.raises(KilledError):
        unlearn(settings, tiny, broken, kill_at(5))
    unlearn(settings, tiny, broken)
    assert same(weights(whole), weights(broken))
    without = Run(Path("runs/without"))
    unlearn(
        short(method="cliperase-hardened", hyperparameters={"rows": 4, "attack_steps": 1}),
        tiny,
        without,
    )
    assert not same(weights(whole), weights(without))


def test_the_denoisers_loss_depends_on_the_hidden_states(tiny: Models) -> None:
    denoiser = open_denoiser(tiny.folder)
    latents = denoiser.latents([next(tiny.pairs().rglob("*.jpg"))]).repeat(2, 1, 1, 1)
    states = torch.randn(2, 4, denoiser.pipe.unet.config.cross_attention_dim).requires_grad_()
    losses = denoiser.loss(latents, states, torch.Generator().manual_seed(0))
    assert losses.shape == (2,) and bool((losses > 0).all())
    [gradient] = torch.autograd.grad(losses.sum(), states)
    assert float(gradient.abs().max()) > 0


def test_a_pipeline_with_two_text_encoders_is_refused(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = dataclasses.replace(apple_task(tiny), open_denoiser=lambda: open_denoiser(tiny.folder))
    monkeypatch.setattr(concept_prompts, "encoders_of", lambda pipe: {"one": pipe, "two": pipe})
    with pytest.raises(ModelError, match="reads two text encoders; this method needs one"):
        denoiser_of(task, one_encoder=True)
