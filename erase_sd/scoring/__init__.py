"""Detection rates of a run, with intervals and tests."""
