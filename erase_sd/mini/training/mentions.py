"""Mined mentions against the grammar of the miniature world, on captions of the validation images.

`python -m erase_sd.mini.training.mentions` prints, for each threshold, how many of the captions that call a
concept otherwise have a mined mention, and how many of those without the concept have one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from unittest.mock import patch

from ...data.concept import Concept
from ...data.dataset import CaptionedImage
from ...data.flickr30k import read_flickr30k
from ...data.split import split_by_concept
from ...models.clip import Clip
from ...models.presets import resolve
from ...models.text_encoder import load_clip
from ...unlearning import mentions
from ..captions import NAME_FREE_WORDINGS, SYNONYM_WORDINGS

CONCEPTS = (
    "apple", "bicycle", "chair", "elephant", "banana", "car", "couch", "cow", "cup", "dog", "kite",
    "motorcycle", "orange", "umbrella",
)  # fmt: skip
"""Things with one COCO class and wordings of their own."""
SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)


def worded_otherwise(concept: str, caption: str) -> bool:
    """Whether a caption has one of the grammar's other wordings for a concept."""
    wordings = (*SYNONYM_WORDINGS.get(concept, ()), *NAME_FREE_WORDINGS.get(concept, ()))
    patterns = (rf"\b{wording.format(chr(92) + 'w+')}\b" for wording in wordings)
    return any(re.search(pattern, caption.lower()) for pattern in patterns)


def measured(
    clip: Clip, items: Sequence[CaptionedImage], concept: str
) -> tuple[list[bool], list[bool]]:
    """For each validation caption that does not name the concept whether it has a mined mention: those
    that call it otherwise, and those without it."""
    sets = split_by_concept(items, [Concept(concept)])
    mined = mentions.mine_mentions(clip, sets, [Concept(concept)])
    [more] = mentions.with_mentions([Concept(concept)], mined)
    found: tuple[list[bool], list[bool]] = [], []
    for pair in (*sets.pairs("forget", "validation"), *sets.pairs("retain", "validation")):
        if not pair.mentions:
            own = found[0] if worded_otherwise(concept, pair.caption) else found[1]
            own.append(more.in_text(pair.caption))
    return found


def main() -> None:
    """Prints the table, a row for each threshold; there are no options but `--help`."""
    argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.mentions", description=__doc__
    ).parse_args()
    models = resolve("mini", None, None, None)
    clip, items = load_clip(models.clip_folder(0)), read_flickr30k(models.pairs()).items
    print("| SHARE | called otherwise, mined % | without the concept, mined % | worst concept |")
    print("|--:|--:|--:|---|")
    for share in SHARES:
        with patch.object(mentions, "SHARE", share):
            rows = {concept: measured(clip, items, concept) for concept in CONCEPTS}
        otherwise = [hit for own, _ in rows.values() for hit in own]
        without = [hit for _, own in rows.values() for hit in own]
        worst = min(rows, key=lambda c: sum(rows[c][0]) / len(rows[c][0]) - sum(rows[c][1]))
        rates = (100 * sum(hits) / len(hits) for hits in (otherwise, without))
        print(f"| {share:.1f} | " + " | ".join(f"{rate:.2f}" for rate in rates) + f" | {worst} |")


if __name__ == "__main__":
    main()
