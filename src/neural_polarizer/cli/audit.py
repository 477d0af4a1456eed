"""``polarizer audit``."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import typer

from neural_polarizer.cli.inputs import classes_of
from neural_polarizer.cli.options import (
    Channels,
    Classes,
    DeviceName,
    GivenArchitecture,
    NumClasses,
    Out,
    Output,
    OwnSettings,
    ProfileName,
    Quiet,
    Seed,
    Size,
    Weights,
    network_named,
    parse_settings,
    parse_size,
)
from neural_polarizer.cli.output import console, show, show_report, show_warnings
from neural_polarizer.cli.progress import bars
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses.stand_ins.looks import cost_of_looks
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.devices import choose_device
from neural_polarizer.files import result_folder
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.load import load_model
from neural_polarizer.report.run.advice import after_audit
from neural_polarizer.report.run.audit_page import judge_audit
from neural_polarizer.runs.audit import REPORT, run_audit
from neural_polarizer.settings import changed, setting_names

FailOn = Literal["backdoor", "cannot-say"]
REFUSED = 5
_REFUSED: Mapping[FailOn | None, tuple[str, ...]] = MappingProxyType(
    {None: (), "backdoor": ("backdoor",), "cannot-say": ("backdoor", "cannot say")}
)


def audit(
    model: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of attack or transformers.")],
    clean: Annotated[str, typer.Option(help="Clean images, a data spec.")],
    out: Out,
    purified: Annotated[
        Path | None, typer.Option(help="The same model after a defense; a folder of purify, or a file.")
    ] = None,
    n_clean: Annotated[
        int | None, typer.Option(help="How many of the clean images to use; default: all.", min=1)
    ] = None,
    arch: GivenArchitecture = None,
    num_classes: NumClasses = None,
    profile: ProfileName = None,
    weights: Weights = None,
    output: Output = None,
    channels: Channels = None,
    size: Size = None,
    classes: Classes = None,
    device: DeviceName = None,
    seed: Seed = 0,
    own: OwnSettings = None,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            help="Exit code 5 on this verdict; of the purified model if there is one, 'cannot-say' refuses both."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Look for a backdoor with clean images only; writes audit.json and report.html."""
    place = choose_device(device)
    settings = changed(Settings(), parse_settings(own or (), setting_names(Settings())))
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
    after = None if purified is None else load_model(purified, architecture=network, profile=profile)
    shape = parse_size(size) or loaded.record.image_size
    known = classes_of(loaded, classes)
    pool = read_images(clean, size=shape, num_classes=loaded.record.num_classes, classes=known)
    for each in (loaded, *(() if after is None else (after,))):
        check_takes(each, pool.image_size)
    cost = cost_of_looks(settings, loaded.record.num_classes)
    if cost is not None and not quiet:
        show_warnings((), (cost,))
    with result_folder(out), bars(console, quiet=quiet) as progress:
        record = run_audit(
            loaded,
            pool,
            out,
            purified=after,
            n_clean=n_clean,
            seed=seed,
            settings=settings,
            device=place,
            sources={"clean": clean},
            progress=progress,
        )
    if not quiet:
        show_warnings((), (*record["findings"], *pool.notes))
        for name, part in (("", record), ("after purification: ", record["purified"])):
            if part is not None:
                found = judge_audit(part | {"model": record["model"]})
                show(f"{name}{found.headline}. {found.text}")
        show(f"What now: {' '.join(after_audit(record))}")
        show_report(out / REPORT)
    verdict = str((record["purified"] or record)["verdict"])
    if verdict in _REFUSED[fail_on]:
        raise typer.Exit(REFUSED)
