"""Every error a user can cause, one line each.

EraseError
├── SettingError    an option outside what is allowed
├── DataError       captions, images or prompts that cannot be used
├── ModelError      weights or an architecture that do not fit
├── RunError        a run folder that is missing, busy, damaged or of other settings
└── DivergedError   unlearning left the finite numbers; the last good weights are kept
"""

from __future__ import annotations


class EraseError(Exception):
    """Base of all errors that the command line reports in one line, with exit status 1."""


class SettingError(EraseError):
    """An option is outside what is allowed."""


class DataError(EraseError):
    """Captions, images or prompts cannot be used."""


class ModelError(EraseError):
    """Weights are damaged, or an architecture does not fit."""


class RunError(EraseError):
    """A run folder is missing, busy, damaged, or was made with other settings."""


class DivergedError(EraseError):
    """Unlearning left the finite numbers."""


def reason(error: BaseException) -> str:
    """The first line of what a library's error says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
