"""The paper's tables, in our names (``paper/README.md`` tells where they come from and what is wrong with them)."""

import csv
from collections.abc import Callable, Mapping
from importlib.resources import files

from neural_polarizer.errors import BadInputError
from neural_polarizer.report.bench.results import Label, PaperValue

_RATES = ("acc", "asr", "der")

_LOSS_TERMS = ("bce1", "bce2", "asr")
_ATTACKS = {"avg": "mean", "badnets_a2o": "badnets"}
_STRUCTURES: Mapping[str, str] = {"conv_bn_x2": "conv-bn-x2", "conv_bn": ""}
_LABELS: Mapping[str, Callable[[str], tuple[str, Label]]] = {
    "dataset": lambda text: ("data", text),
    "model": lambda text: ("model", text),
    "attack": lambda text: ("attack", _ATTACKS.get(text, text.replace("_", "-"))),
    "defense": lambda text: ("defense", text.replace("_", "-")),
    "poisoning_ratio_pct": lambda text: ("poison_rate", float(text) / 100),
    "n_clean": lambda text: ("n_clean", int(text)),
    "backdoor_training": lambda text: ("adaptive", text == "adversarial"),
    "structure": lambda text: ("variant", _STRUCTURES.get(text, text.replace("_", "-"))),
    "layer": lambda text: ("site", text.replace("_", "-")),
}


def paper_values(name: str) -> tuple[PaperValue, ...]:
    """The cells of a table, by the beginning of its file's name, such as "table05"."""
    folder = files("neural_polarizer.bench") / "paper"
    found = [item for item in folder.iterdir() if item.name.startswith(name) and item.name.endswith(".csv")]
    if not name or len(found) != 1:
        raise BadInputError(f"the paper has no table {name!r}")
    lines = found[0].read_text(encoding="utf-8").splitlines()
    return tuple(_value(row) for row in csv.DictReader(lines))


def _value(row: Mapping[str, str]) -> PaperValue:
    labels = dict(_LABELS[column](text) for column, text in row.items() if column in _LABELS and text)
    if "loss_asr" in row:
        labels["variant"] = "+".join(("bn", *(term for term in _LOSS_TERMS if row[f"loss_{term}"] == "1")))
    if row.get("label_mode") == "all2all":
        labels["attack"] = f"{labels['attack']}-a2a"
    der = row.get("der_recomputed") or row.get("der")  # table 6 has a slip in its own (README)
    values = {rate: float(row[rate]) / 100 for rate in _RATES if row.get(rate)}
    if der:
        values["der"] = float(der) / 100
    if row.get("seconds"):
        values["seconds"] = float(row["seconds"])
    return PaperValue(labels, values)
