"""Whether a run's folder still holds what its record says: hashes of files and images, and figures measured anew."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import TriggeredSet, read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.data.subset import read_index
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import read_json
from neural_polarizer.metrics import Metrics, defense_effectiveness, evaluate
from neural_polarizer.model_files.checkpoints import sha256_of_weights
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.models.definition import Definition
from neural_polarizer.progress import Progress, silent
from neural_polarizer.report.run.page import SCHEMA
from neural_polarizer.report.values import items, number, table
from neural_polarizer.runs.attack import MODEL, PICTURE, TRIGGER, TRIGGERED
from neural_polarizer.runs.attack import SCHEMA as ATTACK_SCHEMA
from neural_polarizer.runs.purification import ATTACK_RECORD, RECORD
from neural_polarizer.runs.purify import CLEAN_INDEX, FOLDED, POLARIZER, PURIFIED, REPORT
from neural_polarizer.runs.verify_checks import (
    RATES,
    Check,
    figure_check,
    file_checks,
    hash_check,
    image_check,
    or_why,
    rate_checks,
    short,
)

ATTACK_FILES = (MODEL, TRIGGERED, TRIGGER, PICTURE)
PURIFICATION_FILES = (PURIFIED, CLEAN_INDEX, REPORT)
TOLERANCE = 0.001  # of a rate: another machine may tip a few images in ten thousand

Found = TypeVar("Found", ImageSet | str, TriggeredSet | str)
Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is named, instead of what the record names."""

    clean: str | None = None  # a data spec: the clean images of a purification, the training images of an attack
    test: str | None = None  # a data spec
    triggered: Path | None = None  # ``triggered.parquet``
    # Code of the user's own that builds the network, which a record never leads to.
    architecture: str | Definition | None = None


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How figures are measured anew."""

    device: torch.device  # where to compute
    tolerance: float = TOLERANCE  # by how much a rate in [0, 1] may differ from the recorded one
    progress: Progress = silent  # told about every batch


def verify_run(folder: Path, given: Given, measuring: Measuring) -> list[Check]:
    """Check the folder of an attack or of a purification against its record.

    The record itself is taken at its word: who changes a file and its hash alike is not found out here. Data that are
    not given are those that the record names, where this machine has them.
    """
    if (folder / ATTACK_RECORD).is_file():
        return _attack(folder, _read_record(folder / ATTACK_RECORD, ATTACK_SCHEMA), given, measuring)
    if (folder / RECORD).is_file():
        return _purification(folder, _read_record(folder / RECORD, SCHEMA), given, measuring)
    raise BadInputError(f"{folder}: is no run; a run's folder holds {ATTACK_RECORD}, {RECORD} or records/")


def _read_record(path: Path, newest: int) -> dict[str, Any]:
    """A record, unless a later version wrote it; those of earlier ones are checked as far as they tell."""
    record = read_json(path)
    schema = record.get("schema")
    if type(schema) is int and schema > newest:
        raise BadInputError(
            f"{path}: has schema {schema}, but this version reads {newest}; use the version of neural-polarizer that "
            "wrote it"
        )
    return record


def _attack(folder: Path, record: Mapping[str, Any], given: Given, measuring: Measuring) -> list[Check]:
    hashes = {MODEL: record.get("model_sha256"), **table(record, "files")}
    files = file_checks(folder, hashes, ATTACK_FILES)
    model = _loaded(folder / MODEL)
    known = None if isinstance(model, str) else model.record
    classes = None if known is None else known.classes
    form = _form(folder, record.get("num_classes"), None if known is None else known.image_size, classes)
    train = _training_images(record, given, form)
    test = _read(partial(read_images, **form), given.test, record.get("test"), "--test")
    checks = [*files, image_check("training images", record.get("data_sha256"), train)]
    test = _same(checks, "test images", record.get("test_sha256"), test)
    triggered = _read(partial(read_triggered, **form), None, folder / TRIGGERED, "--triggered")
    if any(check.what == TRIGGERED and check.holds is False for check in files):
        triggered = f"{TRIGGERED} is not that of the run"
    measured = _measured(model, test, triggered, measuring)
    return [*checks, *rate_checks(record, measured, measuring.tolerance, "", _unmeasured(test, triggered))]


def _purification(folder: Path, record: Mapping[str, Any], given: Given, measuring: Measuring) -> list[Check]:
    data, described = table(record, "data"), table(record, "model")
    form = _form(folder, described.get("num_classes"), described.get("image_size"), described.get("classes"))
    needed = (PURIFIED,) if record.get("command") is None else PURIFICATION_FILES  # the rest is not saved from Python
    files = file_checks(folder, table(record, "files"), needed, (POLARIZER, FOLDED))
    own = given.architecture
    original = _original(described, record.get("model_sha256"), own)
    images = partial(read_images, **form)
    clean = _chosen(folder / CLEAN_INDEX, _read(images, given.clean, data.get("clean"), "--clean"))
    checks = [*files, original[0], image_check("clean images", record.get("clean_sha256"), clean)]
    before, after = table(record, "before"), table(record, "after")
    test: ImageSet | str = "no test images were used"
    triggered: TriggeredSet | str = "no triggered images were used"
    if given.test is not None or data.get("test") is not None or number(after.get("acc")) is not None:
        test = _read(images, given.test, data.get("test"), "--test")
        test = _same(checks, "test images", record.get("test_sha256"), test)
    if given.triggered is not None or data.get("triggered") is not None or number(after.get("asr")) is not None:
        label = data.get("poison_label")
        stamped = form | ({"poison_label": label} if label == "next" or type(label) is int else {})
        triggered = _read(
            lambda path: read_triggered(Path(path), **stamped), given.triggered, data.get("triggered"), "--triggered"
        )
        triggered = _same(checks, "triggered images", record.get("triggered_sha256"), triggered)
    found_before = _measured(original[1], test, triggered, measuring)
    found_after = _measured(_loaded(folder / PURIFIED, architecture=own), test, triggered, measuring)
    missing = _unmeasured(test, triggered)
    checks += rate_checks(before, found_before, measuring.tolerance, " before", missing)
    checks += rate_checks(after, found_after, measuring.tolerance, " after", missing)
    checks += _effectiveness(record, found_before, found_after, measuring.tolerance)
    return [*checks, *_folded(folder, record, test, own, measuring)]


def _effectiveness(
    record: Mapping[str, Any], before: Metrics | str, after: Metrics | str, tolerance: float
) -> list[Check]:
    """DER of the figures that were found, and of those recorded where none were."""
    old, new = (_completed(found, table(record, name)) for name, found in (("before", before), ("after", after)))
    # two rates a model, halved: twice the tolerance of one
    check = figure_check(
        "DER", number(record.get("der")), defense_effectiveness(old, new), 2 * tolerance, "not measured"
    )
    return [] if check.recorded is None and check.found is None else [check]


def _completed(found: Metrics | str, rates: Mapping[str, Any]) -> Metrics:
    recorded = recorded_rates(rates)
    if isinstance(found, str):
        return recorded
    return replace(recorded, **{name: getattr(found, name) for name in RATES if getattr(found, name) is not None})


def _folded(
    folder: Path,
    record: Mapping[str, Any],
    test: ImageSet | str,
    own: str | Definition | None,
    measuring: Measuring,
) -> list[Check]:
    """ACC of the folded model; its record has the difference to the purified model's."""
    cost, after = number(table(record, "fold").get("acc_difference")), number(table(record, "after").get("acc"))
    if cost is None or after is None:
        return []
    found = _measured(_loaded(folder / FOLDED, architecture=own), test, "not needed", measuring)
    return rate_checks({"acc": after + cost}, found, measuring.tolerance, " folded")


def recorded_rates(rates: Mapping[str, Any]) -> Metrics:
    """ACC, ASR and RA of a record."""
    return Metrics(acc=number(rates.get("acc")), asr=number(rates.get("asr")), ra=number(rates.get("ra")))


def _loaded(path: Path, **options: Any) -> LoadedModel | str:
    """The model, or why it cannot be loaded."""
    return or_why(lambda: load_model(path, **options))


def _original(
    described: Mapping[str, Any], recorded: Any, own: str | Definition | None
) -> tuple[Check, LoadedModel | str]:
    """The model that was purified, which lies elsewhere, and the check of its file."""
    what, path = "original model", Path(str(described.get("path")))
    if described.get("path") is None:
        reason = "it was purified in Python, where the record knows no file"
        return Check(what=what, recorded=short(recorded), remark=reason), reason
    if not path.is_file():
        reason = f"{path} is not on this machine, or not below this folder"
        return Check(what=what, recorded=short(recorded), remark=reason), reason
    try:
        found = sha256_of_weights(path)
    except BadInputError as error:  # an index whose files are gone
        return Check(what=what, recorded=short(recorded), remark=str(error)), str(error)
    check = hash_check(what, recorded, found, f"{path} is not the file that was purified")
    if check.holds is not True:
        return check, check.remark
    named = str(described.get("architecture"))
    if named.startswith("transformers:"):  # whose folder alone tells the configuration
        return check, _loaded(path.parent)
    numbers = [",".join(map(str, items(described, name))) for name in ("mean", "std")]
    code = described.get("definition") is not None
    if code and own is None:
        return check, f"its network is built by code of your own, {named}; give --arch FILE.py:NAME"
    texts = {name: str(described[name]) for name in ("weights", "output") if described.get(name) is not None}
    channels = 1 if described.get("grey") is True else None
    network = own if code else named
    return check, _loaded(path, architecture=network, profile="/".join(numbers), channels=channels, **texts)


def _form(folder: Path, num_classes: Any, size: Any, classes: Any) -> dict[str, Any]:
    """What images are read with."""
    if type(num_classes) is not int:
        raise BadInputError(f"{folder}: the record is damaged: it does not say how many classes there are")
    known = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size)
    named = isinstance(classes, list | tuple) and len(classes) == num_classes and all(type(n) is str for n in classes)
    return {
        "num_classes": num_classes,
        "size": tuple(size) if known else None,
        "classes": ClassNames(tuple(classes)) if named else None,
    }


def _read(read: Callable[[Any], Read], given: Any, recorded: Any, option: str) -> Read | str:
    """What was named, else what the record names, read; or why there is none of the latter."""
    if given is not None:
        return read(given)
    if not isinstance(recorded, str | Path) or str(recorded).startswith("hf:"):  # which may use the network
        return f"the record names none on this machine; give {option}"
    return or_why(lambda: read(recorded), f"; give {option}")


def _training_images(record: Mapping[str, Any], given: Given, form: Mapping[str, Any]) -> ImageSet | str:
    count = record.get("n_train")
    if type(count) is not int or count < 1:
        if given.clean is None:
            return "the record does not say how many there were; give --clean"
        count = None
    return _read(partial(read_images, limit=count, **form), given.clean, record.get("data"), "--clean")


def _chosen(index: Path, pool: ImageSet | str) -> ImageSet | str:
    """Those of the pool that the index names; the pool itself, which is then another one, where it names none."""
    if isinstance(pool, str):
        return pool
    try:
        return pool.select(read_index(index, pool))
    except BadInputError:
        return pool


def _same(checks: list[Check], what: str, recorded: Any, found: Found) -> Found | str:
    """``found``, whose check joins ``checks``; or why figures measured on it would tell nothing."""
    check = image_check(what, recorded, found.images if isinstance(found, TriggeredSet) else found)
    checks.append(check)
    return f"the {what} are not those of the run" if check.holds is False else found


def _measured(
    model: LoadedModel | str, test: ImageSet | str, triggered: TriggeredSet | str, measuring: Measuring
) -> Metrics | str:
    """The figures as far as there are images for them; or why there are none."""
    if isinstance(model, str):
        return model
    if isinstance(test, str) and isinstance(triggered, str):
        return test
    images = None if isinstance(test, str) else test
    stamped = None if isinstance(triggered, str) else triggered
    return or_why(lambda: evaluate(model.model, images, stamped, device=measuring.device, progress=measuring.progress))


def _unmeasured(test: ImageSet | str, triggered: TriggeredSet | str) -> dict[str, str]:
    """Why the rates that need the one or the other are not measured."""
    needs = {"acc": test, "asr": triggered, "ra": triggered}
    return {name: images for name, images in needs.items() if isinstance(images, str)}
