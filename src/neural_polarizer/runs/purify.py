"""One purification, one folder: the purified model, the layer alone if there is one, the record and the report."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.subset import write_index
from neural_polarizer.defenses.base import Repaired
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.files import check_free, output_folder, sha256_of_file, write_json, write_text, writing
from neural_polarizer.metrics import defense_effectiveness, evaluate
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import save_model, save_polarizer
from neural_polarizer.progress import Progress, silent
from neural_polarizer.report.html import Picture
from neural_polarizer.report.run.page import SCHEMA, render_run
from neural_polarizer.report.run.verdict_files import SARIF, VERDICT, run_files
from neural_polarizer.runs.inspect import inspect
from neural_polarizer.runs.purification import RECORD, Purification, chosen_images, finished, told_of

PURIFIED = "purified.safetensors"
POLARIZER = "polarizer.safetensors"
REPORT = "report.html"
CLEAN_INDEX = "clean_index.json"
FOLDED = "folded.safetensors"
WRITTEN = (PURIFIED, POLARIZER, CLEAN_INDEX, REPORT, VERDICT, SARIF, FOLDED, RECORD)


def run_purify(
    job: Purification,
    out: Path,
    *,
    device: torch.device,
    notes: Sequence[str] = (),
    load_seconds: float = 0.0,
    command: Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Purify a model into the folder ``out`` and return the record that ``out/run.json`` holds.

    Nothing is written before the model has been purified and measured, and the record comes last. A folder that holds
    this very run already (same model, images, settings, seed and versions) is returned as it is. For the record:
    ``notes`` that the reader must know, ``load_seconds`` spent on reading model and data, and the ``command`` with
    which to repeat the run.
    """
    job.check()
    output_folder(out)
    started = time.perf_counter() - load_seconds
    rows, clean = chosen_images(job.pool, job.n_clean, job.seed)
    identity = job.identity(clean)
    found = finished(out, identity, WRITTEN)
    if found is not None:
        return found
    check_free(out, WRITTEN)
    purified, told, pictures = _purified(job, clean, device, progress)
    seconds = {"load": load_seconds, **told["seconds"], "total": time.perf_counter() - started}
    unread = [note for note in job.evidence.notes if note not in clean.notes]
    record = {
        "schema": SCHEMA,
        "run_id": identity,
        **told,
        "seconds": seconds,
        "warnings": [*told["warnings"], *notes, *unread],
        "command": None if command is None else list(command),
    }
    with writing(out, WRITTEN):
        return _written(out, record, job, purified, pictures, rows)


def _purified(
    job: Purification, clean: ImageSet, device: torch.device, progress: Progress
) -> tuple[Repaired, dict[str, Any], list[Picture]]:
    """The purified model, what the record says of it and of what it was made of, and pictures."""
    model, evidence, at_once = job.loaded.model, job.evidence, job.defense.at_once
    patient = admitted(model, clean, device=device, force=job.force, batch_size=at_once, progress=progress)
    purified = patient.repaired(job.defense, seed=job.seed, device=device, shown=job.mixture, progress=progress)
    defended = time.perf_counter()
    measured = partial(evaluate, test=evidence.test, triggered=evidence.triggered, device=device, progress=progress)
    before, after = measured(model), measured(purified.model)
    surrogate, pictures = inspect(model, purified, clean, job.defense, evidence, device, job.seed)
    told = {
        "method": job.method,
        **told_of(purified),
        "before": asdict(before),
        "after": asdict(after),
        "der": defense_effectiveness(before, after),
        "seconds": {**purified.seconds, "evaluate": time.perf_counter() - defended},
        "surrogate": surrogate,
        **_given(job, clean),
        "warnings": [*purified.notes, *job.remarks(before, clean)],  # what limits the result most comes first
    }
    return purified, told, pictures


def _given(job: Purification, clean: ImageSet) -> dict[str, Any]:
    """What the record says of model and data."""
    loaded, test, triggered = job.loaded, job.evidence.test, job.evidence.triggered
    weights = {} if loaded.weights is None else {"weights": loaded.weights}
    return {
        "model": {"path": str(loaded.path), **weights, **asdict(_described(job))},
        "model_sha256": loaded.sha256,
        "data": dict(job.sources),
        "n_clean": len(clean),
        "clean_sha256": clean.sha256(),
        "test_sha256": None if test is None else test.sha256(),
        "triggered_sha256": None if triggered is None else triggered.images.sha256(),
        "mixture": None if job.mixture is None else {"n": len(job.mixture), "sha256": job.mixture.sha256()},
        "threats": list(loaded.threats),
        "findings": list(loaded.findings),
    }


def _described(job: Purification) -> ModelRecord:
    """The model's record with what the images say of it."""
    record, pool = job.loaded.record, job.pool
    return replace(record, image_size=pool.image_size, classes=record.classes or pool.classes)


def _written(
    out: Path,
    record: dict[str, Any],
    job: Purification,
    purified: Repaired,
    pictures: Sequence[Picture],
    rows: Int64[Tensor, " n"],
) -> dict[str, Any]:
    """``record`` with the hashes of the files, after all of them are in ``out``, itself the last."""
    described = _described(job)
    saved = replace(described, site=purified.site or described.site)
    save_model(out / PURIFIED, purified.model, saved)
    layer = () if purified.polarizer is None else (POLARIZER,)
    if purified.polarizer is not None:
        save_polarizer(out / POLARIZER, purified.polarizer, saved)
    else:  # a killed run of another method may have left one
        (out / POLARIZER).unlink(missing_ok=True)
    write_index(out / CLEAN_INDEX, rows, job.pool, job.seed)
    write_text(out / REPORT, render_run(record, pictures))
    verdicts = run_files(record)
    for name, found in verdicts.items():
        write_json(out / name, found)
    names = (PURIFIED, *layer, CLEAN_INDEX, REPORT, *verdicts)
    whole = {**record, "files": {name: sha256_of_file(out / name) for name in names}}
    write_json(out / RECORD, whole)
    return whole
