"""Pairs of images of one prompt and seed: what each shows, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data.coco import named_classes
from ..data.concept import Concept
from ..data.kinds import read_name
from ..errors import SettingError
from ..scoring.rates import Pair, pairs_of
from .data import Data
from .pictures import Picture, embed

ARMS = ("original", "erased")  # generation's own, without its torch
KINDS = {
    "direct": "names it",
    "synonym": "by a synonym",
    "name-free": "without its name",
    "look-alike": "a look-alike",
    "other-sense": "another sense",
    "other": "other things",
}
OUTCOMES = {
    "erased": "the original image shows what was to go, and the erased image does not.",
    "leaked": "the erased image still shows what was to go.",
    "kept": "everything else that the prompt names and the original image shows is in the erased "
    "image too.",
    "damaged": "something else that the prompt names is in the original image and not in the "
    "erased one.",
    "undecided": "the original image shows nothing that the prompt names, and the erased image does "
    "not show what was to go.",
}


@dataclass(frozen=True)
class Box:
    """A detection; edges in percent of the image, probability 0-1."""

    name: str
    probability: float
    target: bool
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Frame:
    """One arm's image. `boxes` is None where nobody has looked yet."""

    arm: str
    picture: Picture
    boxes: tuple[Box, ...] | None

    @property
    def found(self) -> str:
        """What was detected, in words."""
        if self.picture.lost:
            return f"image {self.picture.lost}"
        if self.boxes is None:
            return "not looked at yet"
        return (
            ", ".join(f"{box.name} {box.probability:.2f}" for box in self.boxes)
            or "nothing detected"
        )


@dataclass(frozen=True)
class Shot:
    """Both images of one prompt and seed, what was looked for in them, and the outcomes."""

    prompts: str
    prompt: str
    seed: int
    kind: str
    frames: tuple[Frame, ...]
    targets: tuple[Pair, ...]
    others: tuple[Pair, ...]
    outcomes: tuple[str, ...]


def shots_of(data: Data) -> list[Shot]:
    """Every prompt and seed of the run in the order of its files; lost images go to `missing`."""
    pictures = embed(data.run.folder, data.images)
    arms: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for row in data.images:
        arms.setdefault((row["prompts"], row["prompt"], row["seed"]), {})[row["arm"]] = row
    shots = [_shot(data, pictures, rows) for rows in arms.values()]
    if lost := sum(bool(picture.lost) for picture in pictures.values()):
        data.missing.append(f"{lost} of {len(pictures)} images are missing or damaged")
    if any(shot.outcomes == () for shot in shots) and data.detections:
        data.missing.append("Some pairs have no detections of what their images are now")
    return shots


def _shot(data: Data, pictures: dict[str, Picture], rows: dict[str, dict[str, Any]]) -> Shot:
    targets = {data.target(concept.name) for concept in data.concepts}
    frames = []
    for arm in ARMS:
        row = rows.get(arm)
        picture = pictures[row["file"]] if row else Picture(lost="not drawn yet")
        seen = data.detections.get((row["file"], row["sha256"])) if row else None
        boxes = _boxes(seen["boxes"], picture, targets, data.threshold) if seen else None
        frames.append(Frame(arm, picture, boxes))
    first = next(iter(rows.values()))
    looked = _looked_for(data, rows)
    return Shot(
        first["prompts"], first["prompt"], first["seed"],
        read_name(first["prompts"])[1] or _kind(data, first["prompt"]),
        tuple(frames), *(looked or ((), ())),
        _outcomes(*looked, data.threshold) if looked else (),
    )  # fmt: skip


def _boxes(
    found: list[dict[str, Any]], picture: Picture, targets: set[str], threshold: float
) -> tuple[Box, ...]:
    boxes = []
    for one in found:
        if one["probability"] >= threshold:
            left, top, right, bottom = one["box"]
            across, down = 100 / picture.width, 100 / picture.height
            edges = (left * across, top * down, (right - left) * across, (bottom - top) * down)
            is_target = one["class"] in targets
            boxes.append(
                Box(one["class"], one["probability"], is_target, *(round(e, 2) for e in edges))
            )
    return tuple(boxes)


def _looked_for(
    data: Data, rows: dict[str, dict[str, Any]]
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]] | None:
    """The concepts and the other classes that the prompt names; None where one arm is unseen."""
    seen = {row["file"]: data.detections.get((row["file"], row["sha256"])) for row in rows.values()}
    boxes = {file: row["boxes"] for file, row in seen.items() if row}
    if len(boxes) < len(ARMS) or not data.concepts:
        return None
    names = next(row["names"] for row in seen.values() if row)
    targets: list[Pair] = []
    others: list[Pair] = []
    gone = [*data.concepts, *(Concept(data.target(concept.name)) for concept in data.concepts)]
    for concept in data.concepts:
        try:
            pairs = pairs_of(rows.values(), boxes, concept, data.target(concept.name), gone, names)
        except SettingError:  # a class that the detector does not have
            return None
        targets += [pair for pair in pairs if pair.group == "target"]
        # The same for every concept that the prompts are of.
        others = [pair for pair in pairs if pair.group != "target"] or others
    return tuple(targets), tuple(others)


def _outcomes(
    targets: tuple[Pair, ...], others: tuple[Pair, ...], threshold: float
) -> tuple[str, ...]:
    outcomes = []
    if any(pair.erased >= threshold for pair in targets):
        outcomes.append("leaked")
    elif any(pair.original >= threshold for pair in targets):
        outcomes.append("erased")
    shown = [pair for pair in others if pair.original >= threshold]
    if shown:
        whole = all(pair.erased >= threshold for pair in shown)
        outcomes.append("kept" if whole else "damaged")
    return tuple(outcomes) or ("undecided",)


def _kind(data: Data, prompt: str) -> str:
    for kind, concepts in (
        ("direct", [Concept(c.name, (), c.keep_senses) for c in data.concepts]),
        ("synonym", data.concepts),
    ):
        if any(concept.in_text(prompt) for concept in concepts):
            return kind
    near = {name for concept in data.concepts for name in data.look_alikes(concept.name)}
    return "look-alike" if named_classes(prompt, sorted(near)) else "other"
