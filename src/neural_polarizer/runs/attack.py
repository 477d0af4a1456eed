"""One attack, one folder: train a backdoored model and keep all that is needed to evaluate or repeat it."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from neural_polarizer.artifacts import ModelRecord, save_model, versions
from neural_polarizer.attacks import ATTACKS, DataPoisoning
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.parquet import write_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import output_folder, read_json, sha256_of_file, write_json
from neural_polarizer.metrics import evaluate
from neural_polarizer.models.build import build
from neural_polarizer.models.normalize import PROFILES, Normalized
from neural_polarizer.rng import global_rng
from neural_polarizer.train import Progress, Schedule, silent

RECORD = "attack.json"
MODEL = "model.safetensors"
TRIGGERED = "triggered.parquet"
TRAINING_STATE = "training.safetensors"


def run_attack(
    attack: DataPoisoning,
    train: ImageSet,
    test: ImageSet,
    out: Path,
    *,
    architecture: str,
    width: int | None,
    profile: str,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a victim in ``out`` and return the record that ``out/attack.json`` holds.

    A run that was killed goes on after its last finished epoch; a finished one is returned as it is.

    Raises:
        BadInputError: the folder holds a run with other settings or data, or the settings do not fit the data.
        EnvironmentFaultError: a file cannot be written.
    """
    request = {
        "schema": 1,
        "attack": _name(attack),
        "settings": asdict(attack),
        "data": train.source,
        "test": test.source,
        "data_sha256": train.sha256(),
        "test_sha256": test.sha256(),
        "architecture": architecture,
        "width": width,
        "num_classes": train.num_classes,
        "profile": profile,
        "schedule": asdict(schedule),
        "seed": seed,
    }
    if test.num_classes != train.num_classes or test.image_size != train.image_size:
        raise BadInputError(
            f"{test.source}: {test.num_classes} classes of {_pixels(test)} pixels do not go with "
            f"{train.source}: {train.num_classes} classes of {_pixels(train)}; resize both to one size (--size)"
        )
    triggered = attack.triggered(test)
    output_folder(out)
    if (out / RECORD).exists():
        return _finished(out / RECORD, request)
    started = time.perf_counter()
    with global_rng(seed, "model"):
        network = build(architecture, train.num_classes, width=width)
    model = Normalized(network, *PROFILES[profile])
    state = out / TRAINING_STATE
    poisoned = attack.plant(
        model, train, schedule=schedule, seed=seed, device=device, progress=progress, checkpoint=state
    )
    trained = time.perf_counter()
    metrics = evaluate(model, test, triggered, device=device, progress=progress)
    record = ModelRecord(
        architecture=architecture,
        num_classes=train.num_classes,
        width=width,
        mean=PROFILES[profile][0],
        std=PROFILES[profile][1],
        image_size=train.image_size,
        classes=train.classes,
    )
    save_model(out / MODEL, model, record)
    write_images(out / TRIGGERED, triggered.images, true_label=triggered.true_labels)
    result = {
        **request,
        **asdict(metrics),
        "n_poisoned": len(poisoned),
        "model_sha256": sha256_of_file(out / MODEL),
        "seconds": {"train": trained - started, "evaluate": time.perf_counter() - trained},
        "device": str(device),
        "versions": versions(),
    }
    write_json(out / RECORD, result)
    state.unlink(missing_ok=True)
    return result


def _pixels(images: ImageSet) -> str:
    return "x".join(map(str, images.image_size))


def _name(attack: DataPoisoning) -> str:
    names = [name for name, kind in ATTACKS.items() if type(attack) is kind]
    return names[0] if names else f"{type(attack).__module__}:{type(attack).__qualname__}"


def _finished(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    found = read_json(path)
    wanted = {name: value for name, value in request.items() if name not in ("data", "test")}
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        raise BadInputError(
            f"{path.parent}: holds another attack (it differs in {', '.join(other)}); choose another --out"
        )
    return found
