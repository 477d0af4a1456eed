"""One audit, one folder: what clean images tell about a model, before and after a purification."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neural_polarizer.artifacts import LoadedModel, versions
from neural_polarizer.audit import Evidence, Score, collect, score, spectrum
from neural_polarizer.data.images import ImageSet, to_bytes
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import output_folder, write_json, write_text
from neural_polarizer.report.audit_page import render_audit
from neural_polarizer.report.html import Picture
from neural_polarizer.report.pictures import contact_sheet, heat_map
from neural_polarizer.report.verdict_files import SARIF, VERDICT, audit_sarif, audit_verdict
from neural_polarizer.runs.purify import chosen_images
from neural_polarizer.train import Progress, silent

RECORD = "audit.json"
REPORT = "report.html"


def run_audit(
    loaded: LoadedModel,
    pool: ImageSet,
    out: Path,
    *,
    purified: LoadedModel | None,
    n_clean: int | None,
    seed: int,
    device: torch.device,
    sources: Mapping[str, str | None],
    progress: Progress = silent,
) -> dict[str, Any]:
    """Audit ``loaded``, and ``purified`` if there is one, into the folder ``out``; returns what ``audit.json`` holds.

    Args:
        loaded: the suspicious model.
        pool: clean images; ``n_clean`` of them are used (all if None), balanced over the classes.
        out: folder for ``audit.json`` and ``report.html``.
        purified: the same model after a defense.
        n_clean: number of clean images to use.
        seed: fixes the choice of the images and the bootstrap.
        device: where to compute.
        sources: data specs, for the record.
        progress: told about every step.

    Raises:
        BadInputError: ``out`` holds something else, or model and images do not go together.
        EnvironmentFaultError: a file cannot be written.
    """
    output_folder(out)
    other = [path.name for path in sorted(out.iterdir()) if path.name in ("run.json", "attack.json")]
    if other:
        raise BadInputError(f"{out}: holds {other[0]}, whose report would be overwritten; choose another --out")
    if purified is not None and purified.record.num_classes != loaded.record.num_classes:
        raise BadInputError(
            f"{purified.path}: knows {purified.record.num_classes} classes, but {loaded.path} knows "
            f"{loaded.record.num_classes}; is it the same model?"
        )
    started = time.perf_counter()
    clean = chosen_images(pool, n_clean, seed)[1]
    before, first = _audited(loaded.model, clean, seed, device, progress)
    record: dict[str, Any] = {
        "schema": 1,
        "suspect_class": first.suspect if first.verdict == "backdoor" else None,
        **asdict(first),
        "by_class": _by_class(before),
        "flow": _rows(before.flow),
        "model": {"path": str(loaded.path), **asdict(loaded.record)},
        "model_sha256": loaded.sha256,
        "purified": None,
        "n_clean": len(clean),
        "clean_sha256": clean.sha256(),
        "data": dict(sources),
        "seed": seed,
        "findings": list(loaded.findings),
        "device": str(device),
        "versions": versions(),
    }
    record["model"]["classes"] = loaded.record.classes or pool.classes
    pictures = _pictures(before, "Original model")
    if purified is not None:
        after, second = _audited(purified.model, clean, seed, device, progress)
        layer = spectrum(purified.model)
        record["purified"] = {
            "path": str(purified.path),
            "model_sha256": purified.sha256,
            **asdict(second),
            "by_class": _by_class(after),
            "flow": _rows(after.flow),
            "spectrum": None if layer is None else asdict(layer),
        }
        pictures += _pictures(after, "Purified model")
    record["seconds"] = time.perf_counter() - started
    write_text(out / REPORT, render_audit(record, pictures))
    write_json(out / VERDICT, audit_verdict(record))
    write_json(out / SARIF, audit_sarif(record))
    write_json(out / RECORD, record)
    return record


def _audited(
    model: nn.Module, clean: ImageSet, seed: int, device: torch.device, progress: Progress
) -> tuple[Evidence, Score]:
    found = collect(model, clean, seed=seed, device=device, progress=progress)
    return found, score(found.margins, seed=seed)


def _by_class(found: Evidence) -> dict[str, list[Any]]:
    """The evidence by class, in the order of the report's columns."""
    count = len(found.triggers.masks)
    return {
        "margin": [_mean(each) for each in found.margins.pixels[:count]],
        "margin_in_features": [_mean(each) for each in found.margins.features[:count]],
        **{f"shared_{radius:g}": _list(rates) for radius, rates in found.shared.items()},
        **{f"own_{radius:g}": _list(rates) for radius, rates in found.own.items()},
        "smallest_trigger": _list(found.triggers.sizes),
        "trigger_found": found.triggers.reached.tolist(),
        "anomaly_index": _list(found.triggers.anomaly),
    }


def _mean(values: torch.Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _list(values: torch.Tensor) -> list[float | None]:
    return [float(value) if bool(value.isfinite()) else None for value in values]


def _rows(values: torch.Tensor) -> list[list[float | None]]:
    return [_list(row) for row in values]


def _pictures(found: Evidence, group: str) -> list[Picture]:
    smallest = found.triggers.sizes.argsort()[:10]
    masks, patterns = found.triggers.masks[smallest], found.triggers.patterns[smallest]
    shown = [to_bytes(masks.expand(-1, 3, -1, -1)), to_bytes(masks * patterns)]
    names = ", ".join(map(str, smallest.tolist()))
    return [
        Picture(
            title="From where to where",
            caption="Each row is the class that images come from, each column the class that one perturbation of "
            "radius 3 for all of them leads to; the darker, the more of them get there. A backdoor shows as one dark "
            "column (or, all-to-all, as a dark line beside the diagonal). Grey: nothing was tried.",
            png=heat_map(found.flow, side=max(1, 320 // len(found.flow))),
            group=group,
        ),
        Picture(
            title="The smallest triggers",
            caption="Above: how much each pixel belongs to the trigger; below: its colours. From left to right the "
            f"classes {names}.",
            png=contact_sheet(shown, scale=max(1, 64 // masks.shape[-1])),
            group=group,
        ),
    ]
