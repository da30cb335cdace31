"""The child process of `parser`: the only one that imports spaCy."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..json_process import serve
from .tree import Parsed

if TYPE_CHECKING:
    from spacy.tokens import Doc

_UNUSED = ("ner", "lemmatizer", "senter")
_BATCH = 256  # texts
_UNUSED_PACKAGES = ("torch", "tensorflow", "cupy", "mxnet")
"""spaCy imports them if they are installed, for models that are not used here. That would take half a
gigabyte, and a second."""


def main() -> None:
    """Parses lists of texts with the model that it is started with; answers the fields of each `Parsed`."""
    for package in _UNUSED_PACKAGES:
        sys.modules[package] = None  # type: ignore[assignment]  # imports then fail
    serve(_parser)


def _parser(model: str) -> Callable[[Sequence[str]], object]:
    import spacy

    try:
        language = spacy.load(model, exclude=list(_UNUSED))
    except OSError:
        needed = model.replace("_", "-")
        raise ModelError(f"the English parser is missing; needs `pip install {needed}`") from None
    return lambda texts: [
        dataclasses.astuple(_plain(doc)) for doc in language.pipe(texts, batch_size=_BATCH)
    ]


def _plain(doc: Doc) -> Parsed:
    return Parsed(
        words=[token.text for token in doc],
        spaces=[bool(token.whitespace_) for token in doc],
        heads=[token.head.i for token in doc],
        tags=[token.tag_ for token in doc],
        pos=[token.pos_ for token in doc],
        labels=[token.dep_ for token in doc],
        noun_phrases=[(part.start, part.end, part.root.i) for part in doc.noun_chunks],
    )
