"""Probes of whole texts: prompts that an attack has found, and captions with words in the name's place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .base import Probe
from .target import Target
from .tokens import encode_rows, text_rows


def prompts_probe(target: Target, name: str, prompts: Sequence[str]) -> Probe:
    """A probe of prompts that are repeated in turn, one per image."""
    texts = [prompts[i % len(prompts)] for i in range(target.n)]
    return _texts_probe(target, name, texts, prompts)


def words_probe(target: Target, name: str, phrases: Sequence[Sequence[str]]) -> Probe:
    """The target's captions with words in the name's place; several phrases take turns."""
    found = [" ".join(phrase) for phrase in phrases]
    texts = [c.with_phrase(found[i % len(found)]) for i, c in enumerate(target.captions)]
    return _texts_probe(target, name, texts, found)


def _texts_probe(target: Target, name: str, texts: Sequence[str], found: Sequence[str]) -> Probe:
    """Both models read the texts."""
    rows = text_rows(target, texts)
    with torch.no_grad():
        return Probe(
            name=name,
            texts=tuple(texts),
            embeds=encode_rows(target, target.erased, rows),
            original=encode_rows(target, target.original, rows),
            found=tuple(found),
        )
