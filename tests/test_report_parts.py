"""The report's parts: the words of the verdict, the size of the pictures, the front, the colours."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erase_sd import report
from erase_sd.data.concept import Concept
from erase_sd.files import digest
from erase_sd.report import pictures
from erase_sd.report.data import Data
from erase_sd.report.index import front
from erase_sd.report.pictures import SIDE, embed
from erase_sd.report.shots import Shot
from erase_sd.report.verdict import verdict_of
from erase_sd.run import Run
from erase_sd.scoring.rates import Pair
from erase_sd.scoring.stage import Tables


def pairs(group: str, name: str, both: int, lost: int, gained: int, neither: int) -> list[Pair]:
    counts = ((both, 0.9, 0.9), (lost, 0.9, 0.0), (gained, 0.0, 0.9), (neither, 0.0, 0.0))
    return [Pair("p", group, name, a, b) for n, a, b in counts for _ in range(n)]  # type: ignore[arg-type]


def judged(target: list[Pair], others: list[Pair]) -> tuple[str, list[str]]:
    tables = Tables()
    tables.add("apple", "apple", target + others)
    data = Data(Run(Path("runs/apple")), {"stages": {}}, [Concept("apple")], scores=tables)
    shot = Shot("apple", "p", 0, "direct", (), tuple(target), tuple(others), ())
    verdict = verdict_of(data, [shot])
    return verdict.words, list(verdict.evidence)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ((1, 41, 0, 8), "Apple is gone."),
        ((2, 40, 1, 7), "Apple is mostly gone."),
        ((30, 12, 0, 8), "Apple is weakened, not gone."),
        ((39, 3, 2, 6), "Apple is still there."),
        ((0, 0, 30, 20), "Apple: too few to judge."),
        ((0, 5, 0, 45), "Apple: too few to judge."),
        ((0, 6, 0, 44), "Apple is gone."),
        ((10, 0, 20, 20), "Apple is still there."),
    ],
)
def test_the_headline_on_the_concept_says_no_more_than_its_counts(
    target: tuple[int, int, int, int], words: str
) -> None:
    kept = pairs("retained_other", "dog", 40, 0, 0, 0)
    assert judged(pairs("target", "apple", *target), kept)[0] == f"{words} Other objects are kept."


@pytest.mark.parametrize(
    ("same", "elsewhere", "words"),
    [
        ((40, 1, 1, 0), (85, 1, 0, 2), "Other objects are kept."),
        ((40, 0, 0, 0), (60, 20, 0, 8), "Other objects are damaged."),
        ((20, 15, 0, 5), (88, 0, 0, 0), "Other objects are damaged."),
        ((35, 3, 0, 2), (88, 0, 0, 0), "Other objects may have suffered."),
        ((30, 10, 10, 0), (60, 10, 10, 8), "Other objects may have suffered."),
        ((1, 2, 0, 9), (2, 0, 0, 9), "Other objects: too few to judge."),
    ],
)
def test_the_headline_on_the_rest_says_no_more_than_its_counts(
    same: tuple[int, int, int, int], elsewhere: tuple[int, int, int, int], words: str
) -> None:
    others = pairs("retained_same", "dog", *same) + pairs("retained_other", "car", *elsewhere)
    assert judged(pairs("target", "apple", 0, 42, 0, 8), others)[0] == f"Apple is gone. {words}"


def test_the_evidence_names_every_count() -> None:
    others = pairs("retained_same", "dog", 30, 2, 3, 1) + pairs(
        "retained_other", "orange", 60, 1, 0, 3
    )
    assert judged(pairs("target", "apple", 1, 41, 0, 8), others)[1] == [
        "Apple: detected in 42 of 50 original images and in 1 of 50 erased.",
        "Other objects: 90 of the 93 that the original images show are still there; of 100 that the "
        "prompts name, 93 were found before and 93 after.",
        "Look-alike orange: 1 lost, 61 of 64 before and 60 after.",
    ]


def test_what_no_prompt_names_is_not_judged() -> None:
    others = pairs("retained_other", "orange", 60, 0, 3, 1)
    words, evidence = judged([], others)
    assert words == "Apple: no prompt names it. Other objects are kept."
    assert judged(pairs("target", "apple", 0, 9, 0, 1), [])[0] == (
        "Apple is gone. Other objects: too few to judge."
    )
    assert len(evidence) == 1


def test_small_images_stay_as_they_are_and_large_ones_fit_the_page(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0)
    rows = []
    for name, side in (("small", 64), ("large", 640)):
        colours = pixels.integers(0, 255, (8, 8, 3), np.uint8)
        image = Image.fromarray(colours).resize((side, side // 2), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{name}.png")
        rows.append(
            {"file": f"{name}.png", "sha256": digest((tmp_path / f"{name}.png").read_bytes())}
        )
    found = embed(tmp_path, rows)
    kind, data = decoded(found["small.png"].source)
    assert (kind, data) == ("png", (tmp_path / "small.png").read_bytes())
    kind, data = decoded(found["large.png"].source)
    assert kind == "webp" and Image.open(io.BytesIO(data)).size == (SIDE, SIDE // 2)
    assert (found["large.png"].width, found["large.png"].height) == (640, 320)  # what boxes are in


def decoded(source: str) -> tuple[str, bytes]:
    head, _, body = source.partition(";base64,")
    return head.removeprefix("data:image/"), base64.b64decode(body)


def test_fifty_prompts_with_four_images_each_stay_under_ten_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 512 pixels, with more detail than a photograph; 4 of the 400 are encoded."""
    noise = np.random.default_rng(0).normal(128, 40, (128, 128, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    row = {"file": "a.png", "sha256": digest((tmp_path / "a.png").read_bytes())}
    monkeypatch.setattr(pictures, "BUDGET", pictures.BUDGET // 100)
    [picture] = embed(tmp_path, [row] * 4).values()
    assert 400 * len(picture.source) < 9_000_000


def test_the_front_is_what_no_other_beats_in_both() -> None:
    points = [(2.0, 90.0), (0.0, 70.0), (2.0, 80.0), (50.0, 90.0), (30.0, 95.0), (0.0, 70.0)]
    assert front(points) == [(0.0, 70.0), (2.0, 90.0), (30.0, 95.0)]
    assert front([(5.0, 5.0)]) == [(5.0, 5.0)]


def test_words_have_enough_contrast_in_both_schemes() -> None:
    style = (Path(report.__file__).parent / "assets" / "report.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): light-dark\((#\w+, #\w+)\)", style))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in (0, 1):
        for over, under in (
            ("ink", "paper"), ("muted", "paper"), ("accent", "paper"), ("ink", "raised"),
            ("on-accent", "accent"), ("ink", "line"),
        ):  # fmt: skip
            a, b = (luminance(colours[name].split(", ")[scheme]) for name in (over, under))
            assert (max(a, b) + 0.05) / (min(a, b) + 0.05) >= 4.5, (over, under, scheme)
