"""Records, their order, and that nothing is computed twice."""

import json
from pathlib import Path

import pytest
from bench_cases import TWO_BY_THREE, Fake, cells_of, fake_record, run_missing

from neural_polarizer.bench.cells import VictimCell
from neural_polarizer.bench.engines import InlineEngine
from neural_polarizer.bench.schedule import current, missing
from neural_polarizer.bench.store import Store
from neural_polarizer.cache import key_of
from neural_polarizer.errors import BadInputError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "results"))


def test_every_cell_is_computed_once_and_its_victim_before_it(store: Store) -> None:
    cells, work = cells_of(TWO_BY_THREE), Fake(store)
    assert run_missing(cells, store, InlineEngine(work)) == ["done"] * 14
    assert sorted(work.computed) == sorted(cell.id for cell in cells)
    for cell in cells:
        if cell.needs is not None:
            assert work.computed.index(cell.needs.id) < work.computed.index(cell.id)
    assert run_missing(cells, store, InlineEngine(work)) == []
    assert len(work.computed) == 14
    assert {name: record["result"]["acc"] for name, record in current(cells, store).items()} == {
        cell.id: fake_record(cell)["result"]["acc"] for cell in cells
    }


def test_a_changed_option_computes_what_depends_on_it_alone(store: Store) -> None:
    work = Fake(store)
    run_missing(cells_of(TWO_BY_THREE), store, InlineEngine(work))
    work.computed.clear()
    changed = cells_of(TWO_BY_THREE + "\n[options.attack.blended]\nalpha = 0.1\n")
    run_missing(changed, store, InlineEngine(work))
    assert len(work.computed) == 1 + 6
    work.computed.clear()
    run_missing(cells_of(TWO_BY_THREE + "\n[options.defense.ft]\n'schedule.lr' = 0.001\n"), store, InlineEngine(work))
    assert len(work.computed) == 6


def test_a_failed_victim_takes_its_cells_along_and_all_are_tried_again(store: Store) -> None:
    cells = cells_of(TWO_BY_THREE)
    work = Fake(store, fails=lambda cell: isinstance(cell, VictimCell) and "alpha" in cell.request["attack"])
    assert sorted(run_missing(cells, store, InlineEngine(work))) == ["done"] * 7 + ["failed"] * 7
    records = current(cells, store)
    errors = [record["error"] for record in records.values() if record["status"] == "failed"]
    assert sum("its victim" in error and "on purpose" in error for error in errors) == 6
    work.fails = lambda cell: False
    assert run_missing(cells, store, InlineEngine(work)) == ["done"] * 7


def test_a_record_that_is_damaged_or_of_another_victim_is_computed_anew(store: Store) -> None:
    cells, work = cells_of(TWO_BY_THREE), Fake(store)
    run_missing(cells, store, InlineEngine(work))
    folder = Path(store.url) / "records"
    (folder / f"{cells[2].id}.json").write_text("{")
    (folder / f"{cells[3].id}.json").write_text('["status"]')
    other = fake_record(cells[0])
    other["result"]["model_sha256"] = "other weights"
    store.write(other)
    work.computed.clear()
    run_missing(cells, store, InlineEngine(work))
    depending = {cell.id for cell in cells if cell.needs is not None and cell.needs.id == cells[0].id}
    assert set(work.computed) == depending | {cells[2].id, cells[3].id}
    assert len(depending) == 6


def test_a_victim_whose_files_are_gone_is_trained_again_only_if_it_is_needed(store: Store) -> None:
    cells, work = cells_of(TWO_BY_THREE), Fake(store)
    run_missing(cells, store, InlineEngine(work))
    for folder in (Path(store.url) / "artefacts").iterdir():
        for path in folder.iterdir():
            path.unlink()
    assert missing(cells, current(cells, store), store) == []
    more = cells_of(TWO_BY_THREE.replace("[0, 1, 2]", "[0, 1, 2, 3]").replace('"badnets", ', ""))
    todo = missing(more, current(more, store), store)
    assert [cell.kind for cell in todo] == ["victim", "purification", "purification"]


def test_records_are_whole_files_that_say_all(store: Store) -> None:
    store.prepare()
    cell = cells_of(TWO_BY_THREE)[1]
    Fake(store)(cell)
    path = Path(store.url) / "records" / f"{cell.id}.json"
    assert json.loads(path.read_text()) == fake_record(cell) | {"sha256": key_of(fake_record(cell))}
    assert not [each for each in path.parent.iterdir() if each != path]
    assert fake_record(cell)["request"]["defense"]["schedule"]["epochs"] == 1


def test_an_address_of_fsspec_works_as_a_folder_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARIZER_HOME", str(tmp_path / "home"))
    store = Store("memory://bench-test")
    store.prepare()
    cells = cells_of(TWO_BY_THREE)
    store.write(fake_record(cells[0]))
    store.write(fake_record(cells[1]))
    assert current(cells, store).keys() == {cells[0].id, cells[1].id}
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    store.keep(cells[0].id, [tmp_path / "model.safetensors"])
    assert store.with_artefacts([cells[0].id, cells[1].id], ["model.safetensors"]) == {cells[0].id}
    assert (store.fetch(cells[0].id) / "model.safetensors").read_bytes() == b"weights"
    for other, content in ((Store("memory://bench-other"), b"of another store"), (store, b"trained anew")):
        (tmp_path / "model.safetensors").write_bytes(content)
        other.keep(cells[0].id, [tmp_path / "model.safetensors"])
        assert (other.fetch(cells[0].id) / "model.safetensors").read_bytes() == content


def test_a_folder_without_the_artefacts_is_told(store: Store) -> None:
    with pytest.raises(BadInputError, match="artefacts of this cell are gone"):
        store.fetch("0" * 20)
    with pytest.raises(BadInputError, match="nowhere"):
        Store("nowhere://x").prepare()
