"""The attacks by name, and their budgets from text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import SettingError

if TYPE_CHECKING:
    from .base import Attack

AttackName = Literal[
    "embeddings",
    "textual-inversion",
    "word-search",
    "sweep",
    "relearning",
    "unlearndiffatk",
    "ring-a-bell",
    "p4d",
]
"""An attack's file has its name, with underscores for hyphens, and defines one attack."""
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
MAX_BUDGET = 1_000_000
"""Upper bound of every budget."""


def attack_class(name: str) -> type[Attack]:
    """The class of an attack; its file, and with it PyTorch, is imported here."""
    from .base import Attack

    module = import_module(f"{__package__}.{name.replace('-', '_')}")
    [attack] = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Attack) and value is not Attack
    )
    return attack


def build_attacks(names: Sequence[str], budgets: Mapping[str, Any]) -> dict[str, Attack]:
    """The attacks with their budgets: `attack.budget`, or just the budget if there is one attack.

    Raises SettingError for an unknown budget, and for a value of another type or too small.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in budgets.items():
        prefix, dot, budget = key.rpartition(".")
        owner = next((n for n in names if n == prefix), None)
        if not dot and len(values) == 1:
            [owner] = values
        if owner is None:
            rule = f"needs attack.budget=value, with attack one of {', '.join(names)}"
            raise SettingError(rule, field="budgets", value=key)
        values[owner][budget] = _checked(owner, budget, value)
    return {name: attack_class(name)(**own) for name, own in values.items()}


def _checked(name: str, budget: str, value: Any) -> Any:
    """The value in the type of its field."""
    own = {field.name: field for field in fields(attack_class(name))}
    if budget not in own:
        near = get_close_matches(budget, own, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(own)}"
        raise SettingError(f"{name} has no such budget; {hint}", field="budgets", value=budget)

    def error(rule: str) -> SettingError:
        return SettingError(f"{rule}, got {value}", field="budgets", value=budget)

    default: Any = own[budget].default
    if isinstance(default, str):
        return str(value)
    several = isinstance(default, tuple)
    listed = str(value).split(",") if isinstance(value, str | int | float) else value
    kind = type(default[0] if several else default)
    try:
        numbers = [float(number) for number in listed]
    except (TypeError, ValueError):
        numbers = []
    whole = all(math.isfinite(x) and (kind is float or x == int(x)) for x in numbers)
    if not numbers or not whole or (not several and len(numbers) > 1):
        raise error(f"needs {'whole ' * (kind is int)}number{'s joined by commas' * several}")
    if len(set(numbers)) < len(numbers):
        raise error("needs different numbers")
    if max(numbers) > MAX_BUDGET:
        raise error(f"needs at most {MAX_BUDGET:,}")
    if min(numbers) < (minimum := own[budget].metadata.get("minimum", -math.inf)):
        raise error(f"needs at least {minimum}")
    return tuple(map(kind, numbers)) if several else kind(numbers[0])
