"""Which cells are missing, and in which order they are computed."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from neural_polarizer.bench.cells import Cell, GivenCell, VictimCell
from neural_polarizer.bench.engines import InlineEngine, RayEngine
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.work import NEEDED, Record, failed_record


def current(cells: Iterable[Cell], store: Store) -> dict[str, Record]:
    """The records that hold, by id: of this form, and of the victims that are there now.

    A purification whose victim has been trained anew, to other weights, does not count.
    """
    cells = list(cells)
    victims = {cell.needs.id for cell in cells if cell.needs is not None}
    found = store.records({cell.id for cell in cells} | victims)
    weights = {name: (found[name].get("result") or {}).get("model_sha256") for name in victims & found.keys()}

    def holds(cell: Cell) -> bool:
        if cell.id not in found:
            return False
        result, needed = found[cell.id].get("result") or {}, cell.needs
        return needed is None or not result or weights.get(needed.id) in (None, result.get("model_sha256"))

    return {cell.id: found[cell.id] for cell in cells if holds(cell)}


def missing(cells: Sequence[Cell], records: Mapping[str, Record], store: Store) -> list[Cell]:
    """The cells to compute: those without a finished record, and victims whose artefacts these need.

    Of a victim that is given, no artefacts are kept: its record is enough. A failed cell is tried again.
    """
    todo = [cell for cell in cells if records.get(cell.id, {}).get("status") != "done"]
    needed = {cell.needs.id: cell.needs for cell in todo if cell.needs is not None}
    given = [name for name, victim in needed.items() if isinstance(victim, GivenCell)]
    whole = {name for name, record in store.records(given).items() if record["status"] == "done"}
    whole |= store.with_artefacts([name for name in needed if name not in given], NEEDED)
    again: dict[str, Cell] = {name: victim for name, victim in needed.items() if name not in whole}
    again |= {cell.id: cell for cell in todo if isinstance(cell, VictimCell | GivenCell)}
    return [*again.values(), *(cell for cell in todo if cell.id not in again)]


def run(todo: Sequence[Cell], engine: InlineEngine | RayEngine, store: Store) -> Iterator[tuple[Cell, Record | None]]:
    """Compute all of ``todo``; cells wait for their victim, and fail with it.

    Gives every cell when it begins, and again with its record; one that is lost with its victim never begins.
    """
    victims = {cell.id for cell in todo if isinstance(cell, VictimCell | GivenCell)}
    ready: deque[Cell] = deque()
    waiting: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell in todo:
        if cell.needs is not None and cell.needs.id in victims:
            waiting[cell.needs.id].append(cell)
        else:
            ready.append(cell)
    running = 0
    while ready or running:
        while ready and running < engine.slots:
            cell = ready.popleft()
            engine.submit(cell)
            yield cell, None
            running += 1
        cell, record = engine.next()
        running -= 1
        yield cell, record
        released = waiting.pop(cell.id, [])
        if record["status"] == "done":
            ready.extend(released)
            continue
        for lost in released:
            failed = failed_record(lost, f"its victim {cell.id} failed: {record['error']}")
            store.write(failed)
            yield lost, failed
