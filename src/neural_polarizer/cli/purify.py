"""``polarizer purify``."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from neural_polarizer.audit import choose_target
from neural_polarizer.cli.defense import AUTO, Wanted, chosen_defense, profile_of
from neural_polarizer.cli.inputs import classes_of, given_words, parse_poison_label, read_evidence, triggered_path
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
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses import DEFAULT, DEFENSES
from neural_polarizer.defenses.npd.presets import Preset
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.defenses.stand_ins.looks import cost_of_looks
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.devices import choose_device
from neural_polarizer.files import result_folder
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.runs.fold import fold_run
from neural_polarizer.runs.purify import REPORT, chosen_images, run_purify
from neural_polarizer.scales import Scale


def purify(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of attack or transformers.")],
    clean: Annotated[str, typer.Option(help="Clean images: a folder or another data spec.", metavar="IMAGES")],
    out: Out,
    arch: GivenArchitecture = None,
    profile: ProfileName = None,
    n_clean: Annotated[
        int | None, typer.Option(help="How many of the clean images to use. Default: all.", min=1)
    ] = None,
    test: Annotated[str | None, typer.Option(help="Test images, to measure the accuracy.", metavar="IMAGES")] = None,
    triggered: Annotated[
        Path | None,
        typer.Option(
            help="Images with the trigger, to measure the attack. triggered.parquet, or a folder with --poison-label.",
            metavar="IMAGES",
        ),
    ] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Also write the model without the layer, as fast.")] = False,
    method: Annotated[
        str,
        typer.Option(help=f"The defense; {', '.join(DEFENSES)}, or MODULE:CLASS of your own.", metavar="NAME"),
    ] = DEFAULT,
    target: Annotated[
        str | None,
        typer.Option(
            help="The attacker's class, if you know it. npd-ls, npd-tp, npd-tu: a number, 'next' for all-to-all, or "
            "'auto': what an audit finds with confidence, and npd if it finds none.",
            metavar="CLASS",
        ),
    ] = None,
    own: OwnSettings = None,
    seed: Seed = 0,
    site: Annotated[
        str | None,
        typer.Option(help="Where the layer goes: before:NAME, after:NAME or auto. NPD only; default: the preset's."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the clean images.", min=1, metavar="N")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once.", min=1, metavar="N")] = None,
    radius: Annotated[
        list[float] | None,
        typer.Option(help="NPD: radius of the perturbations, in pixel units of [0, 1]. Repeatable."),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help="NPD: shipped, paper or reference settings. The last are those of the authors' code."),
    ] = None,
    scale: Annotated[
        Scale | None, typer.Option(help="Other methods: paper settings, or laptop: minutes on two cores.")
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(
            help="Poisoned training images, for ep only. It sees these instead of the clean ones.", metavar="IMAGES"
        ),
    ] = None,
    num_classes: NumClasses = None,
    weights: Weights = None,
    output: Output = None,
    channels: Channels = None,
    size: Size = None,
    classes: Classes = None,
    poison_label: PoisonLabelText = None,
    precision: PrecisionName = None,
    device: DeviceName = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Go on where the model only guesses on the clean images."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Take the backdoor out of a classifier, and write the purified model, run.json and report.html.

    The default method, npd-ls, inserts one small layer; docs/reference/methods.md has the others.
    """
    started = time.perf_counter()
    place = choose_device(device)
    wanted = Wanted(
        method=method,
        preset=preset,
        scale=scale,
        target=target,
        site=site,
        epochs=epochs,
        batch_size=batch_size,
        radii=tuple(radius) if radius else None,
        precision=precision,
        mixture=mixture,
        own=tuple(own or ()),
    )
    named = profile if profile in PROFILES else None
    chosen_defense(wanted, named, place)  # wrong usage is told before anything is read
    network = network_named(arch)
    loaded = load_model(
        model,
        architecture=network,
        num_classes=num_classes,
        profile=profile,
        weights=weights,
        output=output,
        channels=None if channels is None else int(channels),
    )
    shape = parse_size(size) or loaded.record.image_size
    known = classes_of(loaded, classes)
    if known is not None and known.binding:
        loaded = replace(loaded, record=replace(loaded.record, classes=None))  # the images have the file's
    form: dict[str, Any] = {"num_classes": loaded.record.num_classes, "classes": known}
    pool = read_images(clean, size=shape, **form)
    check_takes(loaded, pool.image_size)
    triggered = triggered_path(model, triggered)
    poisoned = None if mixture is None else read_images(mixture, size=pool.image_size, **form)
    label = parse_poison_label(poison_label)
    evidence = read_evidence(test, triggered, size=pool.image_size, poison_label=label, **form)
    notes: tuple[str, ...] = ()
    defense = chosen_defense(wanted, named or profile_of(loaded.record), place)
    looked = cost_of_looks(Settings(), loaded.record.num_classes) if target == AUTO else None
    for each in (looked, defense.cost_of_classes(n_clean or len(pool), loaded.record.num_classes)):
        if each is not None and not quiet:
            show_warnings((), (each,))
    if target == AUTO:
        with bars(console, quiet=quiet) as progress:
            images = chosen_images(pool, n_clean, seed)[1]
            patient = admitted(loaded.model, images, device=place, force=force, progress=progress)
            found = choose_target(method, patient.working, images, seed=seed, device=place, progress=progress)
        method, notes = found.method, (found.reason,)
        wanted = replace(wanted, method=method, target=None if found.target is None else str(found.target))
        defense = chosen_defense(wanted, named or profile_of(loaded.record), place)
    with result_folder(out), bars(console, quiet=quiet) as progress:
        record = run_purify(
            loaded,
            pool,
            defense,
            out,
            method=method,
            n_clean=n_clean,
            seed=seed,
            device=place,
            evidence=evidence,
            mixture=poisoned,
            sources={
                "clean": clean,
                "test": test,
                "triggered": None if triggered is None else str(triggered),
                "mixture": mixture,
                **({} if label is None else {"poison_label": label}),
            },
            notes=notes,
            force=force,
            load_seconds=time.perf_counter() - started,
            command=["polarizer", *given_words(context)],
            progress=progress,
        )
        if fold:
            record = fold_run(out, pool, evidence, device=place, architecture=network)
    if not quiet:
        folded = [record["fold"]["remark"]] if fold else []
        show_warnings(record["warnings"], (*record["findings"], *folded))
        show_result(record)
        show_report(out / REPORT)
