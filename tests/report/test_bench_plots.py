"""The plots of a suite: which ones, and where their points lie."""

import re
from dataclasses import replace

import pytest
from bench_samples import hostile_suite, labels, main_suite, record, swept_suite, time_suite

from neural_polarizer.report.bench import bars, plots
from neural_polarizer.report.bench.bars import make_bars
from neural_polarizer.report.bench.plots import Plot, make_curves, make_scatter
from neural_polarizer.report.bench.results import Entry, SuiteResult
from neural_polarizer.report.bench.tabulate import make_table


def curves(suite: SuiteResult) -> dict[str, Plot]:
    return {plot.title: plot for plot in make_curves(make_table(suite))}


def test_the_scatter_has_a_spot_for_each_cell_with_both_rates() -> None:
    plot = make_scatter(make_table(main_suite()))
    assert plot is not None
    spots = {series.label: len(series.spots) for series in plot.series}
    assert spots == {"No defense": 3, "FP": 1, "i-BAU": 3, "NPD": 3}
    cited = {series.label: len(series.paper) for series in plot.series}
    assert cited == {"No defense": 1, "FP": 1, "i-BAU": 0, "NPD": 1}


def test_better_is_up_and_left_in_the_scatter() -> None:
    plot = make_scatter(make_table(main_suite()))
    assert plot is not None
    spots = {series.label: series.spots[0].at for series in plot.series}
    assert spots["NPD"][0] < spots["i-BAU"][0] < spots["FP"][0] < spots["No defense"][0]
    assert spots["No defense"][1] < spots["FP"][1] < spots["NPD"][1] < spots["i-BAU"][1]


def test_a_spot_lies_where_the_ticks_say() -> None:
    plot = curves(swept_suite("poison_rate", [0.05, 0.1, 0.4], defenses=("none", "npd")))["ASR, BadNets"]
    ticks = {tick.label: tick.at for tick in plot.y_ticks}
    npd = next(series for series in plot.series if series.label == "NPD")
    share = 0.008 / 1.0
    assert npd.spots[0].at[1] == pytest.approx(ticks["0%"] + share * (ticks["100%"] - ticks["0%"]), abs=0.02)
    assert [spot.at[0] for spot in npd.spots] == [tick.at for tick in plot.x_ticks]
    left, middle, right = (tick.at for tick in plot.x_ticks)
    assert (middle - left) / (right - left) == pytest.approx(0.05 / 0.35, abs=1e-3)


def test_rivals_share_a_plot_and_attacks_have_their_own() -> None:
    drawn = curves(swept_suite("n_clean", [500, 250, 50]))
    assert set(drawn) == {
        f"{value}, {attack}" for value in ("ACC", "ASR", "DER") for attack in ("BadNets", "Blended-A2A")
    }
    plot = drawn["ACC, BadNets"]
    assert [series.label for series in plot.series] == ["No defense", "FP", "i-BAU", "NPD"]
    assert [tick.label for tick in plot.x_ticks] == ["50", "250", "500"]


def test_layers_lie_side_by_side_and_undefended_models_have_none() -> None:
    drawn = curves(swept_suite("site", ["after:layer1", "after:layer2", "layer3"], defenses=("none", "npd")))
    plot = drawn["ACC"]
    assert [tick.label for tick in plot.x_ticks] == ["layer1", "layer2", "layer3"]
    assert "No defense" not in [series.label for series in plot.series]


def test_without_rivals_the_attacks_are_compared() -> None:
    plot = curves(swept_suite("site", ["layer1", "layer2"], defenses=("npd",)))["ACC"]
    assert [series.label for series in plot.series] == ["BadNets", "Blended-A2A"]


def test_a_share_of_the_clean_images_lies_at_its_number() -> None:
    plot = curves(swept_suite("n_clean", [0, 500, 5000], defenses=("npd", "i-bau")))["ACC, BadNets"]
    at = {tick.label: tick.at for tick in plot.x_ticks}
    assert (at["2,500"] - at["500"]) / (at["5,000"] - at["500"]) == pytest.approx(2000 / 4500, abs=1e-3)


def test_a_missing_point_leaves_a_gap_in_its_line() -> None:
    suite = swept_suite("poison_rate", [0.05, 0.1, 0.2, 0.3, 0.4], defenses=("npd",))
    entries = tuple(
        Entry(entry.labels, None if entry.labels["poison_rate"] == 0.2 else entry.record) for entry in suite.entries
    )
    series = curves(replace(suite, entries=entries))["ACC"].series[0]
    assert [len(run) for run in series.runs] == [2, 2]
    assert len(series.spots) == 4


def test_the_same_name_has_the_same_colour_in_all_plots() -> None:
    drawn = curves(swept_suite("n_clean", [500, 50]))
    styles = {(series.label, series.style) for plot in drawn.values() for series in plot.series}
    assert len(styles) == 4


def test_bars_of_der_are_as_long_as_their_share() -> None:
    plot = {plot.title: plot for plot in make_bars(make_table(main_suite()), "der")}["DER, BadNets"]
    length = {bar.label: bar.end for bar in plot.bars}
    assert list(length) == ["FP", "i-BAU", "NPD"]
    share = (0.95 - 0.010 - (0.93 - 0.910) + 1) / 2
    assert length["NPD"] == pytest.approx(bars.LEFT + share * (bars.RIGHT - bars.LEFT), abs=0.02)


def test_a_bar_that_failed_says_so() -> None:
    plot = {plot.title: plot for plot in make_bars(make_table(main_suite()), "der")}["DER, Blended-A2A"]
    assert (plot.bars[0].label, plot.bars[0].end, plot.bars[0].text) == ("FP", None, "failed")


def test_ten_times_the_time_is_the_same_distance_everywhere() -> None:
    (plot,) = make_bars(make_table(time_suite()), "seconds")
    steps = [right.at - left.at for left, right in zip(plot.ticks, plot.ticks[1:], strict=False)]
    assert [tick.label for tick in plot.ticks] == ["10", "100", "1,000"]
    assert steps == [pytest.approx(steps[0])] * len(steps)
    fp = plot.bars[0]
    assert fp.text == "90.50"
    assert fp.paper == pytest.approx(plot.ticks[-1].at)  # 1,000 s


def test_the_time_of_training_is_no_defense() -> None:
    (plot,) = make_bars(make_table(time_suite()), "seconds")
    assert [bar.label for bar in plot.bars] == ["FP", "i-BAU", "NPD"]


def test_rates_that_differ_by_nothing_do_not_look_different() -> None:
    suite = swept_suite("poison_rate", [0.05, 0.1, 0.4], defenses=("npd",))  # DER is 96.05 % up to rounding
    heights = [spot.at[1] for series in curves(suite)["DER"].series for spot in series.spots]
    assert max(heights) - min(heights) < 0.1


@pytest.mark.parametrize("acc", [0.0, 0.5, 1.0])
def test_a_single_cell_is_drawn_inside_the_frame(acc: float) -> None:
    own = labels()
    suite = main_suite(entries=(Entry(own, record(own, {"acc": acc, "asr": acc, "der": acc})),), paper=())
    plot = make_scatter(make_table(suite))
    assert plot is not None
    x, y = plot.series[0].spots[0].at
    assert plots.LEFT <= x <= plots.RIGHT
    assert plots.TOP <= y <= plots.BOTTOM


def test_a_suite_without_numbers_has_no_bars_and_no_curves() -> None:
    table = make_table(main_suite(entries=(Entry(labels(), None),), paper=()))
    assert make_bars(table, "der") == ()
    assert make_curves(table) == ()


def test_plots_say_in_words_what_they_show() -> None:
    plot = {plot.title: plot for plot in make_bars(make_table(main_suite()), "der")}["DER, BadNets"]
    assert re.search(r"DER, percent: FP \d\d\.\d\d, i-BAU \d\d\.\d\d, NPD \d\d\.\d\d\.", plot.description)
    scatter = make_scatter(make_table(hostile_suite()))
    assert scatter is not None
    assert "ACC over ASR: No defense," in scatter.description
