"""README's tables: means are over the same models for all defenses."""

from typing import Any

from benchmark_scripts import script

table = script("published_table")


def run(acc: float, lost: float, asr: float | None, der: float | None) -> dict[str, Any]:
    return {"acc": acc, "acc_lost": lost, "asr": asr, "ra": None if asr is None else 0.5, "der": der}


FOUND = {
    ("a", "none"): [run(0.9, 0.0, 1.0, None)],
    ("a", "npd-ls"): [run(0.89, 0.01, 0.02, 0.96), run(0.87, 0.03, 0.0, 0.98)],
    ("a", "ft"): [run(0.8, 0.1, 0.5, 0.7)],
    ("b", "none"): [run(0.9, 0.0, 1.0, None)],
    ("b", "npd-ls"): [run(0.9, 0.0, 0.9, 0.55)],  # ft is not computed for b
    ("clean", "none"): [run(0.9, 0.0, None, None)],
    ("clean", "npd-ls"): [run(0.896, 0.004, None, None)],
    ("clean", "ft"): [run(0.87, 0.03, None, None)],
}


def test_a_row_has_the_mean_of_the_seeds_and_the_worst() -> None:
    cells = table.row("a", FOUND, {}, ["ft", "nad"])
    assert cells == ["a", "90.0 / 100", "**88.0 / 1.0**", "2.0", "50.0", "97.0", "80.0 / 50.0", "-"]


def test_the_mean_der_is_over_models_that_all_have() -> None:
    assert table.last_row(["a", "b"], FOUND, {}, ["ft"])[5:] == ["**97.0**", "70.0"]
    half = {("a", "npd-ls"): [run(0.88, 0.02, 0.0, 0.99)]}  # and with another number of images not all of them
    assert table.last_row(["a", "b", "clean"], FOUND, {50: half}, [])[5:] == ["**76.0**", "-"]
    assert table.last_row(["a", "clean"], FOUND, {50: half}, [])[5:] == ["**97.0**", "99.0"]


def test_means_by_defense_are_over_models_that_all_have_best_first() -> None:
    heads, _, *rows = table.by_defense(FOUND, "published")
    assert heads[1:5] == ["mean DER", "ACC lost", "most lost", "worst ASR"]
    assert rows == [["`npd-ls`", "97.0", "2.0", "3.0", "2.0", "0.4"], ["`ft`", "70.0", "10.0", "10.0", "50.0", "3.0"]]
