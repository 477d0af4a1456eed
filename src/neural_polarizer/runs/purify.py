"""One purification, one folder: the purified model, the layer alone, the record and the report."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.artifacts import LoadedModel, save_model, save_polarizer, versions
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.data.poison import TriggeredSet
from neural_polarizer.data.subset import clean_subset, write_index
from neural_polarizer.defenses.base import Purified
from neural_polarizer.defenses.neural_polarizer import NeuralPolarizer
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import output_folder, write_json, write_text
from neural_polarizer.losses import runner_up
from neural_polarizer.metrics import Metrics, defense_effectiveness, evaluate
from neural_polarizer.perturb import Ball, perturb
from neural_polarizer.report.html import Picture, render_run
from neural_polarizer.report.pictures import amplify, contact_sheet
from neural_polarizer.rng import stream
from neural_polarizer.train import Progress, silent

PURIFIED = "purified.safetensors"
POLARIZER = "polarizer.safetensors"
RECORD = "run.json"
REPORT = "report.html"
CLEAN_INDEX = "clean_index.json"
SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the result may be measured on; never seen by the defense."""

    test: ImageSet | None = None
    triggered: TriggeredSet | None = None


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
    sources: dict[str, str | None],
    load_seconds: float = 0.0,
    command: list[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Purify ``loaded`` into the folder ``out`` and return the record that ``out/run.json`` holds.

    Nothing is written before the model has been purified and measured.

    Args:
        loaded: the suspicious model.
        pool: clean images; the defender's are ``n_clean`` of them (all if None), balanced over the classes.
        defense: its settings.
        out: folder for the results.
        method: the defense's name, for the record.
        n_clean: number of clean images to use.
        seed: fixes the choice of the images and the order of the batches.
        device: where to compute.
        evidence: test data, for the figures before and after alone.
        sources: data specs, for the record.
        load_seconds: time spent on reading model and data, for the record.
        command: arguments with which to repeat the run, for the record.
        progress: told about every step.

    Raises:
        BadInputError: the folder, model, data or settings cannot be used.
        EnvironmentFaultError: a file cannot be written.
    """
    output_folder(out)
    if (out / "attack.json").exists():
        raise BadInputError(f"{out}: holds an attack, which would be mixed up with the result; choose another --out")
    started = time.perf_counter()
    indices = torch.arange(len(pool)) if n_clean is None else clean_subset(pool, n_clean, seed=seed)
    clean = pool.select(indices)
    purified = defense.repair(loaded.model, clean, seed=seed, device=device, progress=progress)
    defended = time.perf_counter()
    before, after = (
        evaluate(
            model, evidence.test, evidence.triggered, device=device, precision=defense.precision, progress=progress
        )
        for model in (loaded.model, purified.model)
    )
    surrogate, pictures = _inspect(loaded.model, purified, clean, defense, evidence, device, seed)
    evaluated = time.perf_counter()
    seconds = {"load": load_seconds, **purified.seconds, "evaluate": evaluated - defended}
    model_record = replace(loaded.record, image_size=pool.image_size, classes=loaded.record.classes or pool.classes)
    record: dict[str, Any] = {
        "schema": 1,
        "method": method,
        "site": purified.site,
        "seed": seed,
        "config": asdict(defense) | {"site": purified.site},
        "n_clean": len(clean),
        "before": asdict(before),
        "after": asdict(after),
        "der": defense_effectiveness(before, after),
        "seconds": {**seconds, "total": load_seconds + evaluated - started},
        "history": list(purified.history),
        "surrogate": surrogate,
        "model": {"path": str(loaded.path), **asdict(model_record)},
        "model_sha256": loaded.sha256,
        "data": sources,
        "clean_sha256": clean.sha256(),
        "findings": list(loaded.findings),
        "warnings": [*purified.notes, *_warnings(before, pool, model_record.num_classes)],
        "device": str(device),
        "precision": defense.precision,
        "versions": versions(),
        "command": command,
    }
    saved = replace(model_record, site=purified.site)
    save_model(out / PURIFIED, purified.model, saved)
    assert purified.polarizer is not None
    save_polarizer(out / POLARIZER, purified.polarizer, saved)
    write_index(out / CLEAN_INDEX, indices, pool, seed)
    write_text(out / REPORT, render_run(record, pictures))
    write_json(out / RECORD, record)
    return record


def _warnings(before: Metrics, pool: ImageSet, num_classes: int) -> list[str]:
    found = []
    if before.acc is not None and before.acc < 0.5:
        found.append(
            f"the model classifies only {100 * before.acc:.1f} % of the clean test images correctly before anything "
            "was done: check --profile (normalisation) and the order of the classes"
        )
    empty = num_classes - int(pool.labels.unique().numel())
    if empty > 0:
        found.append(f"{empty} of {num_classes} classes have no clean image, so accuracy on them is not protected")
    return found


def _inspect(
    model: nn.Module,
    purified: Purified,
    clean: ImageSet,
    defense: NeuralPolarizer,
    evidence: Evidence,
    device: torch.device,
    seed: int,
    sample: int = 256,
) -> tuple[dict[str, float], list[Picture]]:
    """Fresh targeted perturbations against both models on clean images, and pictures for the report."""
    rows = torch.randperm(len(clean), generator=stream(seed, "inspect"))[:sample]
    labels, pixels = clean.labels[rows].to(device), to_pixels(clean.images[rows].to(device))
    radius = max(defense.radii)
    success = []
    perturbed = pixels
    for network in (purified.model, model):  # the original last: its perturbations are shown
        placed = network.to(device).eval()
        try:
            perturbed, share = _attack(placed, pixels, labels, defense, radius)
        finally:
            network.to("cpu")
        success.append(share)
    pictures = _pictures(pixels.cpu(), perturbed.cpu(), evidence)
    return {"before": success[1], "after": success[0], "radius": radius}, pictures


def _attack(
    model: nn.Module, pixels: Float[Tensor, "n c h w"], labels: Tensor, defense: NeuralPolarizer, radius: float
) -> tuple[Tensor, float]:
    with torch.no_grad():
        targets = runner_up(model(pixels), labels)
    delta = perturb(
        model,
        pixels,
        targets,
        ball=Ball(defense.norm, radius),
        steps=max(defense.steps, 2),
        step_size=defense.step_size,
        rule=defense.step_rule,
    )
    perturbed = (pixels + delta).clamp(0, 1)
    with torch.no_grad():
        share = (model(perturbed).argmax(dim=1) == targets).float().mean()
    return perturbed, float(share)


def _pictures(pixels: Tensor, perturbed: Tensor, evidence: Evidence) -> list[Picture]:
    pixels, perturbed = pixels[:SAMPLES], perturbed[:SAMPLES]
    scale = max(1, 64 // pixels.shape[2])
    sheets = [
        Picture(
            title="Perturbed clean images",
            caption="Rows: clean image, the same with a targeted perturbation against the original model (the stand-in "
            "for the unknown trigger), and the perturbation alone, amplified.",
            png=contact_sheet([_to_bytes(pixels), _to_bytes(perturbed), amplify(perturbed - pixels)], scale=scale),
            group="Perturbations used in training",
        )
    ]
    if evidence.test is not None and evidence.triggered is not None:
        sheets.insert(0, _trigger_picture(evidence.test, evidence.triggered, scale))
    return sheets


def _trigger_picture(test: ImageSet, triggered: TriggeredSet, scale: int) -> Picture:
    shown = triggered.images.images[:SAMPLES]
    clean = _untriggered(test, triggered)
    if clean is None:
        rows, caption = [shown], "Test images with the trigger, as the model receives them."
    else:
        rows = [clean[:SAMPLES], shown, amplify(to_pixels(shown) - to_pixels(clean[:SAMPLES]))]
        caption = "Rows: clean test image, the same with the trigger, and the difference, amplified."
    return Picture(title="Triggered images", caption=caption, png=contact_sheet(rows, scale=scale), group="Trigger")


def _untriggered(test: ImageSet, triggered: TriggeredSet) -> Tensor | None:
    """The clean form of each triggered image, where the order of the rows tells it."""
    told = torch.ones(len(test), dtype=torch.bool)
    if len(triggered) != len(test):
        told = test.labels != triggered.images.labels[0]
    if torch.equal(test.labels[told], triggered.true_labels) and test.image_size == triggered.images.image_size:
        return test.images[told]
    return None


def _to_bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)
