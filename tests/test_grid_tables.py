"""The comparison's tables, against means, spreads and ties worked out by hand."""

from __future__ import annotations

import pytest

from erase_sd.comparison.markdown import markdown
from erase_sd.comparison.rows import DIVERGED, FAILED, Row, Stat, originals, stat
from erase_sd.comparison.tables import Table, tables


def row(
    method: str,
    value: float | None,
    group: str = "target",
    arm: str = "erased",
    concept: str = "apple",
    seed: int = 0,
    measure: str = "detection_rate",
    n: int | None = 100,
    overrides: str = "",
    reason: str = "",
) -> Row:
    return Row(
        concept=concept, method=method, overrides=overrides, seed=seed, measure=measure,
        group=group, arm=arm, value=value, n=n, reason=reason,
    )  # fmt: skip


def lines_of(table: Table) -> dict[str, list[str]]:
    """The texts of each line, bold ones in asterisks, by the line's words."""
    return {
        " ".join(entry.text for entry in line[: table.words]): [
            f"**{entry.text}**" if entry.bold else entry.text for entry in line[table.words :]
        ]
        for line in table.lines
    }


def titled(rows: list[Row], words: str) -> Table:
    [found] = [table for table in tables(rows) if words in table.title]
    return found


def test_the_mean_is_of_the_seeds_means_and_the_spread_is_over_seeds() -> None:
    rows = [
        row("ga", 0.1, concept="apple", seed=0), row("ga", 0.3, concept="chair", seed=0),
        row("ga", 0.2, concept="apple", seed=1), row("ga", 0.6, concept="chair", seed=1),
    ]  # fmt: skip
    found = stat(rows)  # seeds 0.2 and 0.4: mean 0.3, sample deviation 0.2 / sqrt(2)
    assert found == Stat(pytest.approx(0.3), pytest.approx(0.141421, abs=1e-6), 200)
    assert stat(rows[:2]) == Stat(pytest.approx(0.2), None, 200)
    assert stat([row("ga", None)]) is None
    assert lines_of(titled(rows, "Detection"))["ga"] == [
        "15.0 ± 7.1", "45.0 ± 21.2", "30.0 ± 14.1", "4",
    ]  # fmt: skip


def test_bold_are_the_lowest_and_all_whose_interval_overlaps_its() -> None:
    # Wilson: 0 of 100 is 0 to 0.037; 5 of 100 is 0.022 to 0.112; 12 of 100 is 0.070 to 0.198.
    rows = [row("ga", 0.0), row("npo", 0.05), row("kl", 0.12)]
    assert lines_of(titled(rows, "Detection")) == {
        "ga": ["**0.0**", "1"], "npo": ["**5.0**", "1"], "kl": ["12.0", "1"],
    }  # fmt: skip


def test_the_same_prompts_from_another_seed_break_no_tie() -> None:
    # 0 and 5 of 100 are one, and stay one where two seeds find the same of the same 100.
    rows = [row(m, v, seed=seed) for m, v in (("ga", 0.0), ("npo", 0.05)) for seed in (0, 1)]
    found = lines_of(titled(rows, "Detection"))
    assert (found["ga"][0], found["npo"][0]) == ("**0.0 ± 0.0**", "**5.0 ± 0.0**")


def test_the_prompts_that_all_concepts_share_count_once() -> None:
    rows = [
        row("ga", 0.9, group, concept=concept, seed=seed, n=50)
        for group in ("target", "retained_other")
        for concept in ("apple", "chair", "cow")
        for seed in (0, 1)
    ]
    counted = [stat(r for r in rows if r.group == group) for group in ("target", "retained_other")]
    assert [found.n for found in counted if found] == [150, 50]


def test_nothing_is_marked_where_a_handful_of_classes_is_counted() -> None:
    rows = [
        row(m, v, "forget", measure="zero_shot_retrieval", n=4)
        for m, v in (("ga", 0.0), ("kl", 1.0))
    ]
    assert lines_of(titled(rows, "Zero-shot")) == {"ga": ["0.0", "1"], "kl": ["100.0", "1"]}


def test_best_kept_is_what_is_closest_to_the_original_not_what_is_highest() -> None:
    rows = [
        row("ga", 0.73, "retain", "original", measure="zero_shot_prediction"),
        row("ga", 0.72, "retain", measure="zero_shot_prediction"),
        row("tuned", 0.91, "retain", measure="zero_shot_prediction"),
    ]
    assert lines_of(titled(rows, "Zero-shot")) == {
        "original": ["73.0", ""], "ga": ["**72.0**", "1"], "tuned": ["91.0", "1"],
    }  # fmt: skip


def test_one_spec_alone_or_a_kept_rate_without_the_originals_is_never_best() -> None:
    assert lines_of(titled([row("ga", 0.0)], "Detection"))["ga"] == ["0.0", "1"]
    rows = [row("ga", 0.5, "retained_same"), row("kl", 0.9, "retained_same")]
    found = lines_of(titled(rows, "Detection"))
    assert (found["ga"][0], found["kl"][0]) == ("50.0", "90.0")


def test_the_originals_values_that_each_specs_runs_hold_count_once() -> None:
    rows = [row(m, 0.8, arm="original", seed=s) for m in ("ga", "kl") for s in (0, 1)]
    assert len(originals(rows)) == 2


def test_a_failed_cell_is_told_where_it_is_missing_and_why() -> None:
    rows = [row("ga", 0.0), row("ga", 0.1, seed=1), row("kl", 0.5)]
    rows.append(row("kl", None, "", "", seed=1, measure=FAILED, n=None, reason="no | luck"))
    found = lines_of(titled(rows, "Detection"))
    assert (found["ga"][-1], found["kl"][-1]) == ("2", "1 of 2")
    text = markdown(tables(rows), rows)
    assert r"| apple | kl | 1 | no \| luck |" in text
    assert "| ga | **5.0 ± 7.1** | 2 |" in text
    alone = rows[-1:]
    assert tables(alone) == [] and "no \\| luck" in markdown([], alone)


def test_settings_of_one_method_stand_side_by_side() -> None:
    rows = [
        row("cliperase", 0.1),
        row("cliperase", 0.6, overrides="consistency=embedding"),
        row("ga", 0.0),
    ]
    [table] = [table for table in tables(rows) if "what its settings buy" in table.title]
    assert table.title.startswith("cliperase:")
    assert list(lines_of(table)) == ["cliperase", "cliperase:consistency=embedding"]


def test_both_is_the_harmonic_mean_of_what_went_and_what_is_kept() -> None:
    def seen(overrides: str, *after: float) -> list[Row]:
        groups = zip(("target", "retained_same", "retained_other"), (0.8, 0.5, 1.0), strict=True)
        return [
            row("ga", value, group, arm, overrides=overrides)
            for (group, before), now in zip(groups, after, strict=True)
            for arm, value in (("original", before), ("erased", now))
        ]

    # Went 0.5 and kept (1 + 0.8) / 2, so 0.9 / 1.4; went all and kept half; nothing went.
    rows = [
        *seen("", 0.4, 0.6, 0.8),
        *seen("rate=0.1", 0.0, 0.0, 1.0),
        *seen("rate=1", 0.9, 0.5, 1),
    ]
    table = titled(rows, "Detection")
    assert table.headings[-2] == "both"
    assert {name: line[-2] for name, line in lines_of(table).items()} == {
        "original": "", "ga": "64.3", "ga:rate=0.1": "66.7", "ga:rate=1": "0.0",
    }  # fmt: skip


def test_several_concepts_have_a_table_of_their_own_and_stay_out_of_the_others() -> None:
    rows = [
        row("ga", 0.1),
        row("ga", 0.8, concept="apple+chair"),
        row("kl", 0.3),
    ]
    assert lines_of(titled(rows, "Detection"))["ga"] == ["**10.0**", "1"]
    table = titled(rows, "Several concepts")
    assert table.headings == ("concepts", "method", "target", "runs")
    assert lines_of(table) == {"1 ga": ["10.0", "1"], "2 ga": ["80.0", "1"]}


def test_a_grid_of_several_concepts_alone_fills_the_tables() -> None:
    rows = [row("ga", 0.8, concept="apple+chair")]
    assert titled(rows, "Detection").headings == ("method", "apple+chair", "runs")


def test_time_and_memory_are_no_shares_and_divergence_is_told() -> None:
    rows = [
        row("ga", 12.4, "", "", measure="unlearn_seconds", n=None),
        row("ga", 1300, "", "", measure="peak_memory_mb", n=None),
        row("ga", 60, "", "", measure="steps", n=None, reason=DIVERGED),
        row("ga", 0.5, "retain", measure="validation_retain", n=None),
    ]
    table = titled(rows, "Time")
    assert table.headings == ("method", "seconds", "peak memory, MB", "steps", "kept", "runs")
    assert lines_of(table) == {"ga": ["12", "1,300", "60", "50.0", "1"]}
    assert table.note.endswith("Diverged, and ended on the last good weights: ga 1 runs.")


def test_retrieval_has_forget_and_retain_of_each_rank() -> None:
    rows = [
        row("ga", value, group, measure=f"image_retrieval_r{k}")
        for k, value in ((1, 0.1), (5, 0.2), (10, 0.3))
        for group in ("forget", "retain")
    ]
    table = titled(rows, "Image retrieval")
    assert table.headings[1:3] == ("R@1, forget", "R@1, retain") and len(table.headings) == 8
    assert lines_of(table)["ga"] == ["10.0", "10.0", "20.0", "20.0", "30.0", "30.0", "1"]
