"""Image pairs, original and erased, of one prompt and seed: what each shows, and the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.pair import CaptionPair
from ..errors import SettingError
from ..run.measurements import Detection
from ..run.records import ImageRecord, Variant
from ..scoring.matching import Match, match_images
from .data import SHOWN_VARIANTS, ReportData
from .pictures import Picture, embed_images

KIND_LABELS = {
    "named": "names the concept",
    "synonym": "synonym",
    "name-free": "description without the name",
    "look-alike": "look-alike",
    "other-sense": "another sense",
    "other": "other objects",
}
OUTCOMES = {
    "erased": "the original image shows the concept, and the erased image does not.",
    "leaked": "the erased image still shows the concept.",
    "retained": "every other object that the prompt names and the original image shows is in the "
    "erased image too.",
    "damaged": "another object that the prompt names is in the original image but not in the erased "
    "one.",
    "undecided": "the original image shows nothing that the prompt names, and the erased image does "
    "not show the concept.",
}


@dataclass(frozen=True)
class BoxOverlay:
    """A detection with its edges in percent of the image."""

    name: str
    probability: float
    is_concept: bool
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class AnnotatedImage:
    """One variant's image with its boxes, which are None until the image is scored."""

    variant: Variant
    picture: Picture
    boxes: tuple[BoxOverlay, ...] | None

    @property
    def detected(self) -> str:
        """The detections in words."""
        if self.picture.problem:
            return f"image {self.picture.problem}"
        if self.boxes is None:
            return "not scored yet"
        names = ", ".join(f"{box.name} {box.probability:.2f}" for box in self.boxes)
        return names or "nothing detected"


@dataclass(frozen=True)
class ImagePair:
    """Both images of one prompt and seed, the classes they were searched for, and the outcomes."""

    prompt_file: str
    prompt: str
    seed: int
    kind: str
    """A key of `KIND_LABELS`."""
    images: tuple[AnnotatedImage, ...]
    targets: tuple[Match, ...]
    others: tuple[Match, ...]
    outcomes: tuple[str, ...]
    concept: str | None = None
    """The erased concept that the prompt names, or that its kind belongs to; the first of several."""


def image_pairs_of(data: ReportData) -> list[ImagePair]:
    """Every prompt and seed of the run in file order; images with a problem are counted in `missing`."""
    pictures = embed_images(data.run.folder, data.images)
    variants: dict[tuple[str, str, int], dict[Variant, ImageRecord]] = {}
    for image in data.images:
        variants.setdefault(image.key, {})[image.variant] = image
    pairs = [_image_pair(data, pictures, records) for records in variants.values()]
    if problems := sum(bool(picture.problem) for picture in pictures.values()):
        data.missing.append(f"{problems} of {len(pictures)} images are missing or damaged")
    if data.detections and not all(pair.outcomes for pair in pairs):
        data.missing.append("Some images have changed since they were scored; score again")
    return pairs


def _image_pair(
    data: ReportData, pictures: dict[str, Picture], records: dict[Variant, ImageRecord]
) -> ImagePair:
    classes = {data.detector_class(concept.name) for concept in data.concepts}
    images = []
    for variant in SHOWN_VARIANTS:
        record = records.get(variant)
        picture = pictures[record.file] if record else Picture(problem="not generated yet")
        row = data.detections.get((record.file, record.sha256)) if record else None
        boxes = _overlays(row.detections, picture, classes, data.threshold) if row else None
        images.append(AnnotatedImage(variant, picture, boxes))
    first = next(iter(records.values()))
    matches = _matches(data, records)
    targets, others = matches or ((), ())
    return ImagePair(
        first.prompt_file, first.prompt, first.seed, _kind(data, first.pair, others),
        tuple(images), targets, others,
        _outcomes(targets, others, data.threshold) if matches else (),
        next(iter(first.pair.mentions), first.pair.concept),
    )  # fmt: skip


def _overlays(
    detections: Sequence[Detection], picture: Picture, classes: set[str], threshold: float
) -> tuple[BoxOverlay, ...]:
    overlays = []
    for one in detections:
        if one.probability >= threshold:
            left, top, right, bottom = one.box
            x, y = 100 / picture.width, 100 / picture.height
            edges = (left * x, top * y, (right - left) * x, (bottom - top) * y)
            percent = (round(edge, 2) for edge in edges)
            overlays.append(BoxOverlay(one.name, one.probability, one.name in classes, *percent))
    return tuple(overlays)


def _matches(
    data: ReportData, records: dict[Variant, ImageRecord]
) -> tuple[tuple[Match, ...], tuple[Match, ...]] | None:
    """Matches of the concepts, and of the other classes that the prompt names; None until both images
    are scored."""
    rows = [data.detections.get((image.file, image.sha256)) for image in records.values()]
    scored = [row for row in rows if row]
    if len(scored) < len(SHOWN_VARIANTS) or not data.concepts:
        return None
    detections = {row.file: row.detections for row in scored}
    classes = {concept.name: data.detector_class(concept.name) for concept in data.concepts}
    targets: list[Match] = []
    others: list[Match] = []
    for concept in classes:
        try:
            matches = match_images(
                records.values(), detections, concept, classes, scored[0].names, data.concepts
            )
        except SettingError:  # the detector lacks the class
            return None
        targets += [match for match in matches if match.group == "target"]
        # The same for every concept that the prompt belongs to.
        others = [match for match in matches if match.group != "target"] or others
    return tuple(targets), tuple(others)


def _outcomes(
    targets: Sequence[Match], others: Sequence[Match], threshold: float
) -> tuple[str, ...]:
    outcomes = []
    if any(match.erased >= threshold for match in targets):
        outcomes.append("leaked")
    elif any(match.original >= threshold for match in targets):
        outcomes.append("erased")
    present = [match for match in others if match.original >= threshold]
    if present:
        intact = all(match.erased >= threshold for match in present)
        outcomes.append("retained" if intact else "damaged")
    return tuple(outcomes) or ("undecided",)


def _kind(data: ReportData, pair: CaptionPair, others: Sequence[Match]) -> str:
    if pair.kind != "plain":
        return pair.kind
    if pair.mentions:
        return "named"
    similar = {name for concept in data.concepts for name in data.look_alikes(concept.name)}
    return "look-alike" if any(match.class_name in similar for match in others) else "other"
