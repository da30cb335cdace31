"""English nouns: their plurals and singulars, and the words under which a person looks for one."""

from __future__ import annotations

import functools
from types import ModuleType
from unittest.mock import patch

import typeguard

_ONLY_PLURAL = frozenset((
    "binoculars", "boxers", "clothes", "forceps", "glasses", "goggles", "headphones", "jeans",
    "leggings", "overalls", "pants", "pliers", "pyjamas", "pajamas", "scales", "scissors", "shorts",
    "spectacles", "sunglasses", "suspenders", "tights", "tongs", "trousers", "trunks", "tweezers",
))  # fmt: skip
"""Summation plurals, which have no singular of the same meaning (Quirk et al. 1985, 5.76): "glasses"
does not mean a glass."""
_SINGULAR_IN_S = frozenset((
    "atlas", "basis", "canvas", "christmas", "gas", "iris", "lens", "news", "oasis", "pelvis",
    "series", "species", "tennis",
))  # fmt: skip
"""Singulars that look like plurals, beside those in -ss and -us."""
_PLURAL_IN_US = frozenset((
    "bayous", "emus", "gnus", "gurus", "menus", "tofus", "tutus",
))  # fmt: skip


@functools.cache
def inflect_module() -> ModuleType:
    """inflect without the run-time checks of its arguments' types, which take two seconds to set up."""
    with patch.object(typeguard, "typechecked", lambda function: function):
        import inflect
    return inflect


@functools.cache
def plurals_of(noun: str) -> tuple[str, ...]:
    """English plurals of a noun phrase, the usual one first, then the classical one if it differs:
    `orange` -> `oranges`; `person` -> `people`, `persons`."""
    inflect = inflect_module()
    usual, classical = inflect.engine(), inflect.engine()
    classical.classical(all=True)
    return tuple(dict.fromkeys(engine.plural_noun(noun) or noun for engine in (usual, classical)))


@functools.cache
def forms_of(noun: str) -> tuple[str, ...]:
    """A noun phrase in singular and plural, whichever of them is given: `apples` -> `apple`, `apples`;
    `glasses` -> `glasses`."""
    last = noun.lower().split()[-1] if noun.split() else noun
    if last in _ONLY_PLURAL:
        return (noun,)
    singular = _singular_of(noun)
    return tuple(dict.fromkeys((noun, singular, *plurals_of(singular))))


def _singular_of(noun: str) -> str:
    """The singular of a plural; any other noun as it is."""
    last = noun.lower().split()[-1] if noun.split() else noun
    in_us = last.endswith("us") and last not in _PLURAL_IN_US
    if last in _SINGULAR_IN_S or last.endswith("ss") or in_us:
        return noun
    singular = inflect_module().engine().singular_noun(noun)
    return singular if singular and noun in plurals_of(singular) else noun
