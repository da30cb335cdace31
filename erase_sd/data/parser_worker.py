"""The child process of `parser`: the only one that imports spaCy.

Answers each line of standard input, a JSON list of texts, with a line of standard output: their `Parsed`
as JSON lists, or what is missing as a JSON string.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from .tree import Parsed

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

_UNUSED = ("ner", "lemmatizer", "senter")
_BATCH = 256  # texts
_UNUSED_PACKAGES = ("torch", "tensorflow", "cupy", "mxnet")
"""spaCy imports them if they are installed, for models that are not used here: half a gigabyte, and a
second."""


def main() -> None:
    """Answers by the model that the only argument names, until standard input ends."""
    (model,) = sys.argv[1:]
    for package in _UNUSED_PACKAGES:
        sys.modules[package] = None  # type: ignore[assignment]  # imports then fail
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the parent too
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints
    try:
        language = _load(model)
    except OSError:
        answers.write(json.dumps(f"needs `pip install {model.replace('_', '-')}`") + "\n")
        return
    for line in sys.stdin.buffer:
        documents = language.pipe(json.loads(line), batch_size=_BATCH)
        answers.write(json.dumps([dataclasses.astuple(_plain(doc)) for doc in documents]) + "\n")
        answers.flush()


def _load(model: str) -> Language:
    import spacy

    return spacy.load(model, exclude=list(_UNUSED))


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
