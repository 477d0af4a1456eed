"""One cell, computed: the only place of the benchmark where networks are trained and measured."""

import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from neural_polarizer.attacks.base import LearnedTrigger
from neural_polarizer.bench import analyses
from neural_polarizer.bench.cells import SCHEMA, Cell, GivenCell, LemmaCell, PurificationCell, VictimCell
from neural_polarizer.bench.given import PublishedTrigger
from neural_polarizer.bench.memory import peak_memory, reset_peak_memory
from neural_polarizer.bench.reactivation import reactivated
from neural_polarizer.bench.sources import Sources
from neural_polarizer.bench.store import Store
from neural_polarizer.cache import SEAL
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import TriggeredSet, poison, read_triggered, triggered_test
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.devices import choose_device
from neural_polarizer.errors import BadInputError, EnvironmentFaultError, NeuralPolarizerError
from neural_polarizer.files import read_json, sha256_of_file
from neural_polarizer.metrics import Metrics, defense_effectiveness, evaluate
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import versions
from neural_polarizer.rng import stream
from neural_polarizer.runs.attack import FILES, MODEL, RECORD, TRIGGER, TRIGGERED, Planting, cached_attack, load_attack

Record = dict[str, Any]
"""What is kept of a cell (``report.bench.results.Record``)."""

CLEAN_SHARE = 0.05
USUAL_RATE = 0.1
"""Of poisoned training images, where a victim does not say its own."""
NEEDED = (MODEL, TRIGGERED, TRIGGER, RECORD)
"""The artefacts of a victim without which nothing can be made of it."""

_RATES = ("acc", "asr", "ra", "n_test", "n_triggered")


@dataclass(frozen=True)
class Bench:
    """What every cell is computed with."""

    store: Store  # where records and artefacts go
    sources: Sources  # where the data sets lie
    models: Path | None = None  # the folder with the files of victims that are given
    device: str | None = None  # where to compute; None chooses one
    threads: int | None = None  # of torch; None leaves them alone

    def compute(self, cell: Cell) -> Record:
        """Compute a cell and keep its record, which is returned; an error becomes a record with its text.

        Only what the machine fails in (``EnvironmentFaultError``) is raised, as it would fail all cells alike.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        started, begun = datetime.now(timezone.utc), time.perf_counter()
        reset_peak_memory()
        device = choose_device(self.device)
        result: dict[str, Any] | None = None
        error = None
        try:
            result = self._result(cell, device)
            if not isinstance(cell, VictimCell):  # which may come from the cache
                peak = peak_memory()
                result["peak_mb"] = None if peak is None else peak / 2**20
        except EnvironmentFaultError:  # a full disk fails all cells alike
            raise
        except NeuralPolarizerError as raised:
            error = str(raised)
        except Exception as raised:  # a method of someone else's may raise anything; the other cells go on
            last = traceback.extract_tb(raised.__traceback__)[-1]
            error = f"{type(raised).__name__}: {raised} ({Path(last.filename).name}, line {last.lineno})"
        record = {
            **described(cell),
            "status": "done" if error is None else "failed",
            "error": error,
            "result": result,
            "provenance": {
                "started": started.isoformat(timespec="seconds"),
                "seconds": time.perf_counter() - begun,
                "versions": versions(),
                "device": str(device),
                "threads": torch.get_num_threads(),
            },
        }
        self.store.write(record)
        return record

    def _result(self, cell: Cell, device: torch.device) -> dict[str, Any]:
        if isinstance(cell, VictimCell):
            return self._planted(cell, device)
        if isinstance(cell, GivenCell):
            return self._given(cell, device)
        if isinstance(cell, PurificationCell):
            return self._made_of_victim(cell, device)
        assert isinstance(cell, LemmaCell)
        return self._with_pictures(cell, *analyses.lemma1(cell.seed))

    def _planted(self, cell: VictimCell, device: torch.device) -> dict[str, Any]:
        train, test = self.sources.read(cell.data, cell.images)
        init = None if cell.init is None else cell.init.load(self._models)
        folder = cached_attack(Planting(cell.attack, train, test, cell.victim, init), device=device)
        record = read_json(folder / RECORD)
        self.store.keep(cell.id, [folder / name for name in (*FILES, SEAL)])
        ra5 = {}
        if init is not None:  # the reference for those of the purified implants: the backdoor was never there
            trigger = LearnedTrigger(*load_attack(folder, own=type(cell.attack)))
            shown = read_triggered(folder / TRIGGERED, size=train.image_size, num_classes=train.num_classes)
            seed = cell.victim.seed
            ra5["ra5"] = reactivated(init.model, train, trigger, shown, seed=seed, device=device)
        return {
            **{rate: record[rate] for rate in _RATES},
            **ra5,
            "seconds": record["seconds"]["trigger"] + record["seconds"]["train"],
            "phases": record["seconds"],
            "model_sha256": record["model_sha256"],
            "data_sha256": {"train": record["data_sha256"], "test": record["test_sha256"]},
        }

    def _given(self, cell: GivenCell, device: torch.device) -> dict[str, Any]:
        """What a published model does before anything is done to it: its ASR and RA are None where it is clean."""
        begun = time.perf_counter()
        loaded = cell.given.load(self._models)
        train, test = self.sources.read(cell.data)
        trigger = cell.given.stamp(self._models)
        triggered = None if trigger is None else triggered_test(test, trigger)
        found = evaluate(loaded.model, test, triggered, device=device)
        return {
            **asdict(found),
            "seconds": time.perf_counter() - begun,
            "model_sha256": loaded.sha256,
            "definition_sha256": loaded.record.definition,
            "data_sha256": {"train": train.sha256(), "test": test.sha256()},
            "notes": [*loaded.threats, *loaded.findings],
        }

    @property
    def _models(self) -> Path:
        if self.models is None:
            raise BadInputError("networks that are given need --models FOLDER, with the files of the manifest")
        return self.models

    def _scene(self, cell: PurificationCell) -> "_Scene":
        """The victim, as it was measured, and its images; others than those that it was measured on are refused."""
        train, test = self.sources.read(cell.victim.data, cell.victim.images)
        hashes = {"train": train.sha256(), "test": test.sha256()}
        if isinstance(cell.victim, GivenCell):
            record = self.store.records([cell.victim.id]).get(cell.victim.id) or {}
            victim = record.get("result") or {}
            if victim.get("data_sha256") != hashes:
                raise BadInputError(
                    f"{test.source}: these are not the images that the victim {cell.victim.given.name} was measured "
                    "on; choose another --out for them"
                )
            model, trigger = cell.victim.given.load(self._models).model, cell.victim.given.stamp(self._models)
            triggered = None if trigger is None else triggered_test(test, trigger)
            return _Scene(model, trigger, train, test, triggered, victim)
        folder = self.store.fetch(cell.victim.id)
        victim = read_json(folder / RECORD)
        if {"train": victim["data_sha256"], "test": victim["test_sha256"]} != hashes:
            raise BadInputError(
                f"{train.source}: these are not the images that the victim in {folder} was trained on; choose another "
                "--out for them"
            )
        learned = LearnedTrigger(*load_attack(folder, own=type(cell.victim.attack)))
        code = None if cell.victim.init is None else cell.victim.init.definition()
        model = load_model(folder / MODEL, architecture=code).model
        triggered = read_triggered(folder / TRIGGERED, size=train.image_size, num_classes=train.num_classes)
        return _Scene(model, learned, train, test, triggered, victim)

    def _made_of_victim(self, cell: PurificationCell, device: torch.device) -> dict[str, Any]:
        model, trigger, train, test, triggered, victim = self._scene(cell)
        weights = {"model_sha256": victim["model_sha256"]}
        if cell.kind == "distances":
            assert isinstance(trigger, LearnedTrigger), "analyses are of trained victims"
            study = analyses.distances(model, cell.defense, test, trigger, device)
            return self._with_pictures(cell, *study) | weights
        five_percent = max(1, int(len(train) * CLEAN_SHARE) // train.num_classes) * train.num_classes
        clean = train.select(clean_subset(train, cell.n_clean or five_percent, seed=cell.seed))
        shown = None
        if cell.defense.sees_mixture:
            shown = mixture(trigger, train, len(clean), cell.seed)
        patient = admitted(model, clean, device=device, force=True)  # a victim that learned little is a result, too
        purified = patient.repaired(cell.defense, seed=cell.seed, device=device, shown=shown)
        before = Metrics(**{rate: victim[rate] for rate in _RATES})
        after = evaluate(purified.model, test, triggered, device=device)
        result = {
            **asdict(after),
            "before": asdict(before),
            "der": defense_effectiveness(before, after),
            "acc_lost": None if before.acc is None or after.acc is None else before.acc - after.acc,
            "seconds": sum(purified.seconds.values()),
            "phases": dict(purified.seconds),
            "n_clean": len(clean),
            "site": purified.site,
            "suspect": purified.suspect,
            "audit": None if purified.audit is None else purified.audit.summary,
            "guarded": None if purified.guarded is None else asdict(purified.guarded),
            "notes": list(purified.notes),
            **weights,
        }
        if cell.kind == "reactivation":
            assert trigger is not None, "a clean victim has nothing to bring back"
            assert triggered is not None
            result["ra5"] = reactivated(purified.model, train, trigger, triggered, seed=cell.seed, device=device)
        if cell.kind == "gradcam":
            assert isinstance(trigger, LearnedTrigger), "analyses are of trained victims"
            result |= self._with_pictures(cell, *analyses.gradcam(model, purified.model, test, trigger, device))
        return result

    def _with_pictures(self, cell: Cell, result: dict[str, Any], pictures: analyses.Pictures) -> dict[str, Any]:
        """Keep the pictures as the cell's artefacts; the result names them."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in pictures]
            for path, png in zip(paths, pictures.values(), strict=True):
                path.write_bytes(png)
            self.store.keep(cell.id, paths)
            hashes = {path.name: sha256_of_file(path) for path in paths}
        return {**result, "pictures": list(pictures), "files": hashes}


class _Scene(NamedTuple):
    """A victim with what it is purified and measured on; ``trigger`` and ``triggered`` are None where it is clean."""

    model: nn.Module
    trigger: LearnedTrigger | PublishedTrigger | None
    train: ImageSet
    test: ImageSet
    triggered: TriggeredSet | None
    victim: Mapping[str, Any]


def described(cell: Cell) -> Record:
    """What a record says of the cell itself."""
    return {"schema": SCHEMA, "id": cell.id, "kind": cell.kind, "request": cell.request}


def failed_record(cell: Cell, error: str) -> Record:
    """The record of a cell that could not even begin, or did not come back."""
    return {**described(cell), "status": "failed", "error": error, "result": None, "provenance": {}}


def mixture(trigger: LearnedTrigger | PublishedTrigger | None, train: ImageSet, count: int, seed: int) -> ImageSet:
    """A random part of the training set, poisoned with the victim's trigger, at its rate or at ``USUAL_RATE``."""
    rows = torch.randperm(len(train), generator=stream(seed, "mixture"))[:count]
    if trigger is None:
        return train.select(rows)
    if isinstance(trigger, LearnedTrigger):
        return trigger.attack.poisoned(train.select(rows), trigger.state, seed=seed).images
    return poison(train.select(rows), trigger, rate=USUAL_RATE, seed=seed).images
