"""One audit, one folder: what clean images tell about a model, before and after a purification."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from neural_polarizer.audit import Audited, audited, spectrum
from neural_polarizer.cache import whole_record
from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.stand_ins.least import StandIns
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import check_free, output_folder, write_json, write_text, writing
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.model_files.record import versions
from neural_polarizer.progress import Progress, silent
from neural_polarizer.report.html import Picture
from neural_polarizer.report.pictures import amplify, contact_sheet
from neural_polarizer.report.run.audit_page import render_audit
from neural_polarizer.report.run.verdict_files import SARIF, VERDICT, audit_files
from neural_polarizer.runs.purification import chosen_images
from neural_polarizer.settings import told

RECORD = "audit.json"
REPORT = "report.html"
SHOWN = 10
"""So many classes have pictures."""


def run_audit(
    loaded: LoadedModel,
    pool: ImageSet,
    out: Path,
    *,
    purified: LoadedModel | None,
    n_clean: int | None,
    seed: int,
    settings: Settings,
    device: torch.device,
    sources: Mapping[str, str | None],
    progress: Progress = silent,
) -> dict[str, Any]:
    """Audit ``loaded``, and ``purified`` if there is one, into the folder ``out``; returns what ``audit.json`` holds.

    Of the clean images in ``pool``, ``n_clean`` are used (all if None), balanced over the classes. The ``seed`` fixes
    their choice, and all that is drawn; ``settings`` are those of the default defense, whose evidence it is;
    ``sources`` are the data specs, for the record.
    """
    _check(loaded, purified, out)
    started = time.perf_counter()
    clean = chosen_images(pool, n_clean, seed)[1]
    first = audited(loaded.model, clean, seed=seed, settings=settings, device=device, progress=progress)
    pictures, after = _pictures(first, "Original model"), None
    if purified is not None:
        second = audited(purified.model, clean, seed=seed, settings=settings, device=device, progress=progress)
        pictures += _pictures(second, "Purified model")
        layer = spectrum(purified.model)
        after = {"path": str(purified.path), "model_sha256": purified.sha256, **_told(second)}
        after["spectrum"] = None if layer is None else asdict(layer)
    described = asdict(loaded.record) | {"classes": loaded.record.classes or pool.classes}
    record = {"schema": 2, **_told(first), "model": {"path": str(loaded.path), **described}}
    record |= {"model_sha256": loaded.sha256, "purified": after}
    for said in ("threats", "findings"):
        later = [f"the purified model: {each}" for each in getattr(purified, said, ())]
        record[said] = [*getattr(loaded, said), *later]
    record |= {"n_clean": len(clean), "clean_sha256": clean.sha256(), "data": dict(sources), "seed": seed}
    record |= {"config": told(settings), "device": str(device), "versions": versions()}
    record["seconds"] = time.perf_counter() - started
    page = render_audit(record, pictures)
    with writing(out, _not_of_an_audit(out)):
        write_text(out / REPORT, page)
        for name, found in {**audit_files(record), RECORD: record}.items():  # it is the last: where it is, all is there
            write_json(out / name, found)
    return record


def _check(loaded: LoadedModel, purified: LoadedModel | None, out: Path) -> None:
    """Refuse a folder that holds something else, and a purified model with other classes."""
    output_folder(out)
    other = [path.name for path in sorted(out.iterdir()) if path.name in ("run.json", "attack.json")]
    if other:
        raise BadInputError(f"{out}: holds {other[0]}, whose report would be overwritten; choose another --out")
    check_free(out, _not_of_an_audit(out))
    if purified is not None and purified.record.num_classes != loaded.record.num_classes:
        raise BadInputError(
            f"{purified.path}: knows {purified.record.num_classes} classes, but {loaded.path} knows "
            f"{loaded.record.num_classes}; is it the same model?"
        )


def _not_of_an_audit(out: Path) -> tuple[str, ...]:
    """The files that no audit has written in ``out`` yet; an earlier one's are written over.

    One whose record is damaged is set aside.
    """
    with suppress(BadInputError):  # there is none, or it is somebody's
        found = whole_record(out / RECORD, (REPORT, VERDICT, SARIF))
        if found is not None and "clean_sha256" in found:
            return ()
    return REPORT, VERDICT, SARIF, RECORD


def _told(found: Audited) -> dict[str, Any]:
    """All but the tensors."""
    told = {each.name: getattr(found, each.name) for each in fields(found) if each.name != "found"}
    return {**told, "nameable": dict(found.nameable), "by_class": dict(found.by_class)}


def _pictures(audited: Audited, group: str) -> list[Picture]:
    """The stand-ins in pixels of the classes with the smallest p-values, a sheet for each form."""
    shown = audited.found.belief.by_aim[:-1].argsort()[:SHOWN].tolist()
    sheets = []
    for name, stand_ins in audited.found.pixels.items():
        least = {label: row for label in shown if (row := _least(stand_ins, label)) is not None}
        deltas = torch.stack([stand_ins.deltas[row] for row in least.values()]).float().cpu()
        colours = deltas.expand(-1, 3, -1, -1) if deltas.shape[1] == 1 else deltas
        sheets.append(
            Picture(
                title=f"The smallest perturbations, {name}",
                caption="Added to any image, each leads most images to its class; amplified, mid grey changes nothing. "
                f"From left to right the classes {', '.join(map(str, least))}, the most suspicious first.",
                png=contact_sheet([amplify(colours)], scale=max(1, 64 // deltas.shape[-2])),
                group=group,
            )
        )
    return sheets


def _least(stand_ins: StandIns, label: int) -> int | None:
    """The row of the class's shortest stand-in; None where it was not looked at."""
    rows = (stand_ins.aims == label).nonzero()[:, 0].to(stand_ins.norms.device)
    return int(rows[stand_ins.norms[rows].argmin()]) if len(rows) else None
