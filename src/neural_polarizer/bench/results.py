"""From suites and their store to what the report is made of, and the report as files."""

from collections.abc import Sequence
from pathlib import Path

from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.paper import paper_values
from neural_polarizer.bench.schedule import current
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import BenchScale, Suite
from neural_polarizer.files import check_free, output_folder, write_text
from neural_polarizer.report.bench.results import Entry, SuiteResult
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
