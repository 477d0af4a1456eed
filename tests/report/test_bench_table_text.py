"""Tables as Markdown, LaTeX and CSV: the files as they should be, the numbers of the records, nothing unescaped."""

import csv
import io
import re
from collections.abc import Iterator

import pytest
from bench_samples import FAILURE, FORMATS, GOLDEN, HOSTILE, golden_suites, hostile_suite, labels, main_suite, record

from neural_polarizer.report.bench.results import Entry, Layout, SuiteResult
from neural_polarizer.report.bench.site import render_site
from neural_polarizer.report.bench.table_text import render_csv, render_latex, render_markdown
from neural_polarizer.report.bench.tabulate import make_table

LATEX_SPECIAL = r"50% & #1_$x^2$ {a}~\b <|>"


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("suite", golden_suites(), ids=lambda suite: suite.name)
def test_the_files_are_as_they_were(suite: SuiteResult, ending: str) -> None:
    golden = (GOLDEN / f"{suite.name}.{ending}").read_text(encoding="utf-8")
    assert (
        FORMATS[ending](make_table(suite)) == golden
    )  # after a change on purpose: python tests/report/bench_samples.py


def lines_of(suite: SuiteResult) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(render_csv(make_table(suite))))


def test_each_line_of_the_csv_is_computed_from_the_records_of_its_cell() -> None:
    suite, seen = main_suite(), 0
    for line in lines_of(suite):
        if line["attack"] == "mean":
            continue
        seen += 1
        runs = [
            entry
            for entry in suite.entries
            if all(str(entry.labels[axis]) == line[axis] for axis in ("attack", "defense"))
        ]
        found = [
            run.record["result"][line["value"]]
            for run in runs
            if run.record and run.record["status"] == "done" and line["value"] in run.record["result"]
        ]
        assert int(line["n"]) == len(found)
        assert int(line["planned"]) == len(runs)
        assert line["mean"] == "" if not found else float(line["mean"]) == pytest.approx(sum(found) / len(found))
        if len(found) > 1:
            mean = sum(found) / len(found)
            assert float(line["spread"]) ** 2 == pytest.approx(sum((x - mean) ** 2 for x in found) / (len(found) - 1))
    assert seen == 3 * 4 * 3


def test_the_csv_names_failures_and_what_never_ran() -> None:
    lines = {(line["attack"], line["defense"], line["value"]): line for line in lines_of(main_suite())}
    assert lines["blended-a2a", "fp", "acc"]["errors"] == FAILURE
    assert lines["wanet", "i-bau", "acc"]["failed"] == "1"
    assert lines["wanet", "fp", "acc"]["missing"] == "3"
    assert lines["wanet", "fp", "acc"]["paper"] == "0.9065"


def test_the_csv_has_no_formulas() -> None:
    fields = [field for line in lines_of(hostile_suite("=1+1")) for field in line.values()]
    assert "'=1+1" in fields
    assert not [field for field in fields if field.startswith("=")]


def test_markdown_shows_mean_spread_number_of_runs_paper_and_difference() -> None:
    text = render_markdown(make_table(main_suite()))
    assert "| **91.00** ± 0.10 (3) [88.93; +2.07] |" not in text  # FP has the better ACC on BadNets
    assert "<ins>91.00</ins> ± 0.10 (3) [88.93; +2.07]" in text
    assert "**1.00** ± 0.20 (3) [1.26; -0.26]" in text
    assert "| - [90.65] |" in text
    assert f"- WaNet, i-BAU, victim seed 0, seed 2: {FAILURE}" in text


def test_markdown_has_as_many_fields_in_each_line_and_no_tags() -> None:
    text = render_markdown(make_table(hostile_suite("a|b <img src=x>\n# c")))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert not re.search(r"(?<!\\)<(?!/?ins>)", text)
    assert "\n# c" not in text


def test_latex_has_as_many_columns_in_each_line() -> None:
    text = render_latex(make_table(hostile_suite(LATEX_SPECIAL)))
    columns = re.search(r"begin\{tabular\}\{(\w+)\}", text)
    assert columns
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 2 + 3 + 1
    for row in rows:
        spanned = sum(int(width) - 1 for width in re.findall(r"multicolumn\{(\d+)\}", row))
        assert len(re.findall(r"(?<!\\)&", row)) + spanned + 1 == len(columns[1])


def test_latex_escapes_its_special_characters() -> None:
    text = render_latex(make_table(hostile_suite(LATEX_SPECIAL)))
    assert r"50\% \& \#1\_\$x\textasciicircum{}2\$ \{a\}\textasciitilde{}\textbackslash{}b" in text
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


def test_a_line_of_latex_cannot_begin_with_an_option_of_the_line_before() -> None:
    assert not re.search(r"\\\\\n\s*[\[*]", render_latex(make_table(hostile_suite("[1em]"))))


@pytest.mark.parametrize("ending", FORMATS)
def test_hidden_characters_are_spelled_out(ending: str) -> None:
    text = FORMATS[ending](make_table(hostile_suite("a\u202eb\udc80")))
    assert text.encode()
    assert "\u202e" not in text


def test_the_hostile_name_is_still_there() -> None:
    assert HOSTILE in render_csv(make_table(hostile_suite()))


def test_a_failed_attack_is_marked_in_every_format() -> None:
    entries = []
    for attack, acc in (("badnets", 0.9), ("wanet", 0.18)):
        own = labels(attack=attack, defense="none")
        entries.append(Entry(own, record(own, {"acc": acc, "asr": 0.95})))
    suite = main_suite(entries=tuple(entries), layout=Layout(("attack",), ("defense",), ("acc",)), paper=())
    table = make_table(suite)
    assert "18.00\N{DAGGER}" in render_markdown(table)
    assert "90.00\N{DAGGER}" not in render_markdown(table)
    assert r"18.00\dag{}" in render_latex(table)
    assert [line["attack_failed"] for line in lines_of(suite) if line["attack"] != "mean"] == ["0", "1"]
    page = render_site([suite])["table01.html"]
    assert re.search(r"18\.00\s*<sup>\N{DAGGER}</sup>", page)
    assert not re.search(r"90\.00\s*<sup>", page)
