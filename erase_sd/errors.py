"""Every error a user can cause; each prints as one line.

EraseError
├── SettingError    a setting outside its allowed range or values
├── DataError       captions, images or prompts that cannot be used
├── ModelError      weights or an architecture that do not fit
├── RunError        a run folder that is missing, in use, damaged, or made with other settings
├── DivergedError   training diverged; the last good weights are kept
└── NotErasedError  unlearning ended, and the concept is still there; the run's files are kept

An error names the field it is about (`learning_rate`); the command line prints that field as its
option (`--learning-rate`).
"""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_type_hints


class EraseError(Exception):
    """Base class of all errors that the command line reports in one line, with exit status 1.

    `field` is the parameter at fault, `value` what was passed for it, `rule` what is wrong and what
    is allowed.
    """

    def __init__(self, rule: str, *, field: str | None = None, value: object = None) -> None:
        super().__init__(rule)
        self.rule, self.field, self.value = rule, field, value

    def __str__(self) -> str:
        return self.line(self.field)

    def line(self, name: str | None) -> str:
        """The message with the field called `name`: `learning_rate -1: needs a number above 0`."""
        if name is None:
            return self.rule
        value = "" if self.value is None else f" {self.value}"
        return f"{name}{value}: {self.rule}"


class SettingError(EraseError):
    """A setting is outside its allowed range or values."""


class DataError(EraseError):
    """Captions, images or prompts cannot be used."""


class ModelError(EraseError):
    """Weights are damaged, or an architecture does not fit."""


class RunError(EraseError):
    """A run folder is missing, in use, damaged, or was made with other settings."""


class DivergedError(EraseError):
    """Training diverged (NaN or infinite loss)."""


class NotErasedError(EraseError):
    """Unlearning ended, and the concept is still in the text encoder or in what the U-Net predicts; the
    run's files are kept."""


def check_numbers(settings: Any) -> None:
    """Raises SettingError for a field of a settings dataclass that is declared as a number or a truth
    value and holds anything else, such as 10.7 steps, or the text "no", which would count as true."""
    names = {bool: "True or False", int: "a whole number", float: "a number"}
    for field, hint in get_type_hints(type(settings)).items():
        kinds, value = set(get_args(hint) or (hint,)), getattr(settings, field)
        declared = kinds - {NoneType}
        if not declared <= names.keys() or (value is None and NoneType in kinds):
            continue
        accepted = (*declared, int) if float in declared else tuple(declared)
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in declared):
            needed = " or ".join(names[kind] for kind in names if kind in declared)
            raise SettingError(f"needs {needed}, got {value!r}", field=field)


def reason(error: BaseException) -> str:
    """First line of a library's error message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
