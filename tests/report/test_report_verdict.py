from typing import Any

import pytest
from report_samples import nothing_measured, sample_record

from neural_polarizer.report.charts import epoch_ticks, line_chart, nice_ticks
from neural_polarizer.report.run.measures import measures
from neural_polarizer.report.run.verdict import judge


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ((0.97, 0.98), (0.96, 0.012), "removed"),
        ((0.97, 0.98), (0.95, 0.0499), "removed"),  # a loss of exactly two points is still accepted
        ((0.97, 0.98), (0.949, 0.0), "costly"),
        ((0.97, 0.98), (None, 0.0), "unproven"),
        ((0.97, None), (0.97, 0.0), "unproven"),
        ((0.97, 0.98), (0.97, 0.05), "reduced"),
        ((0.97, 0.98), (0.97, 0.49), "reduced"),
        ((0.97, 0.98), (0.97, 0.50), "not-removed"),
        ((0.97, None), (0.97, 0.20), "not-removed"),
        ((0.97, 0.02), (0.97, 0.01), "absent"),
        ((0.97, 0.98), (0.97, None), "unknown"),
    ],
)
def test_the_verdict_follows_the_numbers(before: tuple[Any, Any], after: tuple[Any, Any], kind: str) -> None:
    record = sample_record(before=dict(zip(("acc", "asr"), before, strict=True)))
    record["after"] = dict(zip(("acc", "asr"), after, strict=True))
    assert judge(record).kind == kind


def test_only_a_removed_backdoor_is_green() -> None:
    assert judge(sample_record()).tone == "good"
    assert judge(nothing_measured()).tone == "open"


def test_the_unknown_verdict_needs_no_surrogate() -> None:
    assert "Fresh perturbations" not in judge(nothing_measured()).text
    assert "indirect evidence" in judge(nothing_measured()).text


def test_changes_are_judged_by_their_direction() -> None:
    tones = {measure.short: measure.tone for measure in measures(sample_record())}
    assert tones == {"ACC": "plain", "ASR": "good", "RA": "good", "DER": "plain", "clean": "plain"}
    worse = sample_record(after={"acc": 0.9, "asr": 1.0, "ra": 0.016})
    tones = {measure.short: measure.tone for measure in measures(worse)}
    assert tones == {"ACC": "bad", "ASR": "plain", "RA": "plain", "DER": "plain", "clean": "plain"}


def test_a_chart_is_known_by_hand() -> None:
    chart = line_chart("t", [{"epoch": 1, "a": 0.0}, {"epoch": 3, "a": 1.0}], {"a": "A", "b": "B"}, shares=True)
    assert chart is not None
    assert [(line.label, line.runs, line.latest) for line in chart.lines] == [
        ("A", (((52, 226), (446, 14)),), "100.0%")
    ]
    assert [tick.label for tick in chart.y_ticks] == ["0%", "25%", "50%", "75%", "100%"]
    assert [(tick.at, tick.label) for tick in chart.x_ticks] == [(52, "1"), (249, "2"), (446, "3")]


def test_a_missing_value_breaks_the_line_and_a_lone_point_gets_a_marker() -> None:
    values = [1.0] * 30 + [None, 0.5, None] + [0.2] * 2
    chart = line_chart("t", [{"a": value} for value in values], {"a": "A"})
    assert chart is not None
    (line,) = chart.lines
    assert [len(run) for run in line.runs] == [30, 2]
    assert len(line.markers) == 1


@pytest.mark.parametrize("epoch", [None, float("nan"), float("inf"), "2", 1e300])
def test_an_epoch_that_is_no_number_is_counted(epoch: object) -> None:
    chart = line_chart("t", [{"epoch": 1, "a": 0.5}, {"epoch": epoch, "a": 1.0}], {"a": "A"})
    assert chart is not None
    assert [tick.label for tick in chart.x_ticks] == ["1", "2"]


def test_epochs_that_start_at_zero_keep_their_numbers() -> None:
    chart = line_chart("t", [{"epoch": 0, "a": 1.0}, {"epoch": 1, "a": 1.0}], {"a": "A"})
    assert chart is not None
    assert [tick.label for tick in chart.x_ticks] == ["0", "1"]


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 2.4) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert nice_ticks(0, 0) == [0, 0.2]
    assert nice_ticks(-3, 4) == [-4, -2, 0, 2, 4]
    assert epoch_ticks(1, 50) == [1, 10, 20, 30, 40, 50]
    assert epoch_ticks(1, 5) == [1, 2, 3, 4, 5]
    assert epoch_ticks(7, 7) == [7]
