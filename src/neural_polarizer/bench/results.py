"""From suites and their store to what the report is made of, and the report as files.

The paper's tables are in our names; ``paper/README.md`` tells where they come from and what is wrong with them.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.schedule import current
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import BenchScale, Suite
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import check_free, output_folder, write_text
from neural_polarizer.report.bench.results import Entry, Label, PaperValue, SuiteResult
from neural_polarizer.report.bench.site import render_site
from neural_polarizer.report.html import Picture

CAPTIONS = {
    "cams.png": "From above: clean images, triggered ones, where the backdoored network looks, and the purified.",
    "images.png": "From above: clean, triggered, perturbed with and without a target; the changes, amplified.",
    "scatter-0.png": "The four versions of each image, as pixels.",
    "scatter-1.png": "The same at what enters the insertion site of the backdoored network.",
    "scatter-2.png": "The same behind its last stage.",
    "lemma1.png": "Between no projection and the whole one.",
}
"""What the pictures of the analyses show."""
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
_TITLE = "<title>Neural Polarizer benchmark</title>"  # of a site that we wrote


def suite_result(suite: Suite, store: Store, scale: BenchScale | None = None) -> SuiteResult:
    """All that is known of a suite: its cells with their records, the paper's numbers beside them."""
    cells = planned(suite, scale)
    records = current([each.cell for each in cells], store)
    return SuiteResult(
        suite.name,
        suite.title,
        suite.about,
        suite.layout,
        tuple(Entry(each.labels, records.get(each.cell.id)) for each in cells),
        paper_values(suite.paper) if suite.paper else (),
    )


def publish(results: Sequence[SuiteResult], store: Store, out: Path) -> None:
    """Write the site of ``results`` into the folder ``out``, with the pictures that the store has."""
    output_folder(out)
    pictures = {
        result.name: [each for entry in result.entries for each in _pictures(entry, store)] for result in results
    }
    site = render_site(results, pictures)
    index = out / next(iter(site))  # written first: where it is ours, all is
    if not (index.is_file() and _TITLE in index.read_text(encoding="utf-8", errors="replace")):
        check_free(out, site)
    for name, text in site.items():
        write_text(out / name, text)


def _pictures(entry: Entry, store: Store) -> list[Picture]:
    names = ((entry.record or {}).get("result") or {}).get("pictures", [])
    if entry.record is None or not store.with_artefacts([entry.record["id"]], names) or not names:
        return []
    folder = store.fetch(entry.record["id"])
    title = str(entry.labels.get("attack", entry.record["kind"]))
    return [Picture(title, CAPTIONS.get(name, name), (folder / name).read_bytes(), "pictures") for name in names]


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
