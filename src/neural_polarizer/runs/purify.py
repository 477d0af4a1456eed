"""One purification, one folder: the purified model, the layer alone, the record and the report."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from neural_polarizer.artifacts import LoadedModel, save_model, save_polarizer, versions
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.subset import clean_subset, write_index
from neural_polarizer.defenses.neural_polarizer import NeuralPolarizer
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import output_folder, read_json, write_json, write_text
from neural_polarizer.metrics import Metrics, defense_effectiveness, evaluate
from neural_polarizer.report.html import render_run
from neural_polarizer.runs.inspect import Evidence, inspect
from neural_polarizer.train import Progress, silent

PURIFIED = "purified.safetensors"
POLARIZER = "polarizer.safetensors"
RECORD = "run.json"
REPORT = "report.html"
CLEAN_INDEX = "clean_index.json"
ATTACK_RECORD = "attack.json"


def run_purify(
    loaded: LoadedModel,
    pool: ImageSet,
    defense: NeuralPolarizer,
    out: Path,
    *,
    method: str,
    n_clean: int | None,
    seed: int,
    device: torch.device,
    evidence: Evidence,
    sources: Mapping[str, str | None],
    before: Metrics | None = None,
    load_seconds: float = 0.0,
    command: Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Purify ``loaded`` into the folder ``out`` and return the record that ``out/run.json`` holds.

    Nothing is written before the model has been purified and measured, and the record comes last. A folder that
    holds this very run already (same model, images, settings, seed and versions) is returned as it is.

    Args:
        loaded: the suspicious model.
        pool: clean images; the defender's are ``n_clean`` of them (all if None), balanced over the classes.
        defense: its settings.
        out: folder for the results.
        method: the defense's name, for the record.
        n_clean: number of clean images to use.
        seed: fixes the choice of the images, the order of the batches and the random starts.
        device: where to compute.
        evidence: test data, for the figures before and after alone.
        sources: data specs, for the record.
        before: the suspicious model's figures on ``evidence``, if known already.
        load_seconds: time spent on reading model and data, for the record.
        command: arguments with which to repeat the run, for the record.
        progress: told about every step.

    Raises:
        BadInputError: the folder holds another run, or model, data or settings cannot be used.
        EnvironmentFaultError: a file cannot be written.
    """
    output_folder(out)
    started = time.perf_counter()
    indices = torch.arange(len(pool)) if n_clean is None else clean_subset(pool, n_clean, seed=seed)
    clean = pool.select(indices)
    identity = _run_id(loaded, clean, defense, evidence, method, seed)
    finished = _finished(out, identity)
    if finished is not None:
        return finished
    purified = defense.repair(loaded.model, clean, seed=seed, device=device, progress=progress)
    defended = time.perf_counter()
    if before is None:
        before = evaluate(loaded.model, evidence.test, evidence.triggered, device=device, progress=progress)
    after = evaluate(purified.model, evidence.test, evidence.triggered, device=device, progress=progress)
    surrogate, pictures = inspect(loaded.model, purified, clean, defense, evidence, device, seed)
    evaluated = time.perf_counter()
    described = replace(loaded.record, image_size=pool.image_size, classes=loaded.record.classes or pool.classes)
    record: dict[str, Any] = {
        "schema": 1,
        "run_id": identity,
        "method": method,
        "site": purified.site,
        "seed": seed,
        "suspect": purified.suspect,
        "config": asdict(defense) | {"site": purified.site},
        "n_clean": len(clean),
        "before": asdict(before),
        "after": asdict(after),
        "der": defense_effectiveness(before, after),
        "seconds": {
            "load": load_seconds,
            **purified.seconds,
            "evaluate": evaluated - defended,
            "total": load_seconds + evaluated - started,
        },
        "history": list(purified.history),
        "surrogate": surrogate,
        "model": {"path": str(loaded.path), **asdict(described)},
        "model_sha256": loaded.sha256,
        "data": dict(sources),
        "clean_sha256": clean.sha256(),
        "findings": list(loaded.findings),
        "warnings": [*purified.notes, *_warnings(before, clean, described.num_classes)],
        "device": str(device),
        "precision": defense.precision,
        "versions": versions(),
        "command": None if command is None else list(command),
    }
    saved = replace(described, site=purified.site)
    save_model(out / PURIFIED, purified.model, saved)
    assert purified.polarizer is not None
    save_polarizer(out / POLARIZER, purified.polarizer, saved)
    write_index(out / CLEAN_INDEX, indices, pool, seed)
    write_text(out / REPORT, render_run(record, pictures))
    write_json(out / RECORD, record)
    return record


def _run_id(
    loaded: LoadedModel, clean: ImageSet, defense: NeuralPolarizer, evidence: Evidence, method: str, seed: int
) -> str:
    """A hash of all that the result depends on."""
    test, triggered = evidence.test, evidence.triggered
    parts = {
        "model": [loaded.sha256, loaded.record.mean, loaded.record.std],
        "clean": clean.sha256(),
        "test": None if test is None else test.sha256(),
        "triggered": None if triggered is None else triggered.images.sha256(),
        "defense": asdict(defense),
        "method": method,
        "seed": seed,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(out: Path, identity: str) -> dict[str, Any] | None:
    if (out / ATTACK_RECORD).exists():
        raise BadInputError(f"{out}: holds an attack, which would be mixed up with the result; choose another --out")
    if not (out / RECORD).exists():
        return None
    found = read_json(out / RECORD)
    if found.get("run_id") == identity:
        return found
    raise BadInputError(
        f"{out}: holds another run (method {found.get('method')}, seed {found.get('seed')}); "
        "choose another --out or remove that folder"
    )


def _warnings(before: Metrics, clean: ImageSet, num_classes: int) -> list[str]:
    found = []
    if before.acc is not None and before.acc < 0.5:
        found.append(
            f"the model classifies only {100 * before.acc:.1f} % of the clean test images correctly before anything "
            "was done: check --profile (normalisation) and the order of the classes"
        )
    empty = num_classes - int(clean.labels.unique().numel())
    if empty > 0:
        found.append(f"{empty} of {num_classes} classes have no clean image, so accuracy on them is not protected")
    return found
