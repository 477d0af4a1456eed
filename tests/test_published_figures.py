"""The tables of published models, implants and stability are what the committed records make of today's settings."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmark_scripts import script
from neural_polarizer.bench.results import suite_result
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import load_suite

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"

pytestmark = [pytest.mark.long, pytest.mark.skipif(not RESULTS.is_dir(), reason="the records are not here")]


def rows(text: str) -> list[str]:
    """The rows of the tables in a page, but the lines below their heads."""
    return [line for line in text.splitlines() if line.startswith("|") and set(line) - set("|- ")]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("README.md", ()),
        ("README.md", ("--means",)),
        ("README.md", ("--means", "--suite", "real")),
        ("docs/research/published.md", ("--all",)),
        ("docs/research/published.md", ("--all", "--suite", "real")),
    ],
)
def test_a_table_of_published_models_is_that_of_the_records(
    page: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = script("published_table")
    monkeypatch.setattr(sys, "argv", ["published_table.py", "--results", str(RESULTS), *words])
    made.main()
    found = rows(capsys.readouterr().out)
    assert any("npd-ls" in row for row in found)  # settings that change make its records stale, and it goes
    assert set(found) <= set(rows((ROOT / page).read_text(encoding="utf-8")))


def test_the_table_of_stability_is_that_of_the_records() -> None:
    made = script("stability")
    found = rows(made.markdown(made.stability(suite_result(load_suite(str(made.SUITE)), Store(str(RESULTS))).entries)))
    assert any("NPD-LS" in row for row in found)
    assert set(found) <= set(rows((ROOT / "docs" / "research" / "benchmark.md").read_text(encoding="utf-8")))
