import io
from typing import Any

from report_samples import sample_record
from rich.console import Console

from neural_polarizer.cli.result import found_and_cost, summary_table


def printed(record: dict[str, Any]) -> list[list[str]]:
    file = io.StringIO()
    Console(file=file, width=60).print(summary_table(record))
    return [line.split() for line in file.getvalue().splitlines()]


def test_the_table_has_one_decimal_and_signs() -> None:
    assert printed(sample_record()) == [
        ["before", "after", "change"],
        ["ACC", "97.1%", "96.4%", "-0.7"],
        ["ASR", "98.4%", "1.2%", "-97.2"],
        ["RA", "1.6%", "94.7%", "+93.1"],
        ["DER", "98.2%"],
        ["clean", "99.0%", "99.0%", "0.0"],
    ]


def test_what_was_not_measured_is_a_dash() -> None:
    assert printed(sample_record(before={"acc": 0.5}, after={}, der=None)) == [
        ["before", "after", "change"],
        ["ACC", "50.0%", "-", "-"],
        ["ASR", "-", "-", "-"],
        ["RA", "-", "-", "-"],
        ["DER", "-"],
        ["clean", "99.0%", "99.0%", "0.0"],
    ]


def test_what_was_found_and_what_it_cost_are_one_line_each() -> None:
    assert found_and_cost(sample_record()) == (
        "Suspiciously small: 1 (stop).; the trigger worked on 98.4% of the images before and on 1.2% after",
        "accuracy 97.1% before and 96.4% after (-0.7 points, on 12,630 clean test images); 58.6 s for the purification",
    )
    assert found_and_cost(sample_record(audit=None))[0].startswith("no class was accused; the trigger worked on 98.4%")
