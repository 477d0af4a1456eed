"""How a suite's records become a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from neural_polarizer.report.bench.names import DIRECTIONS, MEAN, UNDEFENDED, number_text
from neural_polarizer.report.bench.results import Entry, Label, PaperValue, SuiteResult
from neural_polarizer.report.bench.tables import REPEATS, RIVALS, Cell, Figure, Key, Place, Rank, Table
from neural_polarizer.report.values import number, table

_KIN = ("data", "model")
_OF_VICTIM = (*_KIN, "attack", "poison_rate", "adaptive", "victim_seed")
_LEAST_ASR = 0.5


def make_table(suite: SuiteResult) -> Table:
    """Arrange a suite's records by its layout.

    Axes that the layout leaves out are added where runs of different meaning would otherwise be averaged.
    """
    rows, columns = _axes(suite)
    no_victims = failed_attacks(suite.entries)
    cells = {
        place: _measured(suite, runs, attack_failed=any(_key(run.labels, _OF_VICTIM) in no_victims for run in runs))
        for place, runs in _groups(suite.entries, rows, columns).items()
    }
    cells |= _averages(suite, cells, rows, columns)
    return Table(
        name=suite.name,
        title=suite.title,
        row_axes=rows,
        column_axes=columns,
        values=suite.layout.values,
        cells=_ranked(cells, rows + columns),
    )


def _axes(suite: SuiteResult) -> tuple[tuple[str, ...], tuple[str, ...]]:
    rows, columns = suite.layout.rows, suite.layout.columns
    named = dict.fromkeys(axis for entry in suite.entries for axis in entry.labels)
    for axis in ("defense", *named):
        if axis not in (*REPEATS, *rows, *columns) and _would_mix(suite.entries, axis, rows, columns):
            if set(RIVALS) & set(rows) and not set(RIVALS) & set(columns):
                rows = (*rows, axis)
            else:
                columns = (*columns, axis)
    return rows, columns


def _would_mix(entries: Sequence[Entry], axis: str, rows: Sequence[str], columns: Sequence[str]) -> bool:
    # "defense" is always told apart: what an undefended model leaves empty could be taken for a default
    groups = [entries] if axis == "defense" else _groups(entries, rows, columns).values()
    return any(len({entry.labels.get(axis, "") for entry in runs}) > 1 for runs in groups)


def _groups(entries: Sequence[Entry], rows: Sequence[str], columns: Sequence[str]) -> dict[Place, list[Entry]]:
    groups: dict[Place, list[Entry]] = {}
    for entry in entries:
        groups.setdefault((_key(entry.labels, rows), _key(entry.labels, columns)), []).append(entry)
    return groups


def _key(labels: Mapping[str, Label], axes: Sequence[str]) -> Key:
    return tuple(labels.get(axis, "") for axis in axes)


def failed_attacks(entries: Iterable[Entry]) -> frozenset[Key]:
    """The victims that are none, as their labels: no defense can be judged by them.

    Their ACC is less than half of that of the best victim of the same data set and network, or their ASR less than
    half.
    """
    rates: dict[Key, tuple[float, float]] = {}
    best: dict[Key, float] = {}
    for entry in entries:
        result = table(entry.record or {}, "result")
        acc, asr = number(result.get("acc")), number(result.get("asr"))
        if entry.labels.get("defense") == UNDEFENDED and acc is not None and asr is not None:
            rates[_key(entry.labels, _OF_VICTIM)] = acc, asr
            kin = _key(entry.labels, _KIN)
            best[kin] = max(acc, best.get(kin, 0.0))
    return frozenset(
        victim for victim, (acc, asr) in rates.items() if acc < best[victim[: len(_KIN)]] / 2 or asr < _LEAST_ASR
    )


def _measured(suite: SuiteResult, runs: Sequence[Entry], *, attack_failed: bool) -> Cell:
    labels = {axis: label for axis, label in _shared([run.labels for run in runs]).items() if axis not in REPEATS}
    done = [run.record for run in runs if run.record is not None and run.record.get("status") == "done"]
    figures = {}
    for value in suite.layout.values:
        known = _known(number(table(record, "result").get(value)) for record in done)
        mean, spread = fmean(known) if known else None, stdev(known) if len(known) > 1 else None
        figures[value] = Figure(mean, spread, len(known), _published(suite.paper, labels, value))
    return Cell(labels, figures, tuple(runs), attack_failed)


def _known(numbers: Iterable[float | None]) -> list[float]:
    return [each for each in numbers if each is not None]


def _shared(labels: Sequence[Mapping[str, Label]]) -> dict[str, Label]:
    first, *others = labels
    return {axis: label for axis, label in first.items() if all(other.get(axis) == label for other in others)}


def _published(paper: Iterable[PaperValue], labels: Mapping[str, Label], value: str) -> float | None:
    """The paper's number for these labels; none if several of its cells fit, for want of an axis."""
    fitting = {
        cell.values[value]
        for cell in paper
        if value in cell.values and all(labels[axis] == label for axis, label in cell.labels.items() if axis in labels)
    }
    return fitting.pop() if len(fitting) == 1 else None


def _averages(
    suite: SuiteResult, cells: Mapping[Place, Cell], rows: Sequence[str], columns: Sequence[str]
) -> dict[Place, Cell]:
    """A row, or column, for the mean over the attacks."""
    if "attack" not in (*rows, *columns):
        return {}
    line = 0 if "attack" in rows else 1
    parts: dict[Place, list[Cell]] = {}
    attacks: dict[Key, set[Label]] = {}
    for (row, column), cell in cells.items():
        if cell.attack_failed:
            continue
        place = _without_attack(rows, row), _without_attack(columns, column)
        parts.setdefault(place, []).append(cell)
        attacks.setdefault(place[line], set()).add(cell.labels.get("attack", ""))
    return {
        place: _average(suite, found, wanted=len(attacks[place[line]]))
        for place, found in parts.items()
        if len(attacks[place[line]]) > 1
    }


def _without_attack(axes: Sequence[str], key: Key) -> Key:
    return tuple(MEAN if axis == "attack" else label for axis, label in zip(axes, key, strict=True))


def _average(suite: SuiteResult, cells: Sequence[Cell], *, wanted: int) -> Cell:
    labels = _shared([cell.labels for cell in cells]) | {"attack": MEAN}
    figures = {}
    for value in suite.layout.values:
        known = _known(cell.figures[value].mean for cell in cells)
        mean = fmean(known) if len(known) == wanted else None
        figures[value] = Figure(mean, None, len(known), _published(suite.paper, labels, value))
    return Cell(labels, figures, ())


def _ranked(cells: Mapping[Place, Cell], axes: Sequence[str]) -> dict[Place, Cell]:
    """The same cells; of those that differ in the method alone, the best and the second best are marked."""
    ranked = dict(cells)
    contests: dict[Key, list[Place]] = {}
    for place, cell in cells.items():
        if cell.labels.get("defense") != UNDEFENDED:
            conditions = [axis for axis in axes if axis not in RIVALS]
            contests.setdefault(_key(cell.labels, conditions), []).append(place)
    for places in contests.values():
        for value, direction in DIRECTIONS.items():
            means = {place: cells[place].figures[value].mean for place in places if value in cells[place].figures}
            shown = {  # ties are what looks equal
                place: direction * float(number_text(value, mean)) for place, mean in means.items() if mean is not None
            }
            for place, rank in _ranks(shown, planned=len(places)).items():
                cell = ranked[place]
                figures = {**cell.figures, value: replace(cell.figures[value], rank=rank)}
                ranked[place] = replace(cell, figures=figures)
    return ranked


def _ranks(scores: Mapping[Place, float], *, planned: int) -> dict[Place, Rank]:
    """The highest and the second highest of the scores; none for a single one, no second one of only two."""
    if len(scores) < 2:
        return {}
    best, *others = sorted(set(scores.values()), reverse=True)
    ranks: dict[Place, Rank] = {place: "best" for place, score in scores.items() if score == best}
    if others and planned > 2:
        ranks |= {place: "second" for place, score in scores.items() if score == others[0]}
    return ranks
