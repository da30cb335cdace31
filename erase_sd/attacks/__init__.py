"""Attacks on an erasure, one file each: a frozen dataclass of budgets whose `run` is the idea."""
