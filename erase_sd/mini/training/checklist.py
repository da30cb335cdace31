"""A list of measures, each with the value that it has to reach."""

from __future__ import annotations

from ...scoring.stats import wilson


class Checklist:
    """Prints a line per measure and remembers which ones failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def rate(self, title: str, hits: int, n: int, least: float | None = None) -> None:
        """Adds a rate with its 95 % Wilson interval, and optionally its least allowed value."""
        low, high = wilson(hits, n)
        self.measure(title, hits / n, f"[{low:.3f}, {high:.3f}] n={n}", least=least)

    def measure(
        self,
        title: str,
        value: float,
        note: str,
        *,
        least: float | None = None,
        most: float | None = None,
    ) -> None:
        """Adds any measure, optionally with its least or most allowed value."""
        passed = (least is None or value >= least) and (most is None or value <= most)
        bound = f">= {least}" if least is not None else f"<= {most}" if most is not None else ""
        verdict = "" if not bound else "ok" if passed else "FAILED"
        if not passed:
            self.failed.append(title)
        print(f"{title:<52} {value:7.3f} {bound:>8} {verdict:<6} {note}", flush=True)
