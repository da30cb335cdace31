"""The player and the markup of its page; test_play_browser.py opens the page in a browser."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from PIL import Image, ImageChops

from erase_sd.cli import main
from erase_sd.data.concept import Concept
from erase_sd.detection.detector import DetectorAnswer
from erase_sd.errors import DataError, RunError, SettingError
from erase_sd.files import hash_file
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models.presets import Models
from erase_sd.report.play import page as play_module
from erase_sd.report.play.markup import image_pair_html
from erase_sd.report.play.page import play
from erase_sd.report.play.player import Player
from erase_sd.run import Run
from erase_sd.run.measurements import Detection
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn


@pytest.fixture(scope="module")
def run(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unlearned run with images for two prompts."""
    folder = tmp_path_factory.mktemp("play")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASE_SD_CACHE", str(folder / "cache"))
        run = Run(folder / "apple")
        short = {"steps": 2, "forget_batch": 4, "retain_batch": 4, "retain_floor": 0.0}
        unlearn(UnlearnSettings(concepts=(Concept("apple"),), **short), tiny, run)
        (folder / "apple.txt").write_text("a dog\nan apple in a park\n")
        quick = GenerateSettings(steps=2, batch=1)
        generate([folder / "apple.txt"], quick, tiny, run)
    return run


@pytest.fixture(scope="module")
def player(tiny: Models, run: Run) -> Player:
    return Player(run, tiny)


def test_the_player_generates_the_images_of_the_run_on_every_call(run: Run, player: Player) -> None:
    for _ in range(2):  # after the first call, the encoders are back in place
        images, answer = player("an apple in a park", 1001)
        for variant, image in zip(("original", "erased"), images, strict=True):
            with Image.open(run.folder / "images" / variant / "apple-0001.png") as generated:
                assert ImageChops.difference(image, generated).getbbox() is None
    assert ImageChops.difference(*images).getbbox() is not None
    assert len(answer.detections) == 2 and "apple" in answer.names


@pytest.mark.parametrize(
    ("prompt", "seed", "error", "message"),
    [
        (" ", 1, SettingError, "the prompt is empty"),
        ("apple " * 40, 1, DataError, "the prompt: 42 tokens, at most 32"),
        ("an apple", -1, SettingError, r"seed -1: needs a whole number from 0 to 2\*\*63 - 1"),
        ("an apple", 2**63, SettingError, r"seed \d+: needs a whole number"),
    ],
)
def test_an_unusable_prompt_or_seed_is_refused_in_one_line(
    player: Player, prompt: str, seed: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        player(prompt, seed)


def test_a_run_that_is_not_unlearned_or_of_another_model_is_refused(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"not a run folder \(no run.json\); unlearn first"):
        Player(Run(Path("runs/none")), tiny)
    other = tmp_path / "other"
    shutil.copytree(tiny.folder, other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"remark": 1}))
    with pytest.raises(RunError, match=r"unlearned from .*sd, not .*other"):
        Player(run, dataclasses.replace(tiny, model=other))


def test_a_run_unlearned_again_or_removed_since_is_not_shown_as_it_was(
    tiny: Models, run: Run, tmp_path: Path
) -> None:
    own = Run(tmp_path / "apple")
    shutil.copytree(run.folder, own.folder)
    player = Player(own, tiny)
    player("an apple", 1)
    record = own.erased / "erase.json"
    text = record.read_text().replace(hash_file(own.erased / "model.safetensors"), "0" * 64)
    record.write_text(text)
    with pytest.raises(RunError, match="unlearned again since this page was opened; play again"):
        player("an apple", 1)
    shutil.rmtree(own.folder)
    with pytest.raises(RunError, match="missing; unlearn again"):
        player("an apple", 1)


APPLE = Detection(name="apple", probability=0.914, box=(6.4, 3.2, 32.0, 64.0))
IMPROBABLE = dataclasses.replace(APPLE, name="dog", probability=0.2)


def html(
    *detections: tuple[Detection, ...],
    concept: str = "apple",
    target: str = "apple",
    prompt: str = "a",
) -> str:
    images = [Image.new("RGB", (64, 64))] * 2
    answer = DetectorAnswer(
        names=("apple", "dog", "<i>"), size=64, kind="known answers", detections=list(detections)
    )
    return image_pair_html(prompt, images, answer, {concept: target})


def test_boxes_have_the_place_and_label_of_their_detection() -> None:
    original, erased = html((APPLE, IMPROBABLE), ()).split("</figure>")[:2]
    assert "left:10.0%;top:5.0%;width:40.0%;height:95.0%" in original
    assert "apple 91%</span>" in original and 'class="box concept"' in original
    assert "dog" not in original  # below the threshold of the scores
    assert "detected: nothing" in erased and "box" not in erased


@pytest.mark.parametrize(
    ("original", "erased", "sentence"),
    [
        ((APPLE,), (), "detected in the original, gone from the erased image"),
        ((APPLE,), (APPLE,), "still detected in the erased image"),
        ((IMPROBABLE,), (), "detected in neither image"),
        ((), (APPLE,), "detected only in the erased image"),
    ],
)
def test_a_sentence_compares_the_detections_of_the_concept(
    original: tuple[Detection, ...], erased: tuple[Detection, ...], sentence: str
) -> None:
    assert f"<b>apple</b>: {sentence}." in html(original, erased)


def test_a_concept_without_a_detector_class_is_reported() -> None:
    assert "no class <b>zeppelin</b>" in html((APPLE,), (), target="zeppelin")


def test_a_concept_is_detected_by_its_detector_class() -> None:
    page = html((APPLE,), (), concept="pome")
    assert "<b>pome</b>: detected in the original" in page and 'class="box concept"' in page


def test_prompts_and_names_are_escaped() -> None:
    detection = dataclasses.replace(APPLE, name="<i>")
    page = html((detection,), (), concept="<i>", target="<i>", prompt='"><script>x</script>')
    assert "<i>" not in page and "<script>" not in page
    assert "<b>&lt;i&gt;</b>: detected in the original" in page


def test_missing_gradio_and_a_port_in_use_are_reported_in_one_line(
    tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["erase-sd", "play", "--run", str(run.folder), "--port", "0"])
    with pytest.raises(SystemExit):
        main()
    line = "erase-sd: play needs Gradio; run pip install -e '.[play]' in the repository\n"
    assert capsys.readouterr().err == line
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(
            SettingError, match=r"port \d+: cannot listen on 127.0.0.1 \(Address already"
        ),
    ):
        play(run, tiny, port=taken.getsockname()[1])
    for host in ("a..b", "ü" * 64):
        with pytest.raises(SettingError, match=f"host {host}: not a name or an address"):
            play(run, tiny, host=host)


@pytest.mark.parametrize("before", [None, "example.org"])
def test_only_the_opening_of_the_page_goes_past_a_proxy(
    before: str | None, tiny: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    if before:
        monkeypatch.setenv("no_proxy", before)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setitem(sys.modules, "gradio", MagicMock())
    monkeypatch.setattr(play_module, "start_detector", MagicMock())
    monkeypatch.setattr(play_module, "play_page", page := MagicMock())
    seen = []
    launch = page.return_value.queue.return_value.launch
    launch.side_effect = lambda **_: (None, seen.append(os.environ["no_proxy"]), None)
    play(run, tiny, port=0)
    assert seen == ["*"] and os.environ.get("no_proxy") == before
