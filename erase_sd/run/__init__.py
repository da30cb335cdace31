"""The run folder: its lock, its stages, and typed records of everything in it."""

from .folder import RUNS, Run, run_folder

__all__ = ["RUNS", "Run", "run_folder"]
