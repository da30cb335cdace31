"""`erase-sd explain`: complete figures, and maps and points that are what they claim to be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.data.flickr30k import read_flickr30k
from erase_sd.data.split import split_by_concept
from erase_sd.errors import RunError
from erase_sd.evaluation.explain import stage as explain_stage
from erase_sd.evaluation.explain.attention import image_rollout, patch_similarity, text_attention
from erase_sd.evaluation.explain.stage import explain, tsne
from erase_sd.evaluation.explain.views import ModelView, PairSelection
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.models.tokens import words_of
from erase_sd.run import Run
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

APPLE = (Concept("apple"),)
Views = tuple[ModelView, ModelView]
Drawn = tuple[PairSelection, Views]
NAMES = ["tsne.png", "attention-text.png", "attention-image.png"]


def erased(models: Models, towers: str = "text") -> Run:
    run = Run(Path("runs/apple"))
    settings = UnlearnSettings(
        concepts=APPLE, method="cliperase", towers=towers, steps=2, validate_every=2,
        forget_batch=8, retain_batch=8, learning_rate=1e-3, retain_floor=0.0,
    )  # fmt: skip
    unlearn(settings, models, run)
    return run


def eager(models: Models) -> Clip:
    clip = load_clip(models.clip_folder(0))
    clip.model.set_attn_implementation("eager")
    return clip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """Selections and views of all figures drawn in the test."""
    calls: list[Drawn] = []
    draw_figures = explain_stage.draw_figures

    def record(selection: PairSelection, views: Views, *rest: Any) -> dict[str, bytes]:
        calls.append((selection, views))
        return draw_figures(selection, views, *rest)

    monkeypatch.setattr(explain_stage, "draw_figures", record)
    return calls


@pytest.mark.parametrize("towers", ["text", "both"])
def test_three_figures_are_written_and_views_differ_only_in_trained_towers(
    tiny: Models, towers: str, drawn: list[Drawn]
) -> None:
    run = erased(tiny, towers)
    assert [path.name for path in explain(run, tiny)] == NAMES
    assert {path.name for path in run.folder.glob("*.png")} == set(NAMES)
    for name in NAMES:
        with Image.open(run.folder / name) as figure:
            figure.load()
            assert figure.format == "PNG" and min(figure.size) > 400
    [(_, (before, after))] = drawn
    assert not torch.equal(before.text, after.text)
    assert not torch.equal(before.text_attention[0], after.text_attention[0])
    assert not torch.equal(before.patch_similarity, after.patch_similarity)
    same = towers == "text"
    assert torch.equal(before.image, after.image) == same
    assert torch.equal(before.image_rollout, after.image_rollout) == same


def test_selection_is_held_out_and_only_its_forget_captions_mention_the_concept(
    tiny: Models, drawn: list[Drawn]
) -> None:
    explain(erased(tiny), tiny)
    [(selection, _)] = drawn
    sets = split_by_concept(read_flickr30k(tiny.pairs()).items, APPLE)
    for concept_set, rows in selection.rows.items():
        images = [pair.image for pair in selection.pairs[rows]]
        assert images == [item.image for item in sets.images(concept_set, "held-out")]
        mentions = {APPLE[0].in_text(pair.caption) for pair in selection.pairs[rows]}
        assert mentions == {concept_set == "forget"}
    assert all(selection.pairs[k].set == "forget" for k in selection.examples)


def test_text_attention_is_causal_and_sums_to_one(tiny: Models) -> None:
    clip = eager(tiny)
    maps = text_attention(clip, clip.tokens(["an apple and a dog", "a couch"]))
    assert torch.allclose(maps.sum(-1), torch.ones(2, clip.length), atol=1e-5)
    assert maps.triu(1).abs().max() == 0


def test_rollout_is_the_product_of_the_layers_each_half_residual(
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


def test_patch_similarity_is_the_cosine_of_the_projected_patch_with_its_caption(
    tiny: Models,
) -> None:
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


def test_tokens_keep_the_characters_of_the_text_and_mark_the_concept(tiny: Models) -> None:
    words = words_of(load_clip(tiny.clip_folder(0)).tokenizer, "A dog with an Apple .", APPLE)
    assert words.tokens[0] == "<|startoftext|>" and words.tokens[words.end] == "<|endoftext|>"
    assert words.end == len(words.tokens) - 1
    assert words.tokens[words.last] == "Apple"
    assert [words.tokens[k] for k in words.mentions] == ["Apple"]


def test_tsne_is_deterministic_and_equal_rows_share_a_point() -> None:
    torch.manual_seed(0)
    text, image = torch.randn(2, 40, 16)
    moved = text + torch.cat([torch.randn(20, 16), torch.zeros(20, 16)])
    once, again = (tsne([text, image, moved, image]) for _ in range(2))
    assert [part.shape for part in once] == [(40, 2)] * 4
    assert all(a.tobytes() == b.tobytes() for a, b in zip(once, again, strict=True))
    assert np.array_equal(once[1], once[3])
    assert np.array_equal(once[0][20:], once[2][20:])
    assert not np.isclose(once[0][:20], once[2][:20]).all(axis=1).any()


def test_tsne_of_four_rows_gives_four_points() -> None:
    torch.manual_seed(0)
    assert tsne([torch.randn(2, 8), torch.randn(2, 8)])[1].shape == (2, 2)


def test_figures_of_two_equal_views_can_be_drawn(tiny: Models, drawn: list[Drawn]) -> None:
    explain(erased(tiny), tiny)
    [(selection, (before, _))] = drawn
    pixels = np.zeros((len(selection.examples), 64, 64, 3), np.float32)
    figures = explain_stage.draw_figures(selection, (before, before), pixels, True)
    assert all(png.startswith(b"\x89PNG") for png in figures.values())


def test_run_before_unlearning_is_a_one_line_error_and_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["erase-sd", "explain", "--run", "apple"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    message = "erase-sd: runs/apple: not a run folder (no run.json); unlearn first\n"
    assert capsys.readouterr().err == message
    assert not Path("runs").exists()


def test_run_in_use_or_with_other_pairs_is_refused_without_figures(
    tiny: Models, tmp_path: Path
) -> None:
    from erase_sd.mini.dataset import write_dataset

    run = erased(tiny)
    with run.lock(), pytest.raises(RunError, match="in use by process"):
        explain(run, tiny)
    (tmp_path / "other").mkdir()
    write_dataset(tmp_path / "other", 60)
    others = Models(tiny.model, tiny.clips, tmp_path / "other", tiny.detector)
    with pytest.raises(RunError, match=r"unlearned with other caption pairs than .*other"):
        explain(run, others)
    assert not list(run.folder.glob("*.png"))
