"""The comparison's tables, against means, spreads and ties worked out by hand."""

from __future__ import annotations

import pytest

from erase_sd.comparison.markdown import tables_markdown
from erase_sd.comparison.rows import (
    DIVERGED,
    FAILED,
    CellMeasure,
    Group,
    SeedMean,
    mean_over_seeds,
    original_rows,
)
from erase_sd.comparison.tables import Table, tables
from erase_sd.run.records import Variant


def row(
    method: str,
    value: float | None,
    group: Group | None = "target",
    variant: Variant | None = "erased",
    concept: str = "apple",
    seed: int = 0,
    measure: str = "detection_rate",
    n: int | None = 100,
    overrides: str = "",
    reason: str = "",
) -> CellMeasure:
    return CellMeasure(
        concepts=tuple(concept.split("+")), method=method, overrides=overrides, seed=seed, measure=measure,
        group=group, variant=variant, value=value, n=n, reason=reason,
    )  # fmt: skip


def lines_of(table: Table) -> dict[str, list[str]]:
    """Texts of the number columns, bold ones in asterisks, by the text columns."""
    return {
        " ".join(cell.text for cell in line[: table.text_columns]): [
            f"**{cell.text}**" if cell.bold else cell.text for cell in line[table.text_columns :]
        ]
        for line in table.lines
    }


def titled(rows: list[CellMeasure], words: str) -> Table:
    [match] = [table for table in tables(rows) if words in table.title]
    return match


def test_the_mean_is_over_the_seeds_means_and_the_spread_over_seeds() -> None:
    rows = [
        row("ga", 0.1, concept="apple", seed=0), row("ga", 0.3, concept="chair", seed=0),
        row("ga", 0.2, concept="apple", seed=1), row("ga", 0.6, concept="chair", seed=1),
    ]  # fmt: skip
    mean = mean_over_seeds(rows)  # seeds 0.2 and 0.4: mean 0.3, sample deviation 0.2 / sqrt(2)
    assert mean == SeedMean(pytest.approx(0.3), pytest.approx(0.141421, abs=1e-6), 200)
    assert mean_over_seeds(rows[:2]) == SeedMean(pytest.approx(0.2), None, 200)
    assert mean_over_seeds([row("ga", None)]) is None
    assert lines_of(titled(rows, "Detection"))["ga"] == [
        "15.0 ± 7.1", "45.0 ± 21.2", "30.0 ± 14.1", "4",
    ]  # fmt: skip


def test_the_lowest_value_and_all_whose_interval_overlaps_its_are_bold() -> None:
    # Wilson: 0 of 100 is 0 to 0.037; 5 of 100 is 0.022 to 0.112; 12 of 100 is 0.070 to 0.198.
    rows = [row("ga", 0.0), row("npo", 0.05), row("kl", 0.12), row("ga", 0.9, variant="original")]
    assert lines_of(titled(rows, "Detection")) == {
        "original": ["90.0", ""],
        "ga": ["**0.0**", "1"], "npo": ["**5.0**", "1"], "kl": ["12.0", "1"],
    }  # fmt: skip
    assert not [table for table in tables(rows) if table.title == "Under attack"]


def test_repeating_the_same_prompts_with_another_seed_breaks_no_tie() -> None:
    # 0 and 5 of 100 tie, and still do if two seeds count the same 100 prompts.
    rows = [row(m, v, seed=seed) for m, v in (("ga", 0.0), ("npo", 0.05)) for seed in (0, 1)]
    lines = lines_of(titled(rows, "Detection"))
    assert (lines["ga"][0], lines["npo"][0]) == ("**0.0 ± 0.0**", "**5.0 ± 0.0**")


def test_prompts_shared_by_all_concepts_count_once() -> None:
    rows = [
        row("ga", 0.9, group, concept=concept, seed=seed, n=50 - (concept == "chair"))
        for group in ("target", "retained_other")
        for concept in ("apple", "chair", "cow")
        for seed in (0, 1)
    ]
    means = [
        mean_over_seeds(r for r in rows if r.group == group)
        for group in ("target", "retained_other")
    ]
    assert [mean.n for mean in means if mean] == [149, 50]


def test_measures_that_count_classes_have_no_bold_value() -> None:
    rows = [
        row(m, v, "forget", measure="zero_shot_retrieval", n=4)
        for m, v in (("ga", 0.0), ("kl", 1.0))
    ]
    assert lines_of(titled(rows, "Zero-shot")) == {"ga": ["0.0", "1"], "kl": ["100.0", "1"]}


def test_the_best_retained_value_is_the_closest_to_the_original_not_the_highest() -> None:
    rows = [
        row("ga", 0.73, "retain", "original", measure="zero_shot_prediction"),
        row("ga", 0.72, "retain", measure="zero_shot_prediction"),
        row("tuned", 0.91, "retain", measure="zero_shot_prediction"),
        row("kl", 0.40, "retain", measure="zero_shot_prediction"),
        row("kl", 0.10, "forget", measure="zero_shot_prediction"),
    ]
    assert lines_of(titled(rows, "Zero-shot")) == {
        "original": ["-", "73.0", ""], "ga": ["-", "**72.0**", "1"], "tuned": ["-", "91.0", "1"],
        "kl": ["10.0", "40.0", "1"],
    }  # fmt: skip


def test_a_single_spec_or_a_retained_rate_without_the_originals_is_never_bold() -> None:
    assert lines_of(titled([row("ga", 0.0)], "Detection"))["ga"] == ["0.0", "1"]
    rows = [row("ga", 0.5, "retained_same"), row("kl", 0.9, "retained_same")]
    lines = lines_of(titled(rows, "Detection"))
    assert (lines["ga"][0], lines["kl"][0]) == ("50.0", "90.0")


def test_the_originals_values_count_once_although_every_spec_repeats_them() -> None:
    rows = [row(m, 0.8, variant="original", seed=s) for m in ("ga", "kl") for s in (0, 1)]
    assert len(original_rows(rows)) == 2


def test_a_failed_cell_is_missing_from_the_count_of_runs_and_listed_with_its_reason() -> None:
    rows = [row("ga", 0.0), row("ga", 0.1, seed=1), row("kl", 0.5)]
    rows.append(row("kl", None, None, None, seed=1, measure=FAILED, n=None, reason="no | luck"))
    lines = lines_of(titled(rows, "Detection"))
    assert (lines["ga"][-1], lines["kl"][-1]) == ("2", "1 of 2")
    text = tables_markdown(tables(rows), rows)
    assert r"| apple | kl | 1 | no \| luck |" in text
    assert "| ga | **5.0 ± 7.1** | 2 |" in text
    alone = rows[-1:]
    assert tables(alone) == [] and "no \\| luck" in tables_markdown([], alone)


def test_settings_of_one_method_have_a_table_of_their_own() -> None:
    rows = [
        row("cliperase", 0.1),
        row("cliperase", 0.6, overrides="consistency=embedding"),
        row("ga", 0.0),
    ]
    [table] = [table for table in tables(rows) if "effect of its settings" in table.title]
    assert table.title.startswith("cliperase:")
    assert list(lines_of(table)) == ["cliperase", "cliperase:consistency=embedding"]


def test_the_harmonic_mean_is_over_the_erased_and_the_retained_share() -> None:
    def measured(overrides: str, *after: float) -> list[CellMeasure]:
        groups = zip(("target", "retained_same", "retained_other"), (0.8, 0.5, 1.0), strict=True)
        return [
            row("ga", value, group, variant, overrides=overrides)
            for (group, before), now in zip(groups, after, strict=True)
            for variant, value in (("original", before), ("erased", now))
        ]

    # Erased 0.5 and retained (1 + 0.8) / 2, so 0.9 / 1.4; erased all, retained half; erased nothing;
    # erased nothing and retained nothing; both half.
    rows = [
        *measured("", 0.4, 0.6, 0.8),
        *measured("learning_rate=0.1", 0.0, 0.0, 1.0),
        *measured("learning_rate=1", 0.9, 0.5, 1),
        *measured("learning_rate=2", 0.8, 0.0, 0.0),
        *measured("learning_rate=3", 0.4, 0.0, 1.0),
    ]
    table = titled(rows, "Detection")
    assert table.headings[-2] == "harmonic mean"
    assert {name: line[-2] for name, line in lines_of(table).items()} == {
        "original": "", "ga": "64.3", "ga:learning_rate=0.1": "66.7", "ga:learning_rate=1": "0.0",
        "ga:learning_rate=2": "0.0", "ga:learning_rate=3": "50.0",
    }  # fmt: skip


def test_runs_of_several_concepts_appear_only_in_their_own_table() -> None:
    rows = [
        row("ga", 0.8, concept="apple+chair"),
        row("ga", 0.1),
        row("kl", 0.3),
    ]
    assert lines_of(titled(rows, "Detection"))["ga"] == ["**10.0**", "1"]
    table = titled(rows, "Several concepts")
    assert table.headings == ("concepts", "method", "target", "runs")
    lines = lines_of(table)
    assert lines == {"1 ga": ["10.0", "1"], "2 ga": ["80.0", "1"]} and next(iter(lines)) == "1 ga"


def test_a_grid_with_only_several_concepts_per_run_fills_the_tables() -> None:
    rows = [row("ga", 0.8, concept="apple+chair")]
    assert titled(rows, "Detection").headings == ("method", "apple+chair", "runs")


def test_costs_are_not_in_per_cent_and_divergence_is_noted() -> None:
    rows = [
        row("ga", 12.4, None, None, measure="unlearn_seconds", n=None),
        row("ga", 1300, None, None, measure="peak_memory_mb", n=None),
        row("ga", 60, None, None, measure="steps", n=None, reason=DIVERGED),
        row("ga", 0.5, "retain", measure="retained_fidelity", n=None),
        row("kl", 11, None, None, measure="unlearn_seconds", n=None),
    ]
    table = titled(rows, "Time")
    assert table.headings == (
        "method",
        "seconds",
        "peak memory, MB",
        "steps",
        "retained fidelity",
        "runs",
    )
    assert lines_of(table) == {  # costs are means without queries, so none is the best
        "ga": ["12", "1,300", "60", "50.0", "1"], "kl": ["11", "-", "-", "-", "1"],
    }  # fmt: skip
    assert table.note.endswith("Diverged, ended with the last good weights: ga 1 runs.")


@pytest.mark.parametrize("answers", ["image", "text"])
def test_retrieval_has_a_forget_and_a_retain_column_for_each_rank(answers: str) -> None:
    rows = [
        row("ga", value, group, measure=f"{answers}_retrieval_r{k}")
        for k, value in ((1, 0.1), (5, 0.2), (10, 0.3))
        for group in ("forget", "retain")
    ]
    table = titled(rows, f"{answers.title()} retrieval")
    assert table.headings[1:3] == ("R@1, forget", "R@1, retain") and len(table.headings) == 8
    assert lines_of(table)["ga"] == ["10.0", "10.0", "20.0", "20.0", "30.0", "30.0", "1"]
