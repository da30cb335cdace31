"""Syntax trees by text: none is parsed twice, and those of many texts are kept in the cache folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checked import load_bytes, save_bytes
from ..errors import RunError
from ..files import cache_folder, key_of
from ..runtime import log

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, DocBin
    from spacy.vocab import Vocab

MIN_STORED = 256
"""Fewest texts parsed in one call that are worth a file."""
MAX_HELD = 200_000
"""Most syntax trees that a process holds, about 1 kB each; more begin anew."""
ATTRIBUTES = ("HEAD", "DEP", "TAG", "POS")

_held: dict[str, tuple[DocBin, int]] = {}
"""By text: the arrays of many trees, and the row of its own."""


def parsed(texts: Sequence[str], model: str, parser: Callable[[], Language]) -> Iterator[Doc]:
    """The syntax tree of each text, by the parser of the package `model`.

    A damaged file in the cache is replaced.
    """
    if len(_held) + len(texts) > MAX_HELD:
        _held.clear()
    missing = [text for text in dict.fromkeys(texts) if text not in _held]
    trees = _trees(missing, model, parser) if missing else None
    if trees:
        for string in trees.strings:
            _vocabulary().strings.add(string)
        _held.update({text: (trees, row) for row, text in enumerate(missing)})
    chosen = [_held[text] for text in texts]  # now: another call may begin anew
    return (_document(trees, row) for trees, row in chosen)


def _trees(texts: Sequence[str], model: str, parser: Callable[[], Language]) -> DocBin:
    """The trees of texts, in their order: from the cache, or parsed now."""
    from spacy.tokens import DocBin
    from spacy.util import get_package_version

    versions = [get_package_version(name) for name in (model, "spacy")]
    path = cache_folder() / "parses" / f"{key_of([model, versions, ATTRIBUTES, texts])}.spacy"
    if stored := _stored(path, len(texts)):
        return stored
    documents = parser().pipe(texts, batch_size=MIN_STORED)
    trees = DocBin(ATTRIBUTES, docs=documents)
    if len(texts) >= MIN_STORED:
        try:
            save_bytes(path, trees.to_bytes())
        except (OSError, RunError) as error:
            log.warning("%s: syntax trees are not cached (%s)", path, error)
    return trees


def _stored(path: Path, count: int) -> DocBin | None:
    """The trees in a file; None if there is none, or it is damaged."""
    from spacy.tokens import DocBin

    data = load_bytes(path) if count >= MIN_STORED else None
    return None if data is None else DocBin().from_bytes(data)


def _document(trees: DocBin, row: int) -> Doc:
    from spacy.tokens import Doc

    tokens, spaces = trees.tokens[row], trees.spaces[row]
    document = Doc(_vocabulary(), words=tokens[:, 0], spaces=spaces)
    return document.from_array(trees.attrs, tokens)


@functools.cache
def _vocabulary() -> Vocab:
    """English without the parser, which is not loaded where the cache has all trees."""
    import spacy

    vocabulary: Vocab = spacy.blank("en").vocab
    return vocabulary
