"""The `erase-sd` program: parses options, calls the library, prints the results."""

from .app import app, main

__all__ = ["app", "main"]
