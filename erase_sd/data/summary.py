"""What a Flickr30K folder holds of a concept, before anything is unlearned from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .concept import Concept
from .flickr30k import Captioned, Dataset
from .split import PARTS, Part, split

EXAMPLES = 3


@dataclass(frozen=True)
class Side:
    """Images of one side, by part; those of them whose file is there; and a few captions."""

    images: dict[Part, int]
    images_there: dict[Part, int]
    split: str
    examples: list[str]


@dataclass(frozen=True)
class Summary:
    """Counts of a folder's captions and images. Lengths are in tokens, start and end included."""

    folder: str
    file: str
    format: str
    digest: str
    concepts: list[str]
    images: int
    captions: int
    mentions: int
    missing_images: int
    first_missing: str | None
    shortest: int
    median: float
    longest: int
    room: int
    too_long: int
    forget: Side
    retain: Side


def summarize(
    data: Dataset,
    concepts: Sequence[Concept],
    lengths: Callable[[list[str]], list[int]],
    room: int,
) -> Summary:
    """Counts `data`; `lengths` gives captions' tokens, `room` is the most that the model takes.

    Raises DataError where the concepts leave nothing to forget or to retain.
    """
    sides = split(data.items, concepts)
    texts = [caption for item in data.items for caption in item.captions]
    tokens = lengths(texts)
    return Summary(
        folder=str(data.folder),
        file=data.source.relative_to(data.folder).as_posix(),
        format=data.format,
        digest=data.digest,
        concepts=[concept.name for concept in concepts],
        images=len(data.items),
        captions=len(texts),
        mentions=sum(any(c.in_text(text) for c in concepts) for text in texts),
        missing_images=len(data.missing),
        first_missing=data.missing[0] if data.missing else None,
        shortest=min(tokens),
        median=statistics.median(tokens),
        longest=max(tokens),
        room=room,
        too_long=sum(length > room for length in tokens),
        forget=_side(data, sides.forget, concepts),
        retain=_side(data, sides.retain, ()),
    )


def _side(
    data: Dataset,
    parts: dict[Part, tuple[Captioned, ...]],
    concepts: Sequence[Concept],
) -> Side:
    """A side's counts; its examples mention one of `concepts`, where there are any."""
    own = all(item.part == part for part in PARTS for item in parts[part])
    return Side(
        images={part: len(parts[part]) for part in PARTS},
        images_there={part: sum(i.image in data.files for i in parts[part]) for part in PARTS},
        split="the dataset's own" if own else "ours",
        examples=[
            next(t for t in item.captions if not concepts or any(c.in_text(t) for c in concepts))
            for item in parts["train"][:EXAMPLES]
        ],
    )


def cells(summary: Summary) -> list[tuple[str, str]]:
    """A line for each thing that a person would ask: what, and how much."""
    s = summary
    there = f"{s.images - s.missing_images:,} of {s.images:,}"
    if s.first_missing:
        there += f"; {s.missing_images:,} missing, first {s.first_missing}"
    lines = [
        ("captions in", f"{s.file} ({s.format})"),
        ("captions", f"{s.captions:,} of {s.images:,} images"),
        ("images there", there),
        ("tokens a caption", f"{s.shortest} to {s.longest}, median {s.median:g}"),
        ("longer than the model", f"{s.too_long:,} captions have more than {s.room} tokens"),
        ("mentions", f"{s.mentions:,} captions mention {' or '.join(s.concepts)}"),
    ]
    for title, side in (("forget", s.forget), ("retain", s.retain)):
        counts = ", ".join(f"{count:,} {part}" for part, count in side.images.items())
        lines.append((f"{title} images", f"{sum(side.images.values()):,}: {counts}; {side.split}"))
        if s.missing_images:
            present = ", ".join(f"{count:,} {part}" for part, count in side.images_there.items())
            lines.append(("  of them there", f"{sum(side.images_there.values()):,}: {present}"))
    for title, side in (("forget", s.forget), ("retain", s.retain)):
        lines += [(f"{title}, for example", example) for example in side.examples]
    return lines
