"""The player and what the page is made of; the page in a browser is in test_play_browser.py."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.errors import DataError, RunError, SettingError
from erase_sd.generation import stage as generation
from erase_sd.models.presets import Models
from erase_sd.report.play import page as play
from erase_sd.report.play.player import Player
from erase_sd.run import Run
from erase_sd.unlearning.settings import Settings
from erase_sd.unlearning.stage import unlearn


@pytest.fixture(scope="module")
def run(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unlearned run with images of two prompts."""
    folder = tmp_path_factory.mktemp("play")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_SD_CACHE", str(folder / "cache"))
        run = Run(folder / "apple")
        short = {"steps": 2, "forget_batch": 4, "retain_batch": 4, "retain_floor": 0.0}
        unlearn(Settings(concepts=(Concept("apple"),), **short), tiny, run)
        (folder / "apple.txt").write_text("a dog\nan apple in a park\n")
        quick = generation.Settings(steps=2, batch=1)
        generation.generate([folder / "apple.txt"], quick, tiny, run)
    return run


@pytest.fixture(scope="module")
def player(tiny: Models, run: Run) -> Player:
    return Player(run, tiny)


def test_the_player_draws_what_generate_draws_however_often(run: Run, player: Player) -> None:
    for _ in range(2):  # the encoders are back in their places after a call
        *images, found = player("an apple in a park", 1001)
        for arm, image in zip(("original", "erased"), images, strict=True):
            with Image.open(run.folder / "images" / arm / "apple-0001.png") as drawn:
                assert ImageChops.difference(image, drawn).getbbox() is None
    assert ImageChops.difference(*images).getbbox() is not None
    assert len(found["rows"]) == 2 and "apple" in found["names"]


@pytest.mark.parametrize(
    ("prompt", "seed", "error", "message"),
    [
        (" ", 1, SettingError, "prompt: needs a word or more, got none"),
        ("apple " * 40, 1, DataError, "prompt of 42 tokens in the box, at most 32"),
        ("an apple", -1, SettingError, r"seed: needs a whole number from 0 to 2\*\*63 - 1, got -1"),
        ("an apple", 2**63, SettingError, "seed: needs a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    player: Player, prompt: str, seed: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        player(prompt, seed)


def test_a_run_without_an_encoder_or_of_another_model_is_refused(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="unlearn is missing; unlearn first"):
        Player(Run(Path("runs/none")), tiny)
    other = tmp_path / "other"
    shutil.copytree(tiny.folder, other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"remark": 1}))
    with pytest.raises(RunError, match=r"unlearned from .*sd, not .*other"):
        Player(run, dataclasses.replace(tiny, model=other))


BOX = {"class": "apple", "probability": 0.914, "box": [6.4, 3.2, 32.0, 64.0]}
LOW = BOX | {"class": "dog", "probability": 0.2}


def pair(
    *rows: list[dict[str, object]], concept: str = "apple", target: str = "apple", prompt: str = "a"
) -> str:
    image = Image.new("RGB", (64, 64))
    names = ["apple", "dog", "<i>"]
    return play.pair(prompt, image, image, {"names": names, "rows": list(rows)}, {concept: target})


def test_boxes_stand_where_they_were_found_with_their_label() -> None:
    original, erased = pair([BOX, LOW], []).split("</figure>")[:2]
    assert "left:10.0%;top:5.0%;width:40.0%;height:95.0%" in original
    assert "apple 91%</span>" in original and 'class="box concept"' in original
    assert "dog" not in original  # under the threshold of the scores
    assert "found: nothing" in erased and "box" not in erased


@pytest.mark.parametrize(
    ("original", "erased", "sentence"),
    [
        ([BOX], [], "in the original, gone from the erased image"),
        ([BOX], [BOX], "still in the erased image"),
        ([LOW], [], "found in neither image"),
        ([], [BOX], "only in the erased image"),
    ],
)
def test_the_sentence_says_where_the_concept_was_found(
    original: list[dict[str, object]], erased: list[dict[str, object]], sentence: str
) -> None:
    assert f"<b>apple</b>: {sentence}." in pair(original, erased)


def test_a_concept_that_the_detector_does_not_know_is_said_to_be_unknown() -> None:
    assert "no class <b>zeppelin</b>" in pair([BOX], [], target="zeppelin")


def test_a_concept_is_looked_for_by_the_detectors_word() -> None:
    page = pair([BOX], [], concept="pome")
    assert "<b>pome</b>: in the original" in page and 'class="box concept"' in page


def test_prompts_and_names_are_text_and_no_markup() -> None:
    box = BOX | {"class": "<i>"}
    page = pair([box], [], concept="<i>", target="<i>", prompt='"><script>x</script>')
    assert "<i>" not in page and "<script>" not in page
    assert "<b>&lt;i&gt;</b>: in the original" in page


def test_without_gradio_and_on_a_port_in_use_play_ends_in_one_line(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["erase-sd", "play", "--run", str(run.folder), "--port", "0"])
    with pytest.raises(SystemExit):
        main()
    line = "erase-sd: play: needs Gradio; pip install -e '.[play]' in the clone\n"
    assert capsys.readouterr().err == line
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SettingError, match=r"--port \d+: cannot be listened on \(Address already"),
    ):
        play.play(run, tiny, port=taken.getsockname()[1])
