"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

# Each registers its commands, in the order in which the help lists them.
from . import job as stages  # isort: split

from . import results as looks  # isort: split

from . import data as pairs  # isort: split

from . import research as measures  # isort: split

from .app import app, main

__all__ = ["app", "looks", "main", "measures", "pairs", "stages"]
