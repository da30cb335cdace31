"""What a folder of caption pairs holds about a concept, before anything is unlearned."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .concept import Concept
from .dataset import Dataset
from .pair import SPLITS, ConceptSet, Split
from .removal import remove_concepts_from
from .split import ConceptSets, hash_order, split_by_concept

EXAMPLES = 3
REDUCTION_EXAMPLES = 20


@dataclass(frozen=True)
class SetSummary:
    """Images of the forget or the retain set."""

    images: dict[Split, int]
    """Images by split."""
    images_present: dict[Split, int]
    """Those whose file exists."""
    own_split: bool
    """Whether the set follows the dataset's own split rather than that of erase-sd."""
    examples: list[str]
    """A few training captions."""


@dataclass(frozen=True)
class ReductionSummary:
    """The captions that mention a concept, with the concept removed."""

    captions: int
    unreduced: list[str]
    """Captions that still mention a concept after the removal; unlearning leaves them out."""
    empty: int
    """Captions of which the removal leaves nothing."""
    seconds: float
    examples: list[tuple[str, str]]
    """Some captions of different images, with and without the concept."""


@dataclass(frozen=True)
class DatasetSummary:
    """Counts of a folder's captions and images. Lengths are in tokens, with start and end tokens."""

    folder: str
    file: str
    format: str
    digest: str
    concepts: list[str]
    images: int
    captions: int
    mentions: int
    """Captions that mention a concept."""
    missing_images: int
    first_missing: str | None
    shortest: int
    median: float
    longest: int
    context_length: int
    """Maximum number of tokens that the model reads."""
    too_long: int
    """Captions with more tokens than that."""
    forget: SetSummary
    retain: SetSummary
    reductions: ReductionSummary


def summarize(
    data: Dataset,
    concepts: Sequence[Concept],
    token_counts: Callable[[list[str]], list[int]],
    context_length: int,
) -> DatasetSummary:
    """Counts what `data` holds; `token_counts` gives the number of tokens of each caption.

    Raises DataError if the concepts leave the forget or the retain set without images.
    """
    sets = split_by_concept(data.items, concepts)
    texts = [caption for item in data.items for caption in item.captions]
    tokens = token_counts(texts)
    return DatasetSummary(
        folder=str(data.folder),
        file=data.source.relative_to(data.folder).as_posix(),
        format=data.format,
        digest=data.digest,
        concepts=[concept.name for concept in concepts],
        images=len(data.items),
        captions=len(texts),
        mentions=sum(bool(names) for captions in sets.mentions.values() for names in captions),
        missing_images=len(data.missing),
        first_missing=data.missing[0] if data.missing else None,
        shortest=min(tokens),
        median=statistics.median(tokens),
        longest=max(tokens),
        context_length=context_length,
        too_long=sum(count > context_length for count in tokens),
        forget=_summarize_set(data, sets, "forget"),
        retain=_summarize_set(data, sets, "retain"),
        reductions=_summarize_reductions(data, sets, concepts),
    )


def _summarize_reductions(
    data: Dataset, sets: ConceptSets, concepts: Sequence[Concept]
) -> ReductionSummary:
    by_image = [
        [c for c, names in zip(item.captions, sets.mentions[item.image], strict=True) if names]
        for item in hash_order(data.items)
    ]
    began = time.monotonic()
    captions = [caption for own in by_image for caption in own]
    reduced = [text for text, _ in remove_concepts_from(captions, concepts)]
    seconds = time.monotonic() - began
    pairs = dict(zip(captions, reduced, strict=True))
    examples = [(own[0], pairs[own[0]]) for own in by_image if own]
    return ReductionSummary(
        captions=len(captions),
        unreduced=[c for c, text in pairs.items() if any(k.in_text(text) for k in concepts)],
        empty=sum(not text for text in reduced),
        seconds=round(seconds, 1),
        examples=examples[:REDUCTION_EXAMPLES],
    )


def _summarize_set(data: Dataset, sets: ConceptSets, concept_set: ConceptSet) -> SetSummary:
    by_split = {split: sets.images(concept_set, split) for split in SPLITS}
    examples: dict[str, str] = {}
    for pair in sets.pairs(concept_set, "train"):
        if pair.image and (pair.mentions or concept_set == "retain"):
            examples.setdefault(pair.image, pair.caption)
    return SetSummary(
        images={split: len(items) for split, items in by_split.items()},
        images_present={s: sum(i.image in data.files for i in by_split[s]) for s in SPLITS},
        own_split=all(item.split == split for split in SPLITS for item in by_split[split]),
        examples=list(examples.values())[:EXAMPLES],
    )


def summary_lines(summary: DatasetSummary) -> list[tuple[str, str]]:
    """The summary as lines of a table: name and value."""
    s = summary
    present = f"{s.images - s.missing_images:,} of {s.images:,}"
    if s.first_missing:
        present += f"; {s.missing_images:,} missing, first {s.first_missing}"
    lines = [
        ("caption file", f"{s.file} ({s.format})"),
        ("captions", f"{s.captions:,} of {s.images:,} images"),
        ("image files", present),
        ("tokens per caption", f"{s.shortest} to {s.longest}, median {s.median:g}"),
        (
            "over the context length",
            f"{s.too_long:,} captions have more than {s.context_length} tokens",
        ),
        ("mentions", f"{s.mentions:,} captions mention {' or '.join(s.concepts)}"),
    ]
    sets = (("forget", s.forget), ("retain", s.retain))
    for title, images in sets:
        split = "the dataset's own split" if images.own_split else "split by erase-sd"
        lines.append((f"{title} images", f"{_counts(images.images)}; {split}"))
        if s.missing_images:
            lines.append(("  with a file", _counts(images.images_present)))
    lines += [(f"{title} example", text) for title, images in sets for text in images.examples]
    return lines + _reduction_lines(s.reductions)


def _reduction_lines(r: ReductionSummary) -> list[tuple[str, str]]:
    counts = f"{r.captions:,} captions in {r.seconds:.1f} s; {r.empty:,} have nothing left; "
    lines = [("concept removed", f"{counts}{len(r.unreduced):,} still mention it")]
    lines += [("  still mentions it", caption) for caption in r.unreduced[:EXAMPLES]]
    return lines + [("  example", f"{a} -> {b or '(empty)'}") for a, b in r.examples]


def _counts(images: dict[Split, int]) -> str:
    by_split = ", ".join(f"{count:,} {split}" for split, count in images.items())
    return f"{sum(images.values()):,}: {by_split}"
