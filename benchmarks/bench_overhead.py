"""What the benchmark itself costs: thousands of cells with empty work.

    python benchmarks/bench_overhead.py --cells 10000 --engine ray
    python benchmarks/bench_overhead.py --cells 10000 --engine ray --address auto     # a cluster that runs already

Prints the seconds a cell, the driver's peak memory, and how long a run takes that finds all but 100 of them done. The
cells are those of a suite with many seeds; their work is to write a record.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from neural_polarizer.bench.cells import Cell, VictimCell
from neural_polarizer.bench.engines import InlineEngine, RayEngine, Resources, ray_engine
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.memory import peak_memory
from neural_polarizer.bench.schedule import current, missing, run
from neural_polarizer.bench.store import ARTEFACTS, RECORDS, Store
from neural_polarizer.bench.suite import parse_suite
from neural_polarizer.bench.work import NEEDED, described

SUITE = """
scale = "smoke"
[[grid]]
attack = ["badnets", "blended", "trojan", "ssba"]
defense = ["ft", "npd"]
seed = [{seeds}]
"""


def empty(store: Store, cell: Cell) -> dict[str, Any]:
    """Work that only writes a record, and a victim's files."""
    victim = cell.id if cell.needs is None else cell.needs.id
    if isinstance(cell, VictimCell):
        place = Path(store.url) / ARTEFACTS / cell.id
        place.mkdir(parents=True, exist_ok=True)
        for name in NEEDED:
            (place / name).touch()
    result = {"acc": 0.5, "asr": 0.5, "model_sha256": victim}
    record = {**described(cell), "status": "done", "error": None, "result": result, "provenance": {}}
    store.write(record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--engine", choices=["ray", "inline"], default="ray")
    parser.add_argument("--address")
    parser.add_argument("--out", type=Path, help="folder for the records; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Store(str(options.out or folder)))


def measure(options: argparse.Namespace, store: Store) -> None:
    store.prepare()
    begun = time.perf_counter()
    seeds = ", ".join(map(str, range(options.cells // 8)))
    cells = [each.cell for each in planned(parse_suite(SUITE.format(seeds=seeds), "overhead"))]
    print(f"{len(cells)} cells planned in {time.perf_counter() - begun:.2f} s", flush=True)

    def go(engine: InlineEngine | RayEngine) -> None:
        begun = time.perf_counter()
        todo = missing(cells, current(cells, store), store)
        found = time.perf_counter()
        for _ in run(todo, engine, store):
            pass
        done = time.perf_counter()
        print(
            f"  {len(todo)} missing, found in {found - begun:.2f} s; computed in {done - found:.2f} s, "
            f"{1000 * (done - found) / max(1, len(todo)):.2f} ms a cell; peak {(peak_memory() or 0) / 2**20:.0f} MiB",
            flush=True,
        )

    def twice(engine: InlineEngine | RayEngine) -> None:
        go(engine)
        for cell in cells[-100:]:
            (Path(store.url) / RECORDS / f"{cell.id}.json").unlink()
        go(engine)

    work = partial(empty, store)
    if options.engine == "inline":
        twice(InlineEngine(work))
        return
    begun = time.perf_counter()
    with ray_engine(work, store, Resources(), address=options.address, workers=None) as engine:
        print(f"Ray is there after {time.perf_counter() - begun:.1f} s", flush=True)
        twice(engine)


if __name__ == "__main__":
    main()
