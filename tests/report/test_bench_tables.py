"""The table of a suite: numbers by hand, the paper beside them, marks, averages, gaps."""

from dataclasses import replace
from typing import Any

import pytest
from bench_samples import FAILURE, labels, main_suite, published, record, swept_suite

from neural_polarizer.report.bench.names import label_text, number_text, signed_text
from neural_polarizer.report.bench.results import Entry, Label, Layout, PaperValue, SuiteResult
from neural_polarizer.report.bench.tables import Cell, Table, error_of
from neural_polarizer.report.bench.tabulate import make_table


def at(table: Table, row: Label | tuple[Label, ...], column: Label | tuple[Label, ...]) -> Cell:
    place = (row if isinstance(row, tuple) else (row,), column if isinstance(column, tuple) else (column,))
    return table.cells[place]


def suite_of(cells: dict[tuple[str, str], dict[str, Any]], *values: str, **changes: Any) -> SuiteResult:
    """One run for each attack and defense, with this result."""
    entries = []
    for (attack, defense), found in cells.items():
        own = labels(attack=attack, defense=defense)
        entries.append(Entry(own, record(own, found)))
    layout = Layout(("attack",), ("defense",), values)
    return main_suite(entries=tuple(entries), layout=layout, paper=(), **changes)


def test_a_cell_is_the_mean_and_the_sample_spread_over_its_seeds() -> None:
    figure = at(make_table(main_suite()), "badnets", "npd").figures["asr"]
    assert figure.mean == pytest.approx(0.010)  # of 0.8, 1.0 and 1.2 %
    assert figure.spread == pytest.approx(0.002)  # 0.00163 if divided by n
    assert figure.n == 3


def test_one_seed_has_no_spread() -> None:
    figure = at(make_table(main_suite()), "badnets", "none").figures["acc"]
    assert figure.mean == pytest.approx(0.93)
    assert (figure.spread, figure.n) == (None, 1)


def test_a_failed_seed_is_left_out_of_the_mean_and_keeps_its_error() -> None:
    cell = at(make_table(main_suite()), "wanet", "i-bau")
    assert cell.figures["acc"].mean == pytest.approx(0.885 - 0.004 + 0.0005)
    assert cell.figures["acc"].n == 2
    assert [error_of(run) for run in cell.failed] == [FAILURE]
    assert cell.missing == 0


def test_what_failed_or_never_ran_is_a_gap() -> None:
    table = make_table(main_suite())
    failed, missing = at(table, "blended-a2a", "fp"), at(table, "wanet", "fp")
    assert (failed.figures["acc"].mean, len(failed.failed), failed.missing) == (None, 3, 0)
    assert (missing.figures["acc"].mean, len(missing.failed), missing.missing) == (None, 0, 3)


def victims(**rates: tuple[float, float]) -> SuiteResult:
    """Undefended models by attack, and NPD on each, with these (ACC, ASR)."""
    cells = {(attack, "none"): {"acc": acc, "asr": asr} for attack, (acc, asr) in rates.items()}
    cells |= {(attack, "npd"): {"acc": acc, "asr": 0.01} for attack, (acc, _) in rates.items()}
    return suite_of(cells, "acc", "asr")


def test_a_failed_attack_is_marked_and_no_mean_counts_it() -> None:
    table = make_table(victims(badnets=(0.9, 0.95), wanet=(0.18, 1.0), lf=(0.46, 0.49), ssba=(0.46, 0.5)))
    for defense in ("none", "npd"):
        marks = [at(table, attack, defense).attack_failed for attack in ("badnets", "wanet", "lf", "ssba")]
        assert marks == [False, True, True, False]  # ACC below 45 %, ASR below 50 %
        assert at(table, "mean", defense).figures["acc"].mean == pytest.approx((0.9 + 0.46) / 2)
    assert at(table, "wanet", "npd").figures["acc"].mean == pytest.approx(0.18)  # what was measured stays to be seen


def test_a_network_with_a_low_acc_does_not_make_another_s_victims_fail() -> None:
    suite = victims(badnets=(0.9, 0.95))
    own = labels(attack="wanet", defense="none", data="tiny_imagenet")
    more = (*suite.entries, Entry(own, record(own, {"acc": 0.3, "asr": 0.9})))
    assert not any(cell.attack_failed for cell in make_table(replace(suite, entries=more)).cells.values())


@pytest.mark.parametrize("value", [None, "0.9", True, float("nan"), float("inf")])
def test_what_is_no_number_is_not_averaged(value: Any) -> None:
    figure = at(make_table(suite_of({("badnets", "npd"): {"acc": value}}, "acc")), "badnets", "npd").figures["acc"]
    assert (figure.mean, figure.n) == (None, 0)


def test_the_paper_stands_beside_our_number_and_beside_a_gap() -> None:
    table = make_table(main_suite())
    npd = at(table, "badnets", "npd").figures["acc"]
    assert npd.paper == 0.8893
    assert npd.delta == pytest.approx(0.910 - 0.8893)
    gap = at(table, "wanet", "fp").figures["asr"]
    assert (gap.paper, gap.delta) == (0.0061, None)
    assert at(table, "badnets", "i-bau").figures["acc"].paper is None


def test_the_paper_is_not_quoted_for_another_data_set() -> None:
    suite = main_suite()
    entries = tuple(Entry({**entry.labels, "data": "gtsrb"}, entry.record) for entry in suite.entries)
    cells = make_table(replace(suite, entries=entries)).cells.values()
    assert {figure.paper for cell in cells for figure in cell.figures.values()} == {None}


def test_the_paper_is_not_quoted_where_two_of_its_numbers_fit() -> None:
    twice = (published("badnets", "npd", acc=0.9), PaperValue({"attack": "badnets", "defense": "npd"}, {"acc": 0.8}))
    assert at(make_table(main_suite(paper=twice)), "badnets", "npd").figures["acc"].paper is None


def test_the_average_is_that_of_the_column_and_only_where_it_is_complete() -> None:
    table = make_table(main_suite())
    npd, fp = at(table, "mean", "npd"), at(table, "mean", "fp")
    shown = [at(table, attack, "npd").figures["der"].mean for attack in ("badnets", "blended-a2a", "wanet")]
    assert npd.figures["der"].mean == pytest.approx(sum(mean or 0 for mean in shown) / 3)
    assert (npd.figures["der"].paper, npd.figures["der"].n) == (0.9641, 3)
    assert {figure.mean for figure in fp.figures.values()} == {None}
    assert table.rows[-1] == ("mean",)


def test_one_attack_has_no_average() -> None:
    table = make_table(suite_of({("badnets", "npd"): {"acc": 0.9}, ("badnets", "fp"): {"acc": 0.8}}, "acc"))
    assert table.rows == (("badnets",),)


def test_attacks_in_the_columns_are_averaged_in_a_column() -> None:
    suite = replace(main_suite(), layout=Layout(("defense",), ("attack",), ("acc",)))
    table = make_table(suite)
    assert table.columns[-1] == ("mean",)
    assert at(table, "npd", "mean").figures["acc"].mean == pytest.approx(0.910 - 0.002)


RESULTS = {
    ("badnets", "none"): {"acc": 0.99, "asr": 0.0, "der": 0.99, "seconds": 1.0},
    ("badnets", "fp"): {"acc": 0.90, "asr": 0.10, "der": 0.80, "seconds": 30.0},
    ("badnets", "nad"): {"acc": 0.80, "asr": 0.01, "der": 0.70, "seconds": 20.0},
    ("badnets", "npd"): {"acc": 0.85, "asr": 0.05, "der": 0.90, "seconds": 10.0},
}


@pytest.mark.parametrize(
    ("value", "best", "second"),
    [("acc", "fp", "npd"), ("asr", "nad", "npd"), ("der", "npd", "fp"), ("seconds", "npd", "nad")],
)
def test_the_best_defenses_are_marked_and_no_defense_does_not_compete(value: str, best: str, second: str) -> None:
    table = make_table(suite_of(RESULTS, value))
    ranks = {str(column[0]): cell.figures[value].rank for (_, column), cell in table.cells.items()}
    assert ranks == {"none": None, "fp": None, "nad": None, "npd": None} | {best: "best", second: "second"}


def test_defenses_that_look_equal_are_equally_good() -> None:
    cells = {("badnets", name): {"acc": acc} for name, acc in (("fp", 0.90001), ("nad", 0.90002), ("npd", 0.8))}
    table = make_table(suite_of(cells, "acc"))
    assert [cell.figures["acc"].rank for cell in table.cells.values()] == ["best", "best", "second"]


def test_of_two_only_the_better_one_is_marked_and_a_single_one_is_not() -> None:
    two = make_table(suite_of({("badnets", "fp"): {"acc": 0.8}, ("badnets", "npd"): {"acc": 0.9}}, "acc"))
    assert [cell.figures["acc"].rank for cell in two.cells.values()] == [None, "best"]
    one = make_table(suite_of({("badnets", "npd"): {"acc": 0.9}}, "acc"))
    assert [cell.figures["acc"].rank for cell in one.cells.values()] == [None]


def test_defenses_compete_only_under_the_same_conditions() -> None:
    table = make_table(swept_suite("n_clean", [500, 50], defenses=("i-bau", "npd")))
    for size in (500, 50):
        assert at(table, "badnets", (size, "npd")).figures["asr"].rank == "best"
        assert at(table, "badnets", (size, "i-bau")).figures["asr"].rank is None


def test_columns_are_grouped_by_their_first_axis_in_the_order_of_the_suite() -> None:
    table = make_table(swept_suite("n_clean", [500, 50], defenses=("npd", "i-bau")))
    assert table.columns == ((500, "npd"), (500, "i-bau"), (50, "npd"), (50, "i-bau"))


@pytest.mark.parametrize(
    ("layout", "rows", "columns"),
    [
        (Layout(("attack",), ("site",), ("acc",)), ("attack",), ("site", "defense")),
        (Layout(("site",), ("attack",), ("acc",)), ("site", "defense"), ("attack",)),
        (Layout(("attack",), ("defense",), ("acc",)), ("attack",), ("defense", "site")),
        (Layout(("attack",), ("defense", "site"), ("acc",)), ("attack",), ("defense", "site")),
    ],
)
def test_axes_that_the_layout_forgot_are_added(layout: Layout, rows: tuple[str, ...], columns: tuple[str, ...]) -> None:
    table = make_table(replace(swept_suite("site", ["", "layer4"], defenses=("none", "npd")), layout=layout))
    assert (table.row_axes, table.column_axes) == (rows, columns)
    assert {len(cell.entries) for cell in table.measured} == {1}


def test_seeds_are_never_an_axis_of_their_own() -> None:
    own = [labels(victim_seed=seed, seed=seed) for seed in (0, 1)]
    entries = tuple(Entry(each, record(each, {"acc": 0.9})) for each in own)
    table = make_table(main_suite(entries=entries))
    assert table.column_axes == ("defense",)
    assert at(table, "badnets", "npd").figures["acc"].n == 2


def test_a_suite_without_cells_is_an_empty_table() -> None:
    table = make_table(main_suite(entries=()))
    assert (table.rows, table.columns) == ((), ())


@pytest.mark.parametrize(
    ("axis", "label", "text"),
    [
        ("poison_rate", 0.05, "5% poisoned"),
        ("n_clean", 2500, "2,500 images"),
        ("n_clean", 0, "5% of images"),
        ("adaptive", True, "adaptive"),
        ("attack", "blended-a2a", "Blended-A2A"),
        ("attack", "my_lab.ghost:Ghost", "my_lab.ghost:Ghost"),
        ("variant", "", "default"),
        ("attack", "a\u202eb", r"a\u202eb"),
    ],
)
def test_labels_as_people_read_them(axis: str, label: Label, text: str) -> None:
    assert label_text(axis, label) == text


@pytest.mark.parametrize(
    ("value", "amount", "text", "signed"),
    [
        ("acc", 0.12345, "12.35", "+12.35"),
        ("asr", -0.00001, "-0.00", "0.00"),
        ("der", -0.005, "-0.50", "-0.50"),
        ("seconds", 41.236, "41.24", "+41.24"),
        ("distance", 93.8444, "93.84", "+93.84"),
    ],
)
def test_numbers_as_people_read_them(value: str, amount: float, text: str, signed: str) -> None:
    assert (number_text(value, amount), signed_text(value, amount)) == (text, signed)
