"""``polarizer purify``."""

import time
from dataclasses import replace
from typing import Any

import torch

from neural_polarizer.audit import choose_target
from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.defense import AUTO, PurifyOptions, chosen_defense, profile_of
from neural_polarizer.cli.inputs import classes_of, given_words, parse_label, read_evidence, triggered_path
from neural_polarizer.cli.output import console, show_report, show_warnings
from neural_polarizer.cli.progress import bars
from neural_polarizer.cli.result import show_result
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses import Defense
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.defenses.stand_ins.looks import cost_of_looks
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.devices import choose_device
from neural_polarizer.files import result_folder
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.runs.fold import fold_run
from neural_polarizer.runs.purification import Purification, chosen_images
from neural_polarizer.runs.purify import REPORT, run_purify


@from_options(PurifyOptions)
def purify(asked: PurifyOptions) -> None:
    """Take the backdoor out of a classifier, and write the purified model, run.json and report.html.

    The default method, npd-ls, inserts one small layer; docs/reference/methods.md has the others.
    """
    started = time.perf_counter()
    place = choose_device(asked.device)
    named = asked.profile if asked.profile in PROFILES else None
    job = _read(asked, chosen_defense(asked, named, place))  # wrong usage is told before anything is read
    profile, notes = named or profile_of(job.loaded.record), tuple[str, ...]()
    job = replace(job, defense=chosen_defense(asked, profile, place))
    if not asked.quiet:
        show_warnings((), _costs(asked, job))
    if asked.target == AUTO:
        asked, notes = _with_target(asked, job, place)
        job = replace(job, defense=chosen_defense(asked, profile, place), method=asked.method)
    with result_folder(asked.out), bars(console, quiet=asked.quiet) as progress:
        record = run_purify(
            job,
            asked.out,
            device=place,
            notes=notes,
            load_seconds=time.perf_counter() - started,
            command=["polarizer", *given_words(asked.context)],
            progress=progress,
        )
        if asked.fold:
            record = fold_run(asked.out, job.pool, job.evidence, device=place, architecture=asked.reading.network)
    if not asked.quiet:
        folded = [record["fold"]["remark"]] if asked.fold else []
        show_warnings(record["warnings"], (*record["findings"], *folded))
        show_result(record)
        show_report(asked.out / REPORT)


def _read(asked: PurifyOptions, defense: Defense) -> Purification:
    """What was asked for, with all that it names read."""
    loaded = asked.reading.model(asked.model)
    shape, known = asked.reading.image_size(loaded), classes_of(loaded, asked.classes)
    if known is not None and known.binding:
        loaded = replace(loaded, record=replace(loaded.record, classes=None))  # the images have the file's
    form: dict[str, Any] = {"num_classes": loaded.record.num_classes, "classes": known}
    pool = read_images(asked.clean, size=shape, **form)
    check_takes(loaded, pool.image_size)
    triggered = triggered_path(asked.model, asked.triggered)
    poisoned = None if asked.mixture is None else read_images(asked.mixture, size=pool.image_size, **form)
    label = parse_label(asked.poison_label, "--poison-label")
    evidence = read_evidence(asked.test, triggered, size=pool.image_size, poison_label=label, **form)
    sources = {
        "clean": asked.clean,
        "test": asked.test,
        "triggered": None if triggered is None else str(triggered),
        "mixture": asked.mixture,
        **({} if label is None else {"poison_label": label}),
    }
    return Purification(
        loaded=loaded,
        pool=pool,
        defense=defense,
        method=asked.method,
        n_clean=asked.n_clean,
        seed=asked.seed,
        evidence=evidence,
        sources=sources,
        mixture=poisoned,
        force=asked.force,
    )


def _costs(asked: PurifyOptions, job: Purification) -> list[str]:
    """What must be said beforehand of how long it will take."""
    classes = job.loaded.record.num_classes
    audit = cost_of_looks(Settings(), classes) if asked.target == AUTO else None
    found = (audit, job.defense.cost_of_classes(asked.n_clean or len(job.pool), classes))
    return [each for each in found if each is not None]


def _with_target(asked: PurifyOptions, job: Purification, place: torch.device) -> tuple[PurifyOptions, tuple[str, ...]]:
    """``asked`` with the method and the target that an audit decides on, and its reason."""
    with bars(console, quiet=asked.quiet) as progress:
        images = chosen_images(job.pool, asked.n_clean, asked.seed)[1]
        patient = admitted(job.loaded.model, images, device=place, force=asked.force, progress=progress)
        found = choose_target(asked.method, patient.working, images, seed=asked.seed, device=place, progress=progress)
    target = None if found.target is None else str(found.target)
    return replace(asked, method=found.method, target=target), (found.reason,)
