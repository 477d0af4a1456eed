"""From suites and their store to what the report is made of."""

from collections import Counter

from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.paper import paper_values
from neural_polarizer.bench.schedule import current
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.suite import BenchScale, Suite
from neural_polarizer.report.bench.results import Entry, SuiteResult


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


def states(suite: Suite, store: Store, scale: BenchScale | None = None) -> Counter[str]:
    """How many of a suite's cells are "done", "failed" or "missing"."""
    cells = [each.cell for each in planned(suite, scale)]
    records = current(cells, store)
    return Counter(records[cell.id]["status"] if cell.id in records else "missing" for cell in cells)
