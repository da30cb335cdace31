"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

# Each registers its commands, in the order in which the help lists them.
from . import stages  # isort: split

from . import looks  # isort: split

from . import pairs  # isort: split

from . import measures  # isort: split

from .app import app, main

__all__ = ["app", "looks", "main", "measures", "pairs", "stages"]
