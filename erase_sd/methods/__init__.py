"""Unlearning methods, one file each: a frozen dataclass whose `loss` is the idea."""
