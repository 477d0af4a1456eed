"""``polarizer purify``."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from neural_polarizer.audit import choose_target, looking_for
from neural_polarizer.cli import options
from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.output import bars, show_report, show_warnings
from neural_polarizer.cli.result import show_result
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses import DEFAULT, DEFENSES, Defense
from neural_polarizer.defenses.npd.presets import Preset
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.defenses.recipes import make_defense, with_options, with_precision
from neural_polarizer.defenses.stand_ins.looks import cost_of_looks
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.files import result_folder
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.runs.fold import fold_run
from neural_polarizer.runs.purification import Purification, chosen_images
from neural_polarizer.runs.purify import REPORT, run_purify
from neural_polarizer.scales import Scale
from neural_polarizer.settings import changed, setting_names

AUTO = "auto"
"""The target of which an audit decides."""


@dataclass(frozen=True, kw_only=True)
class _Options:
    context: typer.Context
    model: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of attack or transformers.")]
    clean: Annotated[str, typer.Option(help="Clean images: a folder or another data spec.", metavar="IMAGES")]
    out: options.Out
    arch: options.GivenArchitecture = None  # these two are those of ``reading``, further up in the help
    profile: options.ProfileName = None
    n_clean: Annotated[int | None, typer.Option(help="How many of the clean images to use. Default: all.", min=1)] = (
        None
    )
    test: Annotated[str | None, typer.Option(help="Test images, to measure the accuracy.", metavar="IMAGES")] = None
    triggered: Annotated[
        Path | None,
        typer.Option(
            help="Images with the trigger, to measure the attack. triggered.parquet, or a folder with --poison-label.",
            metavar="IMAGES",
        ),
    ] = None
    fold: Annotated[bool, typer.Option("--fold", help="Also write the model without the layer, as fast.")] = False
    method: Annotated[
        str,
        typer.Option(help=f"The defense; {', '.join(DEFENSES)}, or MODULE:CLASS of your own.", metavar="NAME"),
    ] = DEFAULT
    target: Annotated[
        str | None,
        typer.Option(
            help="The attacker's class, if you know it. npd-ls, npd-tp, npd-tu: a number, 'next' for all-to-all, or "
            "'auto': the one that an audit finds; if none, npd takes the place of npd-tp and npd-tu.",
            metavar="CLASS",
        ),
    ] = None
    own: options.OwnSettings = None
    seed: options.Seed = 0
    site: Annotated[
        str | None,
        typer.Option(help="Where the layer goes: before:NAME, after:NAME or auto. NPD only; default: the preset's."),
    ] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the clean images.", min=1, metavar="N")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images at once.", min=1, metavar="N")] = None
    radius: Annotated[
        list[float] | None,
        typer.Option(help="NPD: radius of the perturbations, in pixel units of [0, 1]. Repeatable."),
    ] = None
    preset: Annotated[
        Preset | None,
        typer.Option(help="NPD: shipped, paper or reference settings. The last are those of the authors' code."),
    ] = None
    scale: Annotated[
        Scale | None, typer.Option(help="Other methods: paper settings, or laptop: minutes on two cores.")
    ] = None
    mixture: Annotated[
        str | None,
        typer.Option(
            help="Poisoned training images, for ep only. It sees these instead of the clean ones.", metavar="IMAGES"
        ),
    ] = None
    reading: options.Reading
    classes: options.Classes = None
    poison_label: options.PoisonLabelText = None
    precision: options.PrecisionName = None
    device: options.DeviceName = None
    force: Annotated[
        bool,
        typer.Option("--force", help="Go on where the model only guesses on the clean images."),
    ] = False
    quiet: options.Quiet = False


@from_options(_Options)
def purify(asked: _Options) -> None:
    """Take the backdoor out of a classifier, and write the purified model, run.json and report.html.

    The default method, npd-ls, inserts one small layer; docs/reference/methods.md has the others.
    """
    started = time.perf_counter()
    place = choose_device(asked.device)
    named = asked.profile if asked.profile in PROFILES else None
    job = _read(asked, _chosen_defense(asked, named, place))  # wrong usage is told before anything is read
    profile, notes = named or _profile_of(job.loaded.record), tuple[str, ...]()
    job = replace(job, defense=_chosen_defense(asked, profile, place))
    if not asked.quiet:
        show_warnings((), _costs(asked, job))
    if asked.target == AUTO:
        asked, notes = _with_target(asked, job, place)
        job = replace(job, defense=_chosen_defense(asked, profile, place), method=asked.method)
    with result_folder(asked.out), bars(quiet=asked.quiet) as progress:
        record = run_purify(
            job,
            asked.out,
            device=place,
            notes=notes,
            load_seconds=time.perf_counter() - started,
            command=["polarizer", *asked.context.find_root().obj],
            progress=progress,
        )
        if asked.fold:
            record = fold_run(asked.out, job.pool, job.evidence, device=place, architecture=asked.reading.network)
    if not asked.quiet:
        folded = [record["fold"]["remark"]] if asked.fold else []
        show_warnings((*record["warnings"], *record["threats"]), (*record["findings"], *folded))
        show_result(record)
        show_report(asked.out / REPORT)


def _read(asked: _Options, defense: Defense) -> Purification:
    """What was asked for, with all that it names read."""
    loaded = asked.reading.model(asked.model)
    shape, known = asked.reading.image_size(loaded), options.classes_of(loaded, asked.classes)
    if known is not None and known.binding:
        loaded = replace(loaded, record=replace(loaded.record, classes=None))  # the images have the file's
    form: dict[str, Any] = {"num_classes": loaded.record.num_classes, "classes": known}
    pool = read_images(asked.clean, size=shape, **form)
    check_takes(loaded, pool.image_size)
    triggered = options.triggered_path(asked.model, asked.triggered)
    poisoned = None if asked.mixture is None else read_images(asked.mixture, size=pool.image_size, **form)
    label = options.parse_label(asked.poison_label, "--poison-label")
    evidence = options.read_evidence(asked.test, triggered, size=pool.image_size, poison_label=label, **form)
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


def _chosen_defense(asked: _Options, profile: str | None, device: torch.device) -> Defense:
    """The defense that was asked for, with its settings; what makes no sense for it is refused.

    ``profile`` is the data set that the images are like, a name of ``PROFILES``, if that is known.
    """
    method = asked.method
    if method not in DEFENSES and ":" not in method:
        raise typer.BadParameter(f"--method {method!r}: choose one of {', '.join(DEFENSES)}, or give MODULE:CLASS")
    options.look_in_current_folder(method)
    # any class, to check the other options with; ``purify`` puts the audit's in its place
    target = (
        0 if asked.target == AUTO else options.parse_label(asked.target, "--target", "a class number, 'next' or 'auto'")
    )
    defense = make_defense(method, name=asked.preset, scale=asked.scale, profile=profile, target=target)
    given = {
        "site": asked.site,
        "epochs": asked.epochs,
        "batch-size": asked.batch_size,
        "radius": tuple(asked.radius) if asked.radius else None,
        "precision": asked.precision,
        "mixture": None if asked.mixture is None else "mixture",
    }
    defense = with_options(with_precision(defense, choose_precision(device)), method, given)
    return changed(defense, options.parse_settings(asked.own or (), setting_names(defense)))


def _profile_of(record: ModelRecord) -> str | None:
    """The data set with the model's normalisation, if only one has it."""
    names = [name for name, statistics in PROFILES.items() if statistics == (record.mean, record.std)]
    return names[0] if len(names) == 1 else None


def _costs(asked: _Options, job: Purification) -> list[str]:
    """What must be said beforehand of how long it will take."""
    classes = job.loaded.record.num_classes
    audit = cost_of_looks(looking_for(job.defense), classes) if asked.target == AUTO else None
    found = (audit, job.defense.cost_of_classes(asked.n_clean or len(job.pool), classes))
    return [each for each in found if each is not None]


def _with_target(asked: _Options, job: Purification, place: torch.device) -> tuple[_Options, tuple[str, ...]]:
    """``asked`` with the method and the target that an audit decides on, and its reason."""
    with bars(quiet=asked.quiet) as progress:
        images = chosen_images(job.pool, asked.n_clean, asked.seed)[1]
        patient = admitted(job.loaded.model, images, device=place, force=asked.force, progress=progress)
        sought = looking_for(job.defense)
        found = choose_target(
            asked.method, patient.working, images, sought, seed=asked.seed, device=place, progress=progress
        )
    target = None if found.target is None else str(found.target)
    return replace(asked, method=found.method, target=target), (found.reason,)
