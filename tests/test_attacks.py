"""Attacks: what each one optimizes, what a record states, and resuming."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erase_sd import runtime
from erase_sd.attacks import p4d, stage
from erase_sd.attacks.attempt import Attempt
from erase_sd.attacks.base import Attack, Probe
from erase_sd.attacks.embeddings import FittedEmbeddings, random_words
from erase_sd.attacks.p4d import Prompting4Debugging, nearest_words
from erase_sd.attacks.registry import ATTACKS, attack_class, build_attacks
from erase_sd.attacks.relearning import Relearning
from erase_sd.attacks.ring_a_bell import RingABell
from erase_sd.attacks.settings import LATER_SETTINGS, AttackSettings
from erase_sd.attacks.stage import attack
from erase_sd.attacks.sweep import VocabularySweep
from erase_sd.attacks.table import attack_lines, attacks_markdown
from erase_sd.attacks.target import Target, attacked_captions, cycled, open_models
from erase_sd.attacks.textual_inversion import TextualInversion
from erase_sd.attacks.tokens import (
    counterparts,
    embedding_table,
    encode_rows,
    in_place_of_name,
    state_loss,
    token_rows,
    typeable_words,
    with_name,
)
from erase_sd.attacks.unlearndiffatk import straight_through
from erase_sd.attacks.word_optimization import Words, optimized_words
from erase_sd.attacks.word_search import WordSearch
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.images import hash_image
from erase_sd.data.split import split_by_concept
from erase_sd.errors import SettingError
from erase_sd.files import key_of, write_json
from erase_sd.models import unet
from erase_sd.models.presets import Models
from erase_sd.run import Run
from erase_sd.run.records import ScoreRecord, Stages
from erase_sd.scoring.classes import checked_classes

SMALL: dict[str, Any] = {
    "embeddings.counts": "1,2", "embeddings.steps": 2, "embeddings.captions": 2,
    "textual-inversion.steps": 2, "textual-inversion.images": 2, "textual-inversion.batch": 2,
    "word-search.counts": 2, "word-search.rounds": 2, "word-search.candidates": 3,
    "word-search.captions": 2, "sweep.words": 5, "sweep.pairs": 6, "sweep.pairs_tried": 2,
    "sweep.steps": 1, "sweep.kept": 2, "relearning.steps": "1,2", "relearning.images": 2,
    "relearning.batch": 2, "relearning.shown": 2, "unlearndiffatk.prompts": 2,
    "unlearndiffatk.steps": 2, "ring-a-bell.prompts": 1, "ring-a-bell.pairs": 2,
    "ring-a-bell.population": 4, "ring-a-bell.generations": 2, "p4d.prompts": 2, "p4d.steps": 2,
}  # fmt: skip


@pytest.fixture
def victim(tiny: Models, erased_run: Run) -> Target:
    """The erased concept of `erased_run`, three captions and images."""
    concept = Concept("apple")
    assert isinstance(tiny.data, Path)
    data = read_flickr30k(tiny.data)
    sets = split_by_concept(data.items, [concept])
    pipe, encoders = open_models(erased_run, tiny)
    return Target(
        pipe=pipe, original={"text_encoder": pipe.text_encoder}, erased=encoders, concept=concept,
        detector=tiny.detector_file(), detector_class="apple",
        captions=cycled(attacked_captions(pipe, data, sets, concept, "held-out"), 3),
        training=attacked_captions(pipe, data, sets, concept, "train"), seed=7, steps=1, guidance=2.0,
    )  # fmt: skip


@pytest.fixture
def recorded_run(tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`erased_run` with data of its own, and a detector that finds the concept in every second image."""
    concept = Concept("apple")
    assert isinstance(tiny.data, Path)
    data = read_flickr30k(tiny.data)
    sets = split_by_concept(data.items, [concept])
    monkeypatch.setattr(stage, "concept_sets_of", lambda *_: (data, sets))
    monkeypatch.setattr(
        Target, "probabilities", lambda _, files: [0.9 * (i % 2) for i in range(len(files))]
    )
    return erased_run


def test_free_embeddings_take_the_place_of_the_name_only(victim: Target) -> None:
    captions = victim.training[:2]
    rows = token_rows(victim, in_place_of_name(captions, [5, 6]))
    table = victim.original["text_encoder"].get_input_embeddings().weight
    with torch.no_grad():
        own = {"text_encoder": table[torch.tensor([5, 6])]}
        same = encode_rows(victim, victim.original, rows, own)
        plain = encode_rows(victim, victim.original, rows)
    assert torch.allclose(same["prompt_embeds"], plain["prompt_embeds"], atol=1e-6)
    start = int(rows.start.min())
    zero = {"text_encoder": torch.zeros_like(table[:2])}
    other = encode_rows(victim, victim.original, rows, zero)["prompt_embeds"]
    assert torch.allclose(other[:, :start], plain["prompt_embeds"][:, :start], atol=1e-6)
    assert not torch.allclose(other[:, start:], plain["prompt_embeds"][:, start:], atol=1e-3)


def test_the_captions_own_name_has_no_distance_to_itself(victim: Target) -> None:
    named = with_name(victim, victim.training[:3])
    states = encode_rows(victim, victim.original, named)
    assert counterparts(named, named).tolist() == [list(range(32))] * 3
    assert state_loss(states, states, counterparts(named, named)).tolist() == [0, 0, 0]


def test_words_after_a_longer_phrase_correspond_to_the_same_words(victim: Target) -> None:
    captions = victim.training[:1]
    named, longer = (
        with_name(victim, captions),
        token_rows(victim, in_place_of_name(captions, [5] * 4)),
    )
    source, added = counterparts(longer, named)[0], 4 - int(named.length[0])
    before, after = named.ids["text_encoder"][0], longer.ids["text_encoder"][0]
    start = int(longer.start[0])
    assert before[source[start + 4 :]].tolist() == after[start + 4 :].tolist()
    assert before[source[:start]].tolist() == after[:start].tolist()
    assert added == 4 - len(victim.tokenizer(captions[0].name)["input_ids"]) + 2


def test_fitting_lowers_the_distance_to_the_original(victim: Target) -> None:
    captions = victim.captions
    named = with_name(victim, captions)
    original = encode_rows(victim, victim.original, named)

    def distance(steps: int) -> float:
        fit = FittedEmbeddings(counts=(2,), steps=steps, learning_rate=0.05)
        embeds = fit.run(victim)[0].embeds
        rows = token_rows(victim, in_place_of_name(captions, [0, 0]))
        return float(state_loss(embeds, original, counterparts(rows, named)).mean())

    assert distance(60) < distance(1)


def test_a_large_embedding_dominates_the_state_at_its_own_position(victim: Target) -> None:
    encoder = victim.erased["text_encoder"]
    rows = token_rows(victim, in_place_of_name(victim.captions, [0]))
    direction = torch.randn(1, encoder.config.hidden_size, generator=victim.generator())
    direction = direction.to(encoder.device)
    large = {"text_encoder": 1e5 * direction}
    with torch.no_grad():
        states = encode_rows(victim, victim.erased, rows, large)["prompt_embeds"]
        own = states[torch.arange(len(states)), rows.start]
        torch.testing.assert_close(
            own, encoder.final_layer_norm(direction).expand_as(own), atol=1e-2, rtol=0
        )


def test_the_baseline_of_textual_inversion_changes_one_state_only(victim: Target) -> None:
    inversion = TextualInversion(steps=(1, 2), images=2, batch=2)
    earlier, word, _, state = inversion.run(victim)
    assert not torch.equal(earlier.embeds["prompt_embeds"], word.embeds["prompt_embeds"])
    assert (word.control, state.control) == (False, True)
    rows = token_rows(victim, in_place_of_name(victim.captions, [0]))
    with torch.no_grad():
        plain = encode_rows(victim, victim.erased, rows)["prompt_embeds"]
    changed = ((state.embeds["prompt_embeds"] - plain).abs().amax(-1) > 1e-4).int()
    assert changed.tolist() == torch.nn.functional.one_hot(rows.start, plain.shape[1]).tolist()
    values = state.embeds["prompt_embeds"][torch.arange(len(plain)), rows.start]
    assert torch.equal(values, values[:1].expand_as(values))


def ids_of(target: Target, text: str) -> list[int]:
    ids: list[int] = target.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_the_word_search_takes_the_best_of_the_steepest_replacements(victim: Target) -> None:
    search, captions = WordSearch(counts=(2,), rounds=1, candidates=16), victim.training[:8]
    original = encode_rows(victim, victim.original, with_name(victim, captions))
    allowed = torch.tensor(list(typeable_words(victim)))

    def losses(trials: list[list[int]]) -> list[float]:
        return search._losses(victim, captions, original, trials)

    random = allowed[torch.randint(len(allowed), (17, 2), generator=victim.generator())].tolist()
    start, steepest = random[0], search._candidates(victim, captions, original, random[0], allowed)
    best = min(losses(steepest))
    assert best < losses([start])[0]
    [found] = search.run(victim)[0].found
    assert ids_of(victim, found) == steepest[losses(steepest).index(best)]
    [later] = dataclasses.replace(search, rounds=3).run(victim)[0].found
    assert losses([ids_of(victim, later)])[0] < min(best, *losses(random))


def test_the_sweep_tries_the_nearest_words_and_keeps_the_most_confident(
    victim: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ids_of(victim, victim.training[0].name)
    dog, kitchen = ids_of(victim, "dog"), ids_of(victim, "kitchen")
    sweep = VocabularySweep(words=3, pairs=4, pairs_tried=2, kept=2)
    # The original reads the name itself at no distance.
    assert sweep._nearest(victim, [dog, name, kitchen], 1) == [name]
    assert sweep._nearest(victim, [dog, name, kitchen], 2)[0] == name

    asked: list[Any] = []
    monkeypatch.setattr(Target, "images", lambda _, embeds, *rest: asked.append((embeds, *rest)))
    monkeypatch.setattr(Target, "shown", lambda *_: [0.1, 0.4, 0.0, 0.9, 0.2])
    monkeypatch.setattr(VocabularySweep, "_nearest", lambda _, target, trials, n: trials[-n:])
    words = list(typeable_words(victim).values())
    [probe] = sweep.run(victim)
    pair, word = probe.found
    assert len(pair.split()) == 2 and word == words[-2]
    [(embeds, _, seeds, _)] = asked
    assert len(embeds["prompt_embeds"]) == len(seeds) == 5
    assert not set(seeds) & set(victim.seeds)  # no image that selects is one that counts


def test_ring_a_bell_adds_the_concept_to_captions_and_searches_for_the_sum(
    victim: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dataclasses.replace(victim, captions=victim.training[:1])
    states = RingABell()._states(own, [own.captions[0].text])[0]
    allowed = torch.tensor(list(typeable_words(victim)))

    attack = RingABell(generations=5, population=16, tokens=3)
    first = torch.randint(len(allowed), (16, 3), generator=own.generator())
    best = attack._search(own, states, allowed, own.generator())
    by_chance = attack._distances(own, first, states, allowed)
    assert attack._distances(own, best[None], states, allowed) < by_chance.min()
    goals: list[Any] = []
    monkeypatch.setattr(
        RingABell,
        "_search",
        lambda _, target, goal, *rest: goals.append(goal) or torch.zeros(8).int(),
    )
    # The vector of this caption alone, once: what was removed comes back.
    RingABell(prompts=1, pairs=1, strength=1.0).run(own)
    torch.testing.assert_close(goals[0], states)
    RingABell(prompts=1, pairs=1, strength=3.0).run(own)
    removed = RingABell()._removed(own, [own.captions[0].text])[0]
    torch.testing.assert_close(goals[1], removed + 3 * (states - removed))


@pytest.mark.parametrize("name", ["unlearndiffatk", "p4d"])
def test_words_are_optimized_down_the_gradient_of_their_loss(victim: Target, name: str) -> None:
    captions = victim.training[:2]
    rows = token_rows(victim, [("", [0] * 3, "")] * 2)
    dog = token_rows(victim, [("", ids_of(victim, "dog and chair"), "")] * 2)
    wanted = encode_rows(victim, victim.erased, dog)
    allowed = torch.tensor(list(typeable_words(victim)))
    tables = {key: embedding_table(encoder)[allowed] for key, encoder in victim.erased.items()}

    def words(variable: Tensor) -> Words:
        if name == "p4d":
            return nearest_words(variable, tables)
        return straight_through(victim, variable, allowed)

    def distance(_: Any, embeds: Any) -> Tensor:
        return (embeds["prompt_embeds"] - wanted["prompt_embeds"]).square().mean()

    def after(steps: int) -> float:
        start = torch.randint(len(allowed), (2, 3), generator=victim.generator())
        logits = torch.randn((2, 3, len(allowed)), generator=victim.generator())
        variable = tables["text_encoder"][start].clone() if name == "p4d" else logits
        rate = 0.02 if name == "p4d" else 0.3
        chosen = optimized_words(victim, captions, rows, variable, words, distance, steps, rate)
        parts = [("", row, "") for row in allowed[chosen].tolist()]
        return float(distance(None, encode_rows(victim, victim.erased, token_rows(victim, parts))))

    assert after(20) < after(0)


def test_p4d_wants_what_the_original_predicts_under_the_name(
    victim: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        p4d, "optimized_words", lambda *args: asked.append(args) or torch.zeros(2, 8).int()
    )
    Prompting4Debugging(prompts=2).run(victim)
    _, captions, _, _, _, loss, *_ = asked[0]
    latents = victim.denoiser.latents([caption.image for caption in captions])
    with torch.no_grad():
        named = encode_rows(victim, victim.original, with_name(victim, captions))
        assert float(loss(latents, named)) == 0
        erased = encode_rows(victim, victim.erased, with_name(victim, captions))
        assert float(loss(latents, erased)) > 0


@pytest.mark.parametrize(
    "learns",
    [
        Relearning(steps=(1, 8), images=2, batch=2, learning_rate=3e-3),
        TextualInversion(steps=(1, 8), images=2, batch=2),
    ],
    ids=["relearning", "textual-inversion"],
)
def test_an_attack_that_learns_from_photographs_lowers_their_loss(
    victim: Target, learns: Attack
) -> None:
    target = dataclasses.replace(victim, captions=victim.training[:2])
    latents = target.denoiser.latents([caption.image for caption in target.captions])

    @torch.no_grad()
    def loss(probe: Probe) -> float:
        return float(target.denoising_loss(latents, probe.embeds, target.generator()))

    probes = learns.run(target)
    assert len(probes) == 4
    for early, late in zip(probes[::2], probes[1::2], strict=True):
        assert loss(late) < loss(early), late.name


@pytest.mark.parametrize(
    "learns",
    [Relearning(steps=(1,), images=4, batch=4), TextualInversion(steps=(1,), images=4, batch=4)],
    ids=["relearning", "textual-inversion"],
)
def test_each_photograph_is_learned_with_its_own_caption(
    victim: Target, learns: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    loss = Target.denoising_loss
    monkeypatch.setattr(
        Target, "denoising_loss", lambda *args: asked.append(args[1:3]) or loss(*args)
    )
    learns.run(victim)
    captions = victim.training[:4]
    own = list(victim.denoiser.latents([caption.image for caption in captions]))
    named = with_name(victim, captions)
    states = encode_rows(victim, victim.erased, named)["prompt_embeds"]
    latents, embeds = asked[0]
    order = [[torch.equal(row, other) for other in own].index(True) for row in latents]
    assert sorted(order) == [0, 1, 2, 3] != order
    for row, i in zip(embeds["prompt_embeds"].detach(), order, strict=True):
        before = int(named.start[i])  # what comes before the name is the caption's
        torch.testing.assert_close(row[:before], states[i, :before])


def test_states_are_compared_with_their_counterparts() -> None:
    attacked, original = (
        {
            "prompt_embeds": torch.tensor([states])[..., None],
            "pooled_prompt_embeds": torch.tensor([[pooled]]),
        }
        for states, pooled in (([1.0, 2.0, 2.0], 3.0), ([1.0, 2.0, 5.0], 1.0))
    )
    # The third state corresponds to the second: 0 for the states, (3 - 1)^2 for the pooled output.
    assert state_loss(attacked, original, torch.tensor([[0, 1, 1]])).tolist() == [4]
    assert state_loss(attacked, original, torch.tensor([[0, 1, 2]])).tolist() == [4 + 9 / 3]


def test_no_word_that_is_tried_mentions_the_concept(victim: Target) -> None:
    words = typeable_words(victim)
    assert {"dog", "kitchen"} <= set(words.values())
    assert not any(victim.concept.in_text(word) for word in words.values())
    for number, word in words.items():
        assert victim.tokenizer(word, add_special_tokens=False)["input_ids"] == [number]


def test_noise_is_what_the_unet_is_asked_for(victim: Target) -> None:
    latents = victim.denoiser.latents([caption.image for caption in victim.training[:4]])
    noisy, answer = victim.denoiser.add_noise(latents, victim.generator())
    alpha = victim.pipe.scheduler.alphas_cumprod[noisy.times.cpu()][:, None, None, None].to(latents)
    back = (noisy.latents - (1 - alpha).sqrt() * answer) / alpha.sqrt()
    assert torch.allclose(back, latents, atol=0.05)
    assert len({int(time) // 250 for time in noisy.times}) == 4  # one timestep in each stratum


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_seed_gives_the_same_probes_and_leaves_the_models(
    victim: Target, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "probabilities", lambda _, files: [0.5] * len(files))
    own = {key: value for key, value in SMALL.items() if key.startswith(f"{name}.")}
    attack = build_attacks((name,), own)[name]
    before = [p.clone() for p in victim.erased["text_encoder"].parameters()]
    with runtime.deterministic():  # as the stage runs them; a GPU's gradients vary otherwise
        first, second = attack.run(victim), attack.run(victim)
    for one, other in zip(first, second, strict=True):
        assert (one.name, one.texts, one.found) == (other.name, other.texts, other.found)
        assert torch.equal(one.embeds["prompt_embeds"], other.embeds["prompt_embeds"])
        assert len(one.texts) == len(one.embeds["prompt_embeds"]) == victim.n
    after = victim.erased["text_encoder"].parameters()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_every_budget_has_a_source_and_every_attack_a_paper() -> None:
    import ast
    import inspect

    for name in ATTACKS:
        kind = attack_class(name)
        assert kind.__doc__ and ("arXiv" in kind.__doc__ or "This project" in kind.__doc__)
        [body] = ast.parse(inspect.getsource(kind)).body
        assert isinstance(body, ast.ClassDef)
        texts = [
            below.value.value
            for line, below in zip(body.body, body.body[1:], strict=False)
            if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation)
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        ]
        assert len(texts) == len(dataclasses.fields(kind))
        assert all("(" in str(text) for text in texts), name  # "(ours)", "(Zhang et al.: 40)"


def test_rows_are_recorded_beside_the_original_and_no_attack(
    tiny: Models, recorded_run: Run
) -> None:
    settings = AttackSettings(
        attacks=("embeddings", "word-search"), images=4, steps=1,
        budgets={k: v for k, v in SMALL.items() if k.startswith(("embeddings", "word-search"))},
    )  # fmt: skip
    record = attack(recorded_run, tiny, settings)
    assert record == recorded_run.attacks()
    names = [(row.attack, row.row) for row in record.rows]
    assert names == [
        ("none", "names it"), ("embeddings", "1 embedding"), ("embeddings", "2 embeddings"),
        ("word-search", "2 words"),
    ]  # fmt: skip
    for row in record.rows:
        assert (row.attacked.n, row.attacked.detected, row.no_attack.n) == (4, 2, 4)
        assert row.attacked.low < 0.5 < row.attacked.high
        for image in row.images:
            assert (recorded_run.folder / image.file).is_file()
    assert record.rows[1].same_input is None and record.rows[3].same_input is not None
    assert record.rows[3].same_input.n == 2  # not the table's n, so the note says it
    assert "in half as many images" in attacks_markdown("apple", record)
    assert "| embeddings, 2 embeddings | apple | white box | 4 | 50 [15, 85] |" in attacks_markdown(
        "apple", record
    )
    assert (recorded_run.folder / "attacks.md").read_text().startswith("# Attacks on apple")
    assert attack_lines(record.rows)[2][-1] == ""  # the attack's time stands in its first row


def test_an_attack_on_the_text_encoder_reads_the_original_alone_if_only_the_unet_was_erased(
    tiny: Models, victim: Target, recorded_run: Run
) -> None:
    access = {
        (name, erased): Attempt(recorded_run, tiny, target, name, own).access
        for erased, target in (
            ("encoder", victim),
            ("unet", dataclasses.replace(victim, erased=victim.original)),
        )
        for name, own in build_attacks(ATTACKS, {}).items()
    }
    blind = {n for n in ATTACKS if access[n, "unet"] != access[n, "encoder"]}
    assert blind == {"embeddings", "word-search"}
    assert {access[name, "unet"] for name in blind} == {"original"}


def test_attacks_do_not_keep_the_activations_of_a_large_unet(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not open_models(erased_run, tiny)[0].unet.is_gradient_checkpointing
    monkeypatch.setattr(unet, "LARGE", 0)
    assert open_models(erased_run, tiny)[0].unet.is_gradient_checkpointing


def test_captions_of_another_split_are_asked_and_named(tiny: Models, recorded_run: Run) -> None:
    settings = AttackSettings(
        attacks=("embeddings",), images=2, steps=1, split="validation",
        budgets={k: v for k, v in SMALL.items() if k.startswith("embeddings")},
    )  # fmt: skip
    record = attack(recorded_run, tiny, settings)
    _, sets = stage.concept_sets_of(recorded_run, tiny)
    validation = {p.caption for p in sets.pairs("forget", "validation")}
    assert {image.text for image in record.rows[0].images} <= validation
    lines = attack_lines(record.rows)
    assert [line[0] for line in lines[:2]] == [
        "names it (validation captions)", "embeddings, 1 embedding (validation captions)",
    ]  # fmt: skip
    with pytest.raises(SettingError, match="split test: needs one of train, validation"):
        AttackSettings(split="test")  # type: ignore[arg-type]


def test_a_finished_attack_is_repeated_only_if_something_changed(
    tiny: Models, recorded_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    run_of = FittedEmbeddings.run

    def counting(self: FittedEmbeddings, victim: Target) -> list[Probe]:
        ran.append("embeddings")
        return run_of(self, victim)

    monkeypatch.setattr(FittedEmbeddings, "run", counting)
    settings = AttackSettings(
        attacks=("embeddings",), images=2, steps=1, budgets={"steps": 1, "counts": 1}
    )
    first = attack(recorded_run, tiny, settings)
    assert attack(recorded_run, tiny, settings) == first and len(ran) == 1
    attack(recorded_run, tiny, dataclasses.replace(settings, seed=1))
    assert len(ran) == 2
    attack(recorded_run, tiny, settings)
    image = recorded_run.folder / first.rows[1].images[0].file
    image.write_bytes(b"damaged")
    assert attack(recorded_run, tiny, settings).rows[1].images == first.rows[1].images
    assert len(ran) == 4


def test_an_attack_waits_for_the_row_without_an_attack_of_its_own_settings(
    tiny: Models, recorded_run: Run
) -> None:
    """Of two processes, one may finish an attack before the other has that row; an earlier one is there."""
    settings = AttackSettings(
        attacks=("embeddings",), images=2, steps=1, budgets={"steps": 1, "counts": 1}
    )
    earlier = attack(recorded_run, tiny, settings).rows
    other = dataclasses.replace(settings, seed=1)
    [target] = stage._targets(recorded_run, tiny, other, ())
    own = build_attacks(other.attacks, other.budgets)["embeddings"]
    attempts = [
        Attempt(recorded_run, tiny, target, "none", None),
        Attempt(recorded_run, tiny, target, "embeddings", own),
    ]
    outcomes = stage.Outcomes(recorded_run, tiny, attempts)
    outcomes.store(1)
    assert outcomes.record().rows == earlier
    outcomes.store(0)
    assert {row.settings["seed"] for row in outcomes.record().rows} == {1}


def test_an_attack_that_was_judged_by_another_class_is_repeated(
    tiny: Models, recorded_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"images": 2, "steps": 1}
    p4d = {"prompts": 1, "steps": 1}
    attack(recorded_run, tiny, AttackSettings(attacks=("p4d",), budgets=p4d, **small))
    settings = AttackSettings(attacks=("embeddings",), budgets={"steps": 1, "counts": 1}, **small)
    first = attack(recorded_run, tiny, settings).rows
    assert [row.attack for row in first] == ["none", "p4d", "embeddings"]
    assert {row.settings["detector_class"] for row in first} == {"apple"}
    assert "dropped" not in caplog.text
    again = attack(recorded_run, tiny, settings, ["orange"]).rows
    assert [row.attack for row in again] == ["none", "embeddings"]
    assert {row.settings["detector_class"] for row in again} == {"orange"}
    [line] = [m for m in caplog.messages if "its rows are dropped" in m]
    assert "attacks.json: apple: judged with another detector class or text encoder" in line
    assert {row.key for row in again}.isdisjoint(row.key for row in first)


def test_rows_of_an_earlier_version_are_kept_by_their_own_key(
    tiny: Models, recorded_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AttackSettings(
        attacks=("embeddings",), images=2, steps=1, budgets={"steps": 1, "counts": 1}
    )
    record = attack(recorded_run, tiny, settings)
    data, sets = stage.concept_sets_of(recorded_run, tiny)
    pipe, _ = open_models(recorded_run, tiny)
    asked = attacked_captions(pipe, data, sets, Concept("apple"), "held-out")
    learned = attacked_captions(pipe, data, sets, Concept("apple"), "train")
    texts = [[c.text, hash_image(c.image)] for c in (*cycled(asked, 2), *learned)]
    erasure, rows = recorded_run.erasure(), []
    for row in record.rows:
        own = {name: row.settings[name] for name in row.settings if name not in LATER_SETTINGS}
        parts = [row.attack, "apple", "apple", own, texts]
        hashes = [erasure.weights_sha256, erasure.base.fingerprint, tiny.detector_hash()]
        rows.append(dataclasses.replace(row, settings=own, key=key_of([*parts, *hashes])))
    earlier = dataclasses.replace(record, rows=tuple(rows))
    write_json(recorded_run.folder / "attacks.json", dataclasses.asdict(earlier))
    monkeypatch.setattr(FittedEmbeddings, "run", lambda *_: pytest.fail("repeated"))
    assert attack(recorded_run, tiny, settings) == earlier


def test_an_attack_with_another_sampler_is_repeated(tiny: Models, recorded_run: Run) -> None:
    settings = AttackSettings(
        attacks=("embeddings",), images=1, steps=2, budgets={"steps": 1, "counts": 1}
    )
    first = attack(recorded_run, tiny, settings).rows
    other = attack(recorded_run, dataclasses.replace(tiny, sampler="unipc"), settings).rows
    assert [row.settings["sampler"] for row in (*first, *other)] == [None, None, "unipc", "unipc"]
    assert {row.key for row in first}.isdisjoint(row.key for row in other)


def test_a_class_that_the_detector_lacks_is_known_before_the_models_are_opened(
    tiny: Models, recorded_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "open_models", lambda *_: pytest.fail("opened"))
    with pytest.raises(SettingError, match=r"no such class; similar ones: .*; name the class that"):
        attack(recorded_run, tiny, AttackSettings(), ["zebra"])


def test_concepts_that_no_option_names_keep_the_classes_of_the_scores(
    tiny: Models, recorded_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[dict[str, str]] = []

    def watched(*arguments: Any) -> dict[str, str]:
        chosen.append(checked_classes(*arguments))
        raise SettingError("enough")

    monkeypatch.setattr(stage, "checked_classes", watched)
    both = Concept("apple"), Concept("chair")
    unlearned = dataclasses.replace(recorded_run.unlearned(), concepts=both)
    score = ScoreRecord(status="done", settings={"classes": {"apple": "apple", "chair": "couch"}})
    recorded_run.update(stages=Stages(unlearn=unlearned, score=score))
    with pytest.raises(SettingError, match="enough"):
        attack(recorded_run, tiny, AttackSettings(), ["apple=orange"])
    assert chosen == [{"apple": "orange", "chair": "couch"}]


def test_a_short_concept_set_is_asked_again_with_other_seeds(victim: Target) -> None:
    captions = victim.captions[:2]
    assert cycled(captions, 5) == (*captions, *captions, captions[0])
    assert len(set(victim.seeds)) == victim.n


@pytest.mark.parametrize(
    ("names", "budgets", "message"),
    [
        (("p4d", "sweep"), {"steps": 3}, "budgets steps: needs attack.budget=value"),
        (("p4d",), {"stepz": 3}, "budgets stepz: p4d has no such budget; did you mean steps?"),
        (("p4d",), {"steps": 0}, "budgets steps: needs at least 1, got 0"),
        (("p4d",), {"steps": "x"}, "budgets steps: needs whole number, got x"),
        (("p4d",), {"steps": None}, "budgets steps: needs whole number, got None"),
        (("embeddings",), {"counts": "1,2.5"}, "needs whole numbers joined by commas, got 1,2.5"),
    ],
)
def test_a_wrong_budget_is_one_line(names: Any, budgets: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message.replace("?", r"\?")):
        build_attacks(names, budgets)


def test_an_unknown_attack_is_one_line() -> None:
    with pytest.raises(SettingError, match="attacks p5d: needs one of embeddings, "):
        AttackSettings(attacks=("p5d",))


def test_the_commands_attacks_are_the_librarys() -> None:
    from erase_sd.cli.attack import AttackChoice

    assert tuple(choice.value for choice in AttackChoice) == ATTACKS


def test_budgets_are_read_from_text() -> None:
    built = build_attacks(
        ("embeddings", "relearning"), {"embeddings.counts": "3,5", "relearning.new_word": "wug"}
    )
    assert built["embeddings"].counts == (3, 5)  # type: ignore[attr-defined]
    assert built["relearning"].new_word == "wug"  # type: ignore[attr-defined]


def test_random_words_begin_as_tokens_of_the_vocabulary(victim: Target) -> None:
    vectors = random_words(victim, 3)["text_encoder"]
    table = victim.erased["text_encoder"].get_input_embeddings().weight
    assert all((table == vector).all(1).any() for vector in vectors)


def test_the_command_prints_the_table_and_json(
    tiny: Models, recorded_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from erase_sd.cli import app
    from erase_sd.models import recorded

    monkeypatch.setattr(recorded, "models_of_run", lambda *_, **__: tiny)
    monkeypatch.setenv("COLUMNS", "120")
    words = ["attack", "--run", "apple", "--attack", "embeddings", "--set", "counts=1",
             "--set", "steps=1", "--images", "2", "--steps", "1", "--quiet"]  # fmt: skip
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "embeddings, 1 embedding" in shown.output and "Wilson" in shown.output
    answer = CliRunner().invoke(app, [*words, "--json"])
    assert [row["attack"] for row in json.loads(answer.output)["rows"]] == ["none", "embeddings"]


def test_the_concepts_own_words_are_held_out_captions(tiny: Models, victim: Target) -> None:
    assert all(victim.concept.in_text(caption.text) for caption in victim.captions)
    assert {c.image for c in victim.captions}.isdisjoint(c.image for c in victim.training)


def test_captions_that_use_the_word_in_another_sense_are_not_asked(victim: Target) -> None:
    every = [caption.text.lower() for caption in (*victim.captions, *victim.training)]
    assert not any("apple laptop" in text for text in every)
    assert victim.concept.in_text("an apple laptop")  # which the concept itself does not exclude
