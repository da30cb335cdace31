"""Detection rates of a run's images, with intervals and exact tests."""
