"""One attack, one folder: train a backdoored model and keep all that is needed to evaluate or repeat it.

An implant begins with somebody's trained network (``init``) instead of random weights.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from neural_polarizer.attacks import ATTACKS, Attack, Workshop, name_of
from neural_polarizer.attacks.base import TriggerState
from neural_polarizer.cache import (
    entry,
    keep_tensors,
    kept_tensors,
    key_of,
    seal,
    sealed,
    set_damaged_aside,
    whole_record,
)
from neural_polarizer.data.columnar import write_images
from neural_polarizer.data.images import ImageSet
from neural_polarizer.errors import BadInputError, printable
from neural_polarizer.files import (
    atomic_path,
    check_free,
    output_folder,
    read_json,
    sha256_of_file,
    write_bytes,
    write_json,
    writing,
)
from neural_polarizer.metrics import evaluate
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.model_files.record import ModelRecord, versions
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.build import build
from neural_polarizer.models.forms import copied
from neural_polarizer.models.normalize import Normalized, normalisation_named
from neural_polarizer.progress import Progress, silent
from neural_polarizer.report.pictures import amplify, contact_sheet
from neural_polarizer.rng import global_rng
from neural_polarizer.settings import told
from neural_polarizer.train.fit import fit
from neural_polarizer.train.schedule import Schedule

RECORD = "attack.json"
MODEL = "model.safetensors"
TRIGGERED = "triggered.parquet"
TRIGGER = "trigger.safetensors"
PICTURE = "trigger.png"
TRAINING_STATE = "training.safetensors"
SCHEMA = 2
FILES = (MODEL, TRIGGERED, TRIGGER, PICTURE, RECORD)
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Victim:
    """What is to be trained, poisoned or clean."""

    architecture: str  # a name that ``models.build`` knows; of an implant, that of its record
    width: int | None  # of the first stage, for architectures that have one
    profile: str  # normalisation, a name of ``PROFILES`` or MEAN/STD
    schedule: Schedule  # how to train it
    seed: int  # of weights, order and poison

    def build(self, num_classes: int) -> Normalized:
        """The untrained network behind its normalisation."""
        with global_rng(self.seed, "model"):
            network = build(self.architecture, num_classes, width=self.width)
        return Normalized(network, *normalisation_named(self.profile))

    def record(self, train: ImageSet) -> ModelRecord:
        """What its file of weights says about it."""
        mean, std = normalisation_named(self.profile)
        return ModelRecord(
            architecture=self.architecture,
            num_classes=train.num_classes,
            width=self.width,
            mean=mean,
            std=std,
            image_size=train.image_size,
            classes=train.classes,
        )


@dataclass(frozen=True, eq=False)
class Planting:
    """One attack: all that its result depends on."""

    attack: Attack  # what is planted
    train: ImageSet  # the attacker's training images
    test: ImageSet  # what the victim is measured on
    victim: Victim  # what is trained
    init: LoadedModel | None = None  # the network that an implant begins with; None: random weights

    def request(self) -> dict[str, Any]:
        """All of it, for the record and the cache; what does not go together is refused."""
        train, test, init = self.train, self.test, self.init
        if test.num_classes != train.num_classes or test.image_size != train.image_size:
            tested, trained = ("x".join(map(str, images.image_size)) for images in (test, train))
            raise BadInputError(
                f"{test.source}: {test.num_classes} classes of {tested} pixels do not go with "
                f"{train.source}: {train.num_classes} classes of {trained}; resize both to one size (--size)"
            )
        if init is not None and init.record.num_classes != train.num_classes:
            raise BadInputError(
                f"{init.path}: has {init.record.num_classes} classes, but {train.source} has {train.num_classes}; "
                "plant with images of the classes that the network knows"
            )
        self.attack.check(test)
        begun: dict[str, Any] = {}
        if init is not None:
            known = {name: getattr(init.record, name) for name in ("definition", "mean", "std")}
            begun = {"init": {"sha256": init.sha256, **known}}
        return {
            "schema": SCHEMA,
            "attack": name_of(type(self.attack)),
            "settings": told(self.attack),
            "data_sha256": train.sha256(),
            "test_sha256": test.sha256(),
            "num_classes": train.num_classes,
            **told(self.victim),
            **begun,
        }

    def begin(self) -> tuple[nn.Module, ModelRecord]:
        """The network before the attack, and what its file will say of it."""
        if self.init is None:
            return self.victim.build(self.train.num_classes), self.victim.record(self.train)
        record = replace(self.init.record, image_size=self.train.image_size, classes=self.train.classes)
        return copied(self.init.model).requires_grad_(True), record

    def workshop(self, state: Path, device: torch.device, progress: Progress) -> Workshop:
        """What the attack works with; ``state`` is the file for the training to go on from."""
        train, victim, init = self.train, self.victim, self.init
        trained = partial(clean_model, train, victim, device=device, progress=progress)
        return Workshop(
            schedule=victim.schedule,
            seed=victim.seed,
            clean_model=trained if init is None else partial(copied, init.model),
            device=device,
            progress=progress,
            checkpoint=state,
        )


def cached_attack(job: Planting, *, device: torch.device, progress: Progress = silent) -> Path:
    """The cache's folder with the finished run: trained at most once, and resumed there after a kill.

    Whatever has been damaged there since is set aside and made again.
    """
    with entry("attacks", job.request(), _waiting(progress)) as folder:
        if not sealed(folder):
            run_attack(job, folder, device=device, progress=progress)
            seal(folder, FILES)
    return folder


def deliver_attack(job: Planting, out: Path, *, device: torch.device, progress: Progress = silent) -> dict[str, Any]:
    """``cached_attack``, its files copied to ``out``, the record last; returns the record."""
    request = job.request()
    output_folder(out)
    if (out / RECORD).exists():
        found = _finished(out / RECORD, request)
        if found is not None and not set_damaged_aside(out / RECORD, found, FILES):
            return found
    check_free(out, FILES)
    folder = cached_attack(job, device=device, progress=progress)
    with writing(out, FILES):
        for name in FILES:
            with atomic_path(out / name) as temporary:
                shutil.copyfile(folder / name, temporary)
    return read_json(out / RECORD)


def run_attack(job: Planting, out: Path, *, device: torch.device, progress: Progress = silent) -> dict[str, Any]:
    """Train a victim in ``out``; returns the record that ``out/attack.json`` holds.

    A run that was killed goes on after its last finished epoch; a finished one is returned as it is, and one with other
    settings or data refused. What a trigger learns is kept in ``out/trigger.safetensors``; clean classifiers and
    encoders that it needs are kept in the cache.
    """
    attack, train, test, request = job.attack, job.train, job.test, job.request()
    output_folder(out)
    if (out / RECORD).exists() and (done := _finished(out / RECORD, request)) is not None:
        return done
    started = time.perf_counter()
    workshop = job.workshop(out / TRAINING_STATE, device, progress)
    learned = _once(out / TRIGGER, key_of(request), lambda: attack.learn(train, workshop))
    prepared = time.perf_counter()
    model, record = job.begin()
    planted = attack.plant(model, train, learned, workshop)
    trained = time.perf_counter()
    triggered = attack.triggered(test, planted.state)
    metrics = evaluate(model, test, triggered, device=device, progress=progress)
    save_model(out / MODEL, model, record)
    write_images(out / TRIGGERED, triggered.images, true_label=triggered.true_labels)
    write_bytes(out / PICTURE, trigger_picture(attack, test, planted.state))
    keep_tensors(out / TRIGGER, planted.state, {"run": f"{key_of(request)} planted"})
    counts = {**asdict(metrics), "n_train": len(train), "n_poisoned": planted.n_poisoned}
    files = {name: sha256_of_file(out / name) for name in FILES if name != RECORD}
    result = {**request, "data": train.source, "test": test.source, **counts}
    result |= {"model_sha256": files[MODEL], "files": files}
    seconds = {"trigger": prepared - started, "train": trained - prepared, "evaluate": time.perf_counter() - trained}
    result["seconds"] = seconds
    result |= {"device": str(device), "versions": versions()}
    write_json(out / RECORD, result)
    (out / TRAINING_STATE).unlink(missing_ok=True)
    return result


def clean_model(train: ImageSet, victim: Victim, *, device: torch.device, progress: Progress = silent) -> nn.Module:
    """The victim without an attack, trained once and then taken from the cache; in evaluation mode, on the CPU."""
    victim = replace(victim, schedule=replace(victim.schedule, adversarial=None))
    request = {"data_sha256": train.sha256(), "num_classes": train.num_classes, **told(victim)}
    with entry("clean", request, _waiting(progress)) as folder:
        if not sealed(folder):
            if not (folder / MODEL).exists():
                model, state = victim.build(train.num_classes), folder / TRAINING_STATE
                fit(model, train, victim.schedule, seed=victim.seed, device=device, progress=progress, checkpoint=state)
                save_model(folder / MODEL, model, victim.record(train))
                state.unlink(missing_ok=True)
            seal(folder, (MODEL,))
        return load_model(folder / MODEL).model


def load_attack(folder: Path, own: type[Attack] | None = None) -> tuple[Attack, TriggerState]:
    """The attack of a finished run and what its trigger learned: ``attack.stamp(images, state)`` triggers anew.

    The record may come from someone else, so no code that it names is imported: an attack that is none of ``ATTACKS``
    needs its class as ``own``.
    """
    record = read_json(folder / RECORD)
    try:
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record["settings"].items()
        }
        known = ATTACKS if own is None else {**ATTACKS, name_of(own): own}
        name = str(record["attack"])
        if name not in known:
            raise BadInputError(
                f"{folder / RECORD}: names the attack {printable(name, 80)}, which is none of {', '.join(ATTACKS)}; "
                "code that a record names is never imported, so give the class itself: load_attack(folder, own=...)"
            )
        return known[name](**settings), load_file(folder / TRIGGER)
    except (KeyError, TypeError, AttributeError, SafetensorError, OSError) as error:
        raise BadInputError(f"{folder}: holds no whole attack ({' '.join(str(error).split())})") from None


def trigger_picture(attack: Attack, test: ImageSet, state: TriggerState) -> bytes:
    """A PNG of some test images: clean, triggered, and the difference, amplified."""
    step = max(1, len(test) // SHOWN)
    images = test.images[::step][:SHOWN]
    stamped = attack.stamp(images, state)
    difference = amplify((stamped.float() - images.float()) / 255)
    return contact_sheet([images, stamped, difference], scale=max(1, 96 // test.image_size[0]))


def _once(path: Path, key: str, make: Callable[[], dict[str, Tensor]]) -> TriggerState:
    """What ``make`` gives; from ``path`` if a run with the same key has left it there."""
    kept = kept_tensors(path)
    if kept is not None and kept.about.get("run") == key:
        return kept.tensors
    state = make()
    keep_tensors(path, state, {"run": key})
    return state


def _waiting(progress: Progress) -> Callable[[], None]:
    """Says that another run is at work on the same."""
    return lambda: progress("waiting for another run", 0, 1)


def _finished(path: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The record of this very attack; None where it was damaged, and set aside."""
    found = whole_record(path, FILES)
    if found is None:
        return None
    wanted = json.loads(json.dumps(request))
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        raise BadInputError(
            f"{path.parent}: holds another attack (it differs in {', '.join(other)}); choose another --out"
        )
    return found
