"""`erase-sd explain`: pictures that appear whole, of maps and places that are what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.errors import RunError
from erase_sd.evaluation.explain import stage as explanation
from erase_sd.evaluation.explain.attention import (
    image_rollout,
    patch_similarity,
    text_attention,
    words_of,
)
from erase_sd.evaluation.explain.stage import Pairs, Seen, explain, places
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.run import Run
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn

APPLE = (Concept("apple"),)
NAMES = ["tsne.png", "attention-text.png", "attention-image.png"]


def erased(models: Models, towers: str = "text") -> Run:
    run = Run(Path("runs/apple"))
    settings = Settings(
        concepts=APPLE, method="cliperase", towers=towers, steps=2, validate_every=2,
        forget_batch=8, retain_batch=8, rate=1e-3, retain_floor=0.0,
    )  # fmt: skip
    unlearn(settings, models, run)
    return run


def eager(models: Models) -> Clip:
    clip = load_clip(models.clip_folder(0))
    clip.model.set_attn_implementation("eager")
    return clip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pairs, tuple[Seen, Seen]]]:
    """What the pictures are drawn from, kept on the way."""
    kept = []
    whole = explanation._pictures

    def keep(pairs: Pairs, arms: tuple[Seen, Seen], *more: object) -> dict[str, bytes]:
        kept.append((pairs, arms))
        return whole(pairs, arms, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(explanation, "_pictures", keep)
    return kept


@pytest.mark.parametrize("towers", ["text", "both"])
def test_three_pictures_appear_whole_and_the_arms_differ_where_they_were_trained(
    tiny: Models, towers: str, drawn: list[tuple[Pairs, tuple[Seen, Seen]]]
) -> None:
    run = erased(tiny, towers)
    assert [path.name for path in explain(run, tiny)] == NAMES
    assert {path.name for path in run.folder.glob("*.png")} == set(NAMES)
    for name in NAMES:
        with Image.open(run.folder / name) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 400
    [(_, (before, after))] = drawn
    assert not torch.equal(before.text, after.text)
    assert not torch.equal(before.looks[0], after.looks[0])
    assert not torch.equal(before.similarity, after.similarity)
    same = towers == "text"
    assert torch.equal(before.image, after.image) == same
    assert torch.equal(before.rollout, after.rollout) == same


def test_what_is_shown_is_held_out_and_the_forget_captions_mention_the_concept(
    tiny: Models, drawn: list[tuple[Pairs, tuple[Seen, Seen]]]
) -> None:
    from erase_sd.data.flickr30k import read
    from erase_sd.data.split import split

    explain(erased(tiny), tiny)
    [(pairs, _)] = drawn
    sides = split(read(tiny.pairs()).items, APPLE)
    forget, retain = (pairs.items[rows] for rows in pairs.sides.values())
    assert forget == list(sides.forget["held-out"]) and retain == list(sides.retain["held-out"])
    mentions = [APPLE[0].in_text(caption) for caption in pairs.captions]
    assert mentions == [True] * len(forget) + [False] * len(retain)
    assert all(k < len(forget) for k in pairs.examples)


def test_attention_of_a_position_sums_to_one_and_never_looks_ahead(tiny: Models) -> None:
    clip = eager(tiny)
    maps = text_attention(clip, clip.tokens(["an apple and a dog", "a couch"]))
    assert torch.allclose(maps.sum(-1), torch.ones(2, clip.length), atol=1e-5)
    assert maps.triu(1).abs().max() == 0


def test_rollout_is_the_product_of_the_layers_with_half_of_each_left_to_the_residual(
    tiny: Models,
) -> None:
    clip = eager(tiny)
    pixels = torch.rand(2, 3, 64, 64)
    vision = clip.model.vision_model(pixel_values=pixels, output_attentions=True)
    first, second = (layer.mean(1) / 2 + torch.eye(17) / 2 for layer in vision.attentions)
    whole = second @ first
    shares = image_rollout(clip, pixels)
    assert shares.shape == (2, 4, 4)
    assert torch.allclose(shares.flatten(1), whole[:, 0, 1:], atol=1e-6)
    assert torch.allclose(whole[:, 0].sum(-1), torch.ones(2), atol=1e-5)


def test_a_patchs_cosine_is_that_of_its_projected_state_with_its_own_caption(tiny: Models) -> None:
    clip = eager(tiny)
    pixels = torch.rand(2, 3, 64, 64)
    text = clip.encode_texts(clip.tokens(["an apple", "a couch"]))[0]
    maps = patch_similarity(clip, pixels, text)
    tower = clip.model.vision_model
    state = tower(pixel_values=pixels).last_hidden_state[1, 1 + 4 * 2 + 3]  # row 2, column 3
    patch = clip.model.visual_projection(tower.post_layernorm(state))
    assert maps[1, 2, 3].item() == pytest.approx(
        torch.cosine_similarity(patch, text[1], dim=0).item(), abs=1e-5
    )


def test_tokens_are_read_as_the_text_has_them_and_know_the_concept(tiny: Models) -> None:
    words = words_of(load_clip(tiny.clip_folder(0)), "A dog with an Apple .", APPLE)
    assert words.tokens[0] == "<|startoftext|>" and words.tokens[words.end] == "<|endoftext|>"
    assert words.end == len(words.tokens) - 1
    assert words.tokens[words.last] == "Apple"
    assert [words.tokens[k] for k in words.mentions] == ["Apple"]


def test_one_embedding_places_both_arms_and_is_the_same_twice() -> None:
    torch.manual_seed(0)
    text, image = torch.randn(2, 40, 16)
    moved = text + torch.cat([torch.randn(20, 16), torch.zeros(20, 16)])
    once, again = (places([text, image, moved, image]) for _ in range(2))
    assert [part.shape for part in once] == [(40, 2)] * 4
    assert all(a.tobytes() == b.tobytes() for a, b in zip(once, again, strict=True))
    assert np.array_equal(once[1], once[3])  # what did not move stays where it was
    assert np.array_equal(once[0][20:], once[2][20:])
    assert not np.isclose(once[0][:20], once[2][:20]).all(axis=1).any()


def test_a_handful_of_points_has_places_too() -> None:
    torch.manual_seed(0)
    assert places([torch.randn(2, 8), torch.randn(2, 8)])[1].shape == (2, 2)


def test_arms_that_are_alike_can_be_drawn(
    tiny: Models, drawn: list[tuple[Pairs, tuple[Seen, Seen]]]
) -> None:
    explain(erased(tiny), tiny)
    [(pairs, (before, _))] = drawn
    pixels = np.zeros((len(pairs.examples), 64, 64, 3), np.float32)
    alike = explanation._pictures(pairs, (before, before), pixels, True)
    assert all(png.startswith(b"\x89PNG") for png in alike.values())


def test_a_run_before_unlearn_is_one_clear_line_and_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["erase-sd", "explain", "--run", "apple"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "erase-sd: runs/apple: unlearn is missing; unlearn first\n"
    assert not Path("runs").exists()


def test_a_run_in_use_or_whose_pairs_changed_gets_no_pictures(tiny: Models, tmp_path: Path) -> None:
    from erase_sd.mini.dataset import write

    run = erased(tiny)
    with run.lock(), pytest.raises(RunError, match="in use by process"):
        explain(run, tiny)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", 60)
    others = Models(tiny.model, tiny.clips, tmp_path / "other", tiny.detector)
    with pytest.raises(RunError, match=r"unlearned with other caption pairs than .*other has"):
        explain(run, others)
    assert not list(run.folder.glob("*.png"))
