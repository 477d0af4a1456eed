"""README's tables of published models and of implants into them, from the records of a suite, in Markdown.

    python benchmarks/published_table.py [--suite real] [--all | --means] [--results results] [--n-clean 500]

One row a model: ACC / ASR in percent before, after our default method (the mean of the seeds that are there, and the
largest ASR of them), after it with 50 and 2,500 clean images where that was computed, and after some rivals, or with
--all after all that were computed (the mean of their seeds). Implants have RA5 as a third value; the one before is that
of the clean network, into which the trigger is planted anew. A last row has the mean DER of the backdoored models for
which all of these were computed. Cells that are not computed show "-".

With --means there is one row a defense, for all that were computed: the mean DER, the ACC lost (mean and most) and the
largest ASR left of the backdoored models that all of them have, and the ACC lost of clean ones, or of implants the mean
RA5.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_polarizer.bench.results import suite_result
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import load_suite

SUITES = Path(__file__).parent / "published"
OURS = "npd-ls"
RIVALS = ("npd", "npd reference", "ft", "ft-sam", "i-bau")
"""With a column of their own, unless all have one."""
OTHER_COUNTS = (50, 2500)
"""Of clean images, with which our method has a column of its own."""
NONE = "-"
TITLES = {
    "wrn-16-1-grid": "WRN-16-1, grid trigger, CIFAR-10",
    "vgg-trojan-watermark": "small VGG, Trojan watermark, CIFAR-10",
    "vgg-l0": "small VGG, l0 pattern, CIFAR-10",
    "vgg-gtsrb-square": "small VGG, white square, GTSRB",
    "vgg-gtsrb-l2": "small VGG, l2 pattern, GTSRB",
    "vgg-gtsrb-trojan-square": "small VGG, Trojan square, GTSRB",
    "resnet20": "ResNet-20, clean, CIFAR-10",
    "resnet56": "ResNet-56, clean, CIFAR-10",
}
"""README's names of the models; others go by their name in the suite."""

Results = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""What came out, by victim and defense (with its variant), one for each seed."""


def results(suite: str, store: Store, n_clean: int) -> Results:
    """All results of a suite with so many clean images."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in suite_result(load_suite(str(SUITES / f"{suite}.toml")), store).entries:
        labels = entry.labels
        if labels["n_clean"] == n_clean and entry.record and entry.record["status"] == "done":
            defense = f"{labels['defense']} {labels['variant']}".strip()
            found.setdefault((_victim(suite, labels), defense), []).append(entry.record["result"])
    return found


def _victim(suite: str, labels: Mapping[str, Any]) -> str:
    if suite == "published":
        return str(labels["victim"])
    return f"{labels['attack']} into {labels['init']}, {labels['poison_rate']:.1%} poisoned"


def mean(each: Sequence[Mapping[str, Any]], value: str) -> str:
    """The mean of a value over seeds, in percent; NONE where it is not known."""
    known = [found[value] for found in each if found.get(value) is not None]
    return f"{100 * sum(known) / len(known):.1f}".replace("100.0", "100") if known else NONE


def pair(each: Sequence[Mapping[str, Any]]) -> str:
    """ACC / ASR; only ACC for a clean model; for an implant RA5, too."""
    if not each:
        return NONE
    return " / ".join(mean(each, value) for value in ("acc", "asr", "ra5") if each[0].get(value) is not None)


def row(victim: str, found: Results, others: Mapping[int, Results], rivals: Sequence[str]) -> list[str]:
    """One model's; ``others`` are the results by number of clean images that have a column of their own."""
    ours = found.get((victim, OURS), [])
    attacked = bool(ours) and ours[0]["asr"] is not None
    worst = f"{100 * max(each['asr'] for each in ours):.1f}" if attacked else ""
    rest = [mean(ours, "ra"), mean(ours, "der")] if attacked else ["", ""]
    return [
        TITLES.get(victim, victim),
        pair(found.get((victim, "none"), [])),
        f"**{pair(ours)}**",
        worst,
        *rest,
        *(pair(each.get((victim, OURS), [])) for each in others.values()),
        *(pair(found.get((victim, each), [])) for each in rivals),
    ]


def last_row(victims: Sequence[str], found: Results, others: Mapping[int, Results], rivals: Sequence[str]) -> list[str]:
    """The mean DER of the models that have a backdoor, where no defense is missing: the same ones for all."""
    whole = [victim for victim in victims if all((victim, each) in found for each in (OURS, *rivals))]
    attacked = [victim for victim in whole if found[victim, OURS][0]["der"] is not None]

    def der(defense: str, found: Results = found) -> str:
        each = [found.get((victim, defense), []) for victim in attacked]
        return f"{100 * _mean(each, 'der'):.1f}" if each and all(each) else NONE

    ours = [f"**{der(OURS)}**", *(der(OURS, each) for each in others.values())]
    return ["mean DER", "", "", "", "", *ours, *(der(each) for each in rivals)]


def by_defense(found: Results, suite: str) -> list[list[str]]:
    """The table of --means, with its head."""
    defenses = [each for each in dict.fromkeys(defense for _, defense in found) if each != "none"]
    victims = dict.fromkeys(victim for victim, _ in found)
    whole = [victim for victim in victims if all((victim, each) in found for each in defenses)]
    last = "ACC lost by clean ones" if suite == "published" else "RA5"
    rows = [["defense", "mean DER", "ACC lost", "most lost", "worst ASR", last], ["---"] * 6]
    for defense in sorted(defenses, key=lambda each: -_mean([found[victim, each] for victim in whole], "der")):
        each = [found[victim, defense] for victim in whole]
        attacked = [runs for runs in each if runs[0]["asr"] is not None]
        clean = [runs for runs in each if runs[0]["asr"] is None]
        most = [
            max((run[value] for runs in attacked for run in runs), default=math.nan) for value in ("acc_lost", "asr")
        ]
        values = [_mean(attacked, "der"), _mean(attacked, "acc_lost"), *most]
        values.append(_mean(clean, "acc_lost") if suite == "published" else _mean(attacked, "ra5"))
        rows.append([f"`{defense}`", *(f"{100 * value:.1f}" for value in values)])
    return rows


def _mean(each: Sequence[Sequence[Mapping[str, Any]]], value: str) -> float:
    """The mean over models of the mean over seeds; models without the value do not count."""
    known = [[run[value] for run in runs] for runs in each if runs[0].get(value) is not None]
    return sum(sum(runs) / len(runs) for runs in known) / len(known) if known else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("published", "real"), default="published")
    parser.add_argument("--all", action="store_true", help="a column for each defense")
    parser.add_argument("--means", action="store_true", help="one row a defense")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--n-clean", type=int, default=500)
    options = parser.parse_args()
    store = Store(str(options.results))
    found = results(options.suite, store, options.n_clean)
    if options.means:
        show(by_defense(found, options.suite))
        return
    computed = list(dict.fromkeys(defense for _, defense in found if defense not in ("none", OURS)))
    rivals = computed if options.all else [each for each in RIVALS if each in computed]
    counts = [count for count in OTHER_COUNTS if options.suite == "published" and count != options.n_clean]
    each = {count: results(options.suite, store, count) for count in counts}
    others = {count: found for count, found in each.items() if any(defense == OURS for _, defense in found)}
    victims = list(dict.fromkeys(victim for victim, _ in found))
    heads = ["model", "before", f"`{OURS}`", "worst ASR", "RA", "DER", *(f"{count:,} images" for count in others)]
    heads += [f"`{each}`" for each in rivals]
    rows = [row(each, found, others, rivals) for each in victims]
    show([heads, ["---"] * len(heads), *rows, last_row(victims, found, others, rivals)])


def show(rows: Sequence[Sequence[str]]) -> None:
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
