"""One purification, one folder: the purified model, the layer alone if there is one, the record and the report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.subset import clean_subset, write_index
from neural_polarizer.defenses.base import Defense
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.files import output_folder, sha256_of_file, write_json, write_text
from neural_polarizer.metrics import Metrics, defense_effectiveness, evaluate
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.model_files.record import versions
from neural_polarizer.model_files.save import save_model, save_polarizer
from neural_polarizer.report.run.page import render_run
from neural_polarizer.report.run.verdict_files import SARIF, VERDICT, run_sarif, run_verdict
from neural_polarizer.runs.inspect import Evidence, inspect
from neural_polarizer.runs.purify_checks import (
    RECORD,
    check_mixture,
    check_no_layer,
    finished,
    remarks,
    run_id,
    settings_of,
)
from neural_polarizer.train import Progress, silent

PURIFIED = "purified.safetensors"
POLARIZER = "polarizer.safetensors"
REPORT = "report.html"
CLEAN_INDEX = "clean_index.json"


def run_purify(
    loaded: LoadedModel,
    pool: ImageSet,
    defense: Defense,
    out: Path,
    *,
    method: str,
    n_clean: int | None,
    seed: int,
    device: torch.device,
    evidence: Evidence,
    sources: Mapping[str, str | int | None],
    mixture: ImageSet | None = None,
    before: Metrics | None = None,
    notes: Sequence[str] = (),
    force: bool = False,
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
        mixture: poisoned training images, for a defense whose setting ``data`` is "mixture": it gets these instead of
            the clean ones, and the record says so.
        before: the suspicious model's figures on ``evidence``, if known already.
        notes: what else the reader must know, for the record.
        force: go on where the model does no better than guessing on the clean images, with a warning.
        load_seconds: time spent on reading model and data, for the record.
        command: arguments with which to repeat the run, for the record.
        progress: told about every step.

    Raises:
        BadInputError: the folder holds another run, model, data or settings cannot be used, or the model does no better
            than guessing on the clean images.
        EnvironmentFaultError: a file cannot be written.
    """
    check_mixture(defense, method, mixture)
    check_no_layer(loaded, defense)
    output_folder(out)
    started = time.perf_counter()
    indices, clean = chosen_images(pool, n_clean, seed)
    identity = run_id(loaded, clean, defense, evidence, mixture, method, seed)
    found = finished(out, identity)
    if found is not None:
        return found
    patient = admitted(loaded.model, clean, device=device, force=force, batch_size=defense.at_once, progress=progress)
    purified = patient.repaired(defense, seed=seed, device=device, shown=mixture, progress=progress)
    defended = time.perf_counter()
    if before is None:
        before = evaluate(loaded.model, evidence.test, evidence.triggered, device=device, progress=progress)
    after = evaluate(purified.model, evidence.test, evidence.triggered, device=device, progress=progress)
    surrogate, pictures = inspect(loaded.model, purified, clean, defense, evidence, device, seed)
    evaluated, audit = time.perf_counter(), purified.audit
    described = replace(loaded.record, image_size=pool.image_size, classes=loaded.record.classes or pool.classes)
    record: dict[str, Any] = {
        "schema": 1,
        "run_id": identity,
        "method": method,
        "site": purified.site,
        "site_reason": purified.site_reason,
        "seed": seed,
        "suspect": purified.suspect,
        "revision": defense.revision,
        "config": settings_of(defense) | ({} if purified.site is None else {"site": purified.site}),
        "n_clean": len(clean),
        "clean_acc": dict(zip(("before", "after"), purified.clean_acc or (None, None), strict=True)),
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
        "guarded": None if purified.guarded is None else asdict(purified.guarded),
        "audit": None if audit is None else {"summary": audit.summary, "by_class": dict(audit.by_class)},
        "model": {
            "path": str(loaded.path),
            **({} if loaded.weights is None else {"weights": loaded.weights}),
            **asdict(described),
        },
        "model_sha256": loaded.sha256,
        "data": dict(sources),
        "clean_sha256": clean.sha256(),
        "test_sha256": None if evidence.test is None else evidence.test.sha256(),
        "triggered_sha256": None if evidence.triggered is None else evidence.triggered.images.sha256(),
        "mixture": None if mixture is None else {"n": len(mixture), "sha256": mixture.sha256()},
        "findings": list(loaded.findings),
        "warnings": [
            *purified.notes,  # those of the guard among them: what limits the result most comes first
            *remarks(method, defense, before, clean, evidence.test, mixture),
            *notes,
            *(note for note in evidence.notes if note not in clean.notes),
        ],
        "device": str(device),
        "precision": defense.precision_used,
        "versions": versions(),
        "command": None if command is None else list(command),
    }
    saved = replace(described, site=purified.site or described.site)
    save_model(out / PURIFIED, purified.model, saved)
    if purified.polarizer is not None:
        save_polarizer(out / POLARIZER, purified.polarizer, saved)
    else:  # a killed run of another method may have left one
        (out / POLARIZER).unlink(missing_ok=True)
    write_index(out / CLEAN_INDEX, indices, pool, seed)
    write_text(out / REPORT, render_run(record, pictures))
    write_json(out / VERDICT, run_verdict(record))
    write_json(out / SARIF, run_sarif(record))
    layer = () if purified.polarizer is None else (POLARIZER,)
    written = (PURIFIED, *layer, CLEAN_INDEX, REPORT, VERDICT, SARIF)
    record["files"] = {name: sha256_of_file(out / name) for name in written}
    write_json(out / RECORD, record)
    return record


def chosen_images(pool: ImageSet, n_clean: int | None, seed: int) -> tuple[Int64[Tensor, " n"], ImageSet]:
    """The defender's images, and their places in the pool: ``n_clean`` of them, balanced over the classes, or all.

    Raises:
        BadInputError: there are fewer.
    """
    rows = torch.arange(len(pool)) if n_clean is None else clean_subset(pool, n_clean, seed=seed)
    return rows, pool.select(rows)
