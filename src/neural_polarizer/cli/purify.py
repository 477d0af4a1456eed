"""``polarizer purify``."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from neural_polarizer.audit import choose_target
from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.defense import AUTO, Wanted, chosen_defense, profile_of
from neural_polarizer.cli.inputs import (
    classes_of,
    given_words,
    parse_poison_label,
    read_evidence,
    read_model,
    triggered_path,
)
from neural_polarizer.cli.options import (
    Channels,
    Classes,
    DeviceName,
    GivenArchitecture,
    NumClasses,
    Out,
    Output,
    OwnSettings,
    PoisonLabelText,
    PrecisionName,
    ProfileName,
    Quiet,
    Seed,
    Size,
    Weights,
    network_named,
    parse_size,
)
from neural_polarizer.cli.output import console, show_report, show_warnings
from neural_polarizer.cli.progress import bars
from neural_polarizer.cli.result import show_result
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses import DEFAULT, DEFENSES, Defense
from neural_polarizer.defenses.npd.presets import Preset
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.defenses.stand_ins.looks import cost_of_looks
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.devices import choose_device
from neural_polarizer.files import result_folder
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.models.definition import Definition
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.runs.fold import fold_run
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.runs.purification import Purification, chosen_images
from neural_polarizer.runs.purify import REPORT, run_purify
from neural_polarizer.scales import Scale


@dataclass(frozen=True, kw_only=True)
class PurifyOptions:
    """What can be asked of ``polarizer purify``."""

    context: typer.Context
    model: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of attack or transformers.")]
    clean: Annotated[str, typer.Option(help="Clean images: a folder or another data spec.", metavar="IMAGES")]
    out: Out
    arch: GivenArchitecture = None
    profile: ProfileName = None
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
            "'auto': what an audit finds with confidence, and npd if it finds none.",
            metavar="CLASS",
        ),
    ] = None
    own: OwnSettings = None
    seed: Seed = 0
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
    num_classes: NumClasses = None
    weights: Weights = None
    output: Output = None
    channels: Channels = None
    size: Size = None
    classes: Classes = None
    poison_label: PoisonLabelText = None
    precision: PrecisionName = None
    device: DeviceName = None
    force: Annotated[
        bool,
        typer.Option("--force", help="Go on where the model only guesses on the clean images."),
    ] = False
    quiet: Quiet = False


@from_options(PurifyOptions)
def purify(asked: PurifyOptions) -> None:
    """Take the backdoor out of a classifier, and write the purified model, run.json and report.html.

    The default method, npd-ls, inserts one small layer; docs/reference/methods.md has the others.
    """
    started = time.perf_counter()
    place = choose_device(asked.device)
    wanted = _wanted(asked)
    named = asked.profile if asked.profile in PROFILES else None
    chosen_defense(wanted, named, place)  # wrong usage is told before anything is read
    given = _read(asked)
    profile, notes = named or profile_of(given.loaded.record), tuple[str, ...]()
    defense = chosen_defense(wanted, profile, place)
    if not asked.quiet:
        show_warnings((), _costs(asked, defense, given))
    if wanted.target == AUTO:
        wanted, notes = _with_target(wanted, asked, given, place)
        defense = chosen_defense(wanted, profile, place)
    with result_folder(asked.out), bars(console, quiet=asked.quiet) as progress:
        record = run_purify(
            _job(asked, given, defense, wanted.method),
            asked.out,
            device=place,
            notes=notes,
            load_seconds=time.perf_counter() - started,
            command=["polarizer", *given_words(asked.context)],
            progress=progress,
        )
        if asked.fold:
            record = fold_run(asked.out, given.pool, given.evidence, device=place, architecture=given.network)
    if not asked.quiet:
        folded = [record["fold"]["remark"]] if asked.fold else []
        show_warnings(record["warnings"], (*record["findings"], *folded))
        show_result(record)
        show_report(asked.out / REPORT)


def _wanted(asked: PurifyOptions) -> Wanted:
    return Wanted(
        method=asked.method,
        preset=asked.preset,
        scale=asked.scale,
        target=asked.target,
        site=asked.site,
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        radii=tuple(asked.radius) if asked.radius else None,
        precision=asked.precision,
        mixture=asked.mixture,
        own=tuple(asked.own or ()),
    )


@dataclass(frozen=True, eq=False)
class _Given:
    """The network that was named, and what was read: model, images, and the data specs for the record."""

    network: str | Definition | None
    loaded: LoadedModel
    pool: ImageSet
    mixture: ImageSet | None
    evidence: Evidence
    sources: Mapping[str, str | int | None]


def _read(asked: PurifyOptions) -> _Given:
    network = network_named(asked.arch)
    loaded = read_model(asked, network)
    shape = parse_size(asked.size) or loaded.record.image_size
    known = classes_of(loaded, asked.classes)
    if known is not None and known.binding:
        loaded = replace(loaded, record=replace(loaded.record, classes=None))  # the images have the file's
    form: dict[str, Any] = {"num_classes": loaded.record.num_classes, "classes": known}
    pool = read_images(asked.clean, size=shape, **form)
    check_takes(loaded, pool.image_size)
    triggered = triggered_path(asked.model, asked.triggered)
    poisoned = None if asked.mixture is None else read_images(asked.mixture, size=pool.image_size, **form)
    label = parse_poison_label(asked.poison_label)
    evidence = read_evidence(asked.test, triggered, size=pool.image_size, poison_label=label, **form)
    sources = {
        "clean": asked.clean,
        "test": asked.test,
        "triggered": None if triggered is None else str(triggered),
        "mixture": asked.mixture,
        **({} if label is None else {"poison_label": label}),
    }
    return _Given(network, loaded, pool, poisoned, evidence, sources)


def _job(asked: PurifyOptions, given: _Given, defense: Defense, method: str) -> Purification:
    return Purification(
        loaded=given.loaded,
        pool=given.pool,
        defense=defense,
        method=method,
        n_clean=asked.n_clean,
        seed=asked.seed,
        evidence=given.evidence,
        sources=given.sources,
        mixture=given.mixture,
        force=asked.force,
    )


def _costs(asked: PurifyOptions, defense: Defense, given: _Given) -> list[str]:
    """What must be said beforehand of how long it will take."""
    classes = given.loaded.record.num_classes
    audit = cost_of_looks(Settings(), classes) if asked.target == AUTO else None
    found = (audit, defense.cost_of_classes(asked.n_clean or len(given.pool), classes))
    return [each for each in found if each is not None]


def _with_target(
    wanted: Wanted, asked: PurifyOptions, given: _Given, place: torch.device
) -> tuple[Wanted, tuple[str, ...]]:
    """``wanted`` with the method and the target that an audit decides on, and its reason."""
    with bars(console, quiet=asked.quiet) as progress:
        images = chosen_images(given.pool, asked.n_clean, asked.seed)[1]
        patient = admitted(given.loaded.model, images, device=place, force=asked.force, progress=progress)
        found = choose_target(wanted.method, patient.working, images, seed=asked.seed, device=place, progress=progress)
    target = None if found.target is None else str(found.target)
    return replace(wanted, method=found.method, target=target), (found.reason,)
