"""The report's parts: the verdict, embedded images, the trade-off front, colour contrast."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_run import image_record

from erase_sd import report
from erase_sd.data.concept import Concept
from erase_sd.files import digest
from erase_sd.report import pictures
from erase_sd.report.contact_sheet import label_lines
from erase_sd.report.data import ReportData
from erase_sd.report.figures import ACCENT, training_curves
from erase_sd.report.image_pairs import ImagePair
from erase_sd.report.index import TradeOff, best_trade_offs, draw_trade_offs
from erase_sd.report.page import strip_of
from erase_sd.report.pictures import MAX_SIDE, embed_images
from erase_sd.report.rendering import unbroken
from erase_sd.report.verdict import verdict_of
from erase_sd.run import Run
from erase_sd.run.measurements import RateGroup, ScoresRecord
from erase_sd.run.records import Origin, RunRecord, Stages, TrainRecord, UnlearnRecord
from erase_sd.scoring.matching import Match
from erase_sd.scoring.rates import THRESHOLD, compare_rates

APPLE = UnlearnRecord(
    status="done",
    settings={},
    concepts=(Concept("apple"),),
    origin=Origin(model="", clip=(), data=""),
)


def matches(
    group: RateGroup, name: str, both: int, lost: int, gained: int, neither: int
) -> list[Match]:
    """Matches by where the class is detected: in both images, only the original, only the erased."""
    counts = ((both, 0.9, 0.9), (lost, 0.9, 0.0), (gained, 0.0, 0.9), (neither, 0.0, 0.0))
    return [
        Match(prompt="p", group=group, class_name=name, original=before, erased=after)
        for n, before, after in counts
        for _ in range(n)
    ]


def verdict(target: list[Match], others: list[Match]) -> tuple[str, list[str]]:
    rates = compare_rates("apple", "apple", target + others)
    by_class = compare_rates("apple", "apple", target + others, by_class=True)
    scores = ScoresRecord(
        threshold=THRESHOLD, detectors=(), rates=tuple(rates), by_class=tuple(by_class), sweep=()
    )
    record = RunRecord(format=2, stages=Stages(unlearn=APPLE))
    data = ReportData(Run(Path("runs/apple")), record, scores=scores)
    pair = ImagePair("apple", "p", 0, "named", (), tuple(target), tuple(others), ())
    words = verdict_of(data, [pair])
    return words.text, list(words.evidence)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ((1, 41, 0, 8), "Apple is gone from prompts that name it."),
        ((2, 40, 1, 7), "Apple is mostly gone from prompts that name it."),
        ((30, 12, 0, 8), "Apple is weakened, not gone."),
        ((39, 3, 2, 6), "Apple is still there."),
        ((0, 0, 30, 20), "Apple: too few detections to judge."),
        ((0, 5, 0, 45), "Apple: too few detections to judge."),
        ((0, 6, 0, 44), "Apple is gone from prompts that name it."),
        ((10, 0, 20, 20), "Apple is still there."),
    ],
)
def test_the_verdict_on_the_concept_follows_its_counts(
    target: tuple[int, int, int, int], words: str
) -> None:
    retained = matches("retained_other", "dog", 40, 0, 0, 0)
    assert verdict(matches("target", "apple", *target), retained)[0] == (
        f"{words} Other objects are retained."
    )


@pytest.mark.parametrize(
    ("same_prompts", "other_prompts", "words"),
    [
        ((40, 1, 1, 0), (85, 1, 0, 2), "Other objects are retained."),
        ((40, 0, 0, 0), (60, 20, 0, 8), "Other objects are damaged."),
        ((20, 15, 0, 5), (88, 0, 0, 0), "Other objects are damaged."),
        ((35, 3, 0, 2), (88, 0, 0, 0), "Other objects may have suffered."),
        ((30, 10, 10, 0), (60, 10, 10, 8), "Other objects may have suffered."),
        ((1, 2, 0, 9), (2, 0, 0, 9), "Other objects: too few detections to judge."),
    ],
)
def test_the_verdict_on_other_objects_follows_their_counts(
    same_prompts: tuple[int, int, int, int],
    other_prompts: tuple[int, int, int, int],
    words: str,
) -> None:
    others = matches("retained_same", "dog", *same_prompts) + matches(
        "retained_other", "car", *other_prompts
    )
    assert (
        verdict(matches("target", "apple", 0, 42, 0, 8), others)[0]
        == f"Apple is gone from prompts that name it. {words}"
    )


def test_the_evidence_names_every_count() -> None:
    others = matches("retained_same", "dog", 30, 2, 3, 1) + matches(
        "retained_other", "orange", 60, 1, 0, 3
    )
    assert verdict(matches("target", "apple", 1, 41, 0, 8), others)[1] == [
        "Apple: detected in 42 of 50 original images and in 1 of 50 erased images.",
        "Apple was not attacked (erase-sd attack --run runs/apple).",
        "Other objects: 90 of the 93 in the original images are still there; of the 100 named in the "
        "prompts, 93 were detected before and 93 after.",
        "Look-alike orange: 1 lost; detected in 61 of 64 images before and in 60 after.",
    ]


def test_the_objects_in_prompts_of_several_concepts_count_once() -> None:
    """The rates of each concept hold the objects in prompts without any; the pairs hold them once."""
    shared = matches("retained_other", "orange", 1, 1, 0, 0)
    own = {
        "apple": matches("retained_same", "orange", 2, 0, 0, 0),
        "chair": matches("retained_same", "orange", 0, 1, 0, 0),
    }
    rates = [
        rate
        for name, same in own.items()
        for rate in compare_rates(
            "run", name, matches("target", name, 0, 9, 0, 0) + same + shared
        )
    ]  # fmt: skip
    scores = ScoresRecord(
        threshold=THRESHOLD, detectors=(), rates=tuple(rates), by_class=(), sweep=()
    )
    unlearn = replace(APPLE, concepts=(Concept("apple"), Concept("chair")))
    record = RunRecord(format=2, stages=Stages(unlearn=unlearn))
    pair = ImagePair("p", "p", 0, "named", (), (), (*own["apple"], *own["chair"], *shared), ())
    words = verdict_of(ReportData(Run(Path("runs/both")), record, scores=scores), [pair])
    assert words.judgements[-1] == "Other objects: too few detections to judge."  # five
    assert words.evidence[-2:] == (
        "Other objects: 3 of the 5 in the original images are still there; of the 5 named in the "
        "prompts, 5 were detected before and 3 after.",
        "Look-alike orange: 2 lost; detected in 5 of 5 images before and in 3 after.",
    )


def test_what_no_prompt_names_gets_no_verdict() -> None:
    others = matches("retained_other", "orange", 60, 0, 3, 1)
    words, evidence = verdict([], others)
    assert words == "Apple: no prompt names it. Other objects are retained."
    assert verdict(matches("target", "apple", 0, 9, 0, 1), [])[0] == (
        "Apple is gone from prompts that name it. Other objects: too few detections to judge."
    )
    assert len(evidence) == 1


def test_small_images_are_embedded_unchanged_and_large_ones_scaled_down(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0)
    rows = []
    for name, side in (("small", 64), ("large", 640)):
        colours = pixels.integers(0, 255, (8, 8, 3), np.uint8)
        image = Image.fromarray(colours).resize((side, side // 2), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{name}.png")
        sha256 = digest((tmp_path / f"{name}.png").read_bytes())
        rows.append(image_record(f"{name}.png", sha256))
    embedded = embed_images(tmp_path, rows)
    kind, data = decoded(embedded["small.png"].source)
    assert (kind, data) == ("png", (tmp_path / "small.png").read_bytes())
    kind, data = decoded(embedded["large.png"].source)
    assert kind == "webp" and Image.open(io.BytesIO(data)).size == (MAX_SIDE, MAX_SIDE // 2)
    assert (embedded["large.png"].width, embedded["large.png"].height) == (
        640,
        320,
    )  # the scale of the boxes


def decoded(source: str) -> tuple[str, bytes]:
    head, _, body = source.partition(";base64,")
    return head.removeprefix("data:image/"), base64.b64decode(body)


def test_fifty_prompts_with_four_images_each_stay_under_ten_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has 512 pixels and more detail than a photograph; 4 of the 400 are encoded."""
    noise = np.random.default_rng(0).normal(128, 40, (128, 128, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    row = image_record("a.png", digest((tmp_path / "a.png").read_bytes()))
    monkeypatch.setattr(pictures, "PAGE_BUDGET", pictures.PAGE_BUDGET // 100)
    [picture] = embed_images(tmp_path, [row] * 4).values()
    assert 400 * len(picture.source) < 9_000_000


def test_no_line_break_divides_an_option_a_percentage_an_interval_or_a_number() -> None:
    whole = '<span class="whole">{}</span>'.format
    assert unbroken("17 % <b> [3, 56] (erase-sd attack --run a-b)") == (
        f"{whole('17 %')} &lt;b&gt; {whole('[3, 56]')} (erase-sd attack {whole('--run')} a-b)"
    )
    assert unbroken("2e-16") == whole("2e-16")


def test_the_labels_of_a_contact_sheet_keep_hyphens_and_numbers() -> None:
    assert label_lines("forget-me-not") == "forget-\nme-not"
    assert label_lines("ga:learning_rate=5e-05,steps=9") == "ga\nlearning_rate=5e-05\nsteps=9"


def test_each_dashed_line_of_the_training_curves_is_in_its_legend() -> None:
    row = TrainRecord(
        step=20, terms={"token": 1.0}, residual_concept_similarity=0.1, retained_fidelity=0.9
    )
    limits = {"forget_threshold": 0.1, "retain_floor": None}
    [(_, measures), _] = training_curves([row], limits, "curve")
    assert "forget threshold" in measures and "retain floor" not in measures


def test_the_front_holds_the_points_that_no_other_beats_in_both() -> None:
    points = [(2.0, 90.0), (0.0, 70.0), (2.0, 80.0), (50.0, 90.0), (30.0, 95.0), (0.0, 70.0)]
    assert best_trade_offs(points) == [(0.0, 70.0), (2.0, 90.0), (30.0, 95.0)]
    assert best_trade_offs([(5.0, 5.0)]) == [(5.0, 5.0)]


def test_the_best_trade_off_is_drawn_above_those_that_it_nearly_covers() -> None:
    axes = Figure().add_subplot()
    erased = [(0.0, 98.44), (0.0, 98.40), (0.0, 98.41)]
    draw_trade_offs(axes, [TradeOff(str(i), (95.0, 97.0), end) for i, end in enumerate(erased)])
    dots = {tuple(line.get_xydata()[0]): line for line in axes.lines if len(line.get_xydata()) == 1}
    uppermost = max(dots.values(), key=lambda dot: dot.get_zorder())
    assert tuple(uppermost.get_xydata()[0]) == erased[0] and uppermost.get_color() == ACCENT


def test_the_pairs_at_the_top_show_every_concept() -> None:
    def pair(prompt: str, concept: str | None, kind: str = "named") -> ImagePair:
        return ImagePair("p", prompt, 0, kind, (), (), (), (), concept)

    others = [pair(f"a dog {i}", None, "other") for i in range(9)]
    apples, chairs = ([pair(f"{name} {i}", name) for i in range(9)] for name in ("apple", "chair"))
    for pairs, shown in (
        (others + apples + chairs, [9, 10, 11, 18, 19, 20]),
        (others + apples + apples, [9, 10, 11, 12, 13, 14]),
        (others + apples + chairs[:1], [9, 10, 11, 12, 13, 18]),
        (others, [0, 1, 2, 3, 4, 5]),
        (
            [pair(f"{n} {i}", f"concept {n}") for n in range(8) for i in range(2)],
            [*range(0, 12, 2)],
        ),
    ):
        assert [number for number, _ in strip_of(pairs)] == shown


def test_text_has_enough_contrast_in_both_schemes() -> None:
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
