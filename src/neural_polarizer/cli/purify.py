"""``polarizer purify``."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from neural_polarizer.artifacts import load_model
from neural_polarizer.cli.inputs import read_evidence, triggered_path
from neural_polarizer.cli.options import (
    DeviceName,
    Out,
    PrecisionName,
    ProfileName,
    Quiet,
    Seed,
    Size,
    parse_size,
)
from neural_polarizer.cli.output import console, show_table
from neural_polarizer.cli.progress import bars
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses.presets import Target, preset
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.report.terminal import summary_table
from neural_polarizer.runs.fold import fold_run
from neural_polarizer.runs.purify import run_purify

Method = Literal["npd", "npd-tp", "npd-tu", "npd-uu", "npd-up"]


def purify(
    model: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of an attack.")],
    clean: Annotated[str, typer.Option(help="Clean images, a data spec.")],
    out: Out,
    arch: Annotated[
        str | None,
        typer.Option(help="preactresnet18, vgg19_bn, torchvision:NAME or timm:NAME; ours say it themselves."),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes, if the file does not tell.", min=2)
    ] = None,
    profile: ProfileName | None = None,
    method: Annotated[Method, typer.Option(help="Which of the family; npd-tp and npd-tu know the target.")] = "npd",
    target: Annotated[
        str | None, typer.Option(help="npd-tp, npd-tu: the attacker's class, or 'next' for all-to-all.")
    ] = None,
    settings: Annotated[
        Literal["shipped", "paper", "reference"],
        typer.Option("--preset", help="Our defaults, the paper's values, or those of the authors' code."),
    ] = "shipped",
    site: Annotated[str | None, typer.Option(help="before:NAME or after:NAME; default: the preset's.")] = None,
    n_clean: Annotated[
        int | None, typer.Option(help="How many of the clean images to use; default: all.", min=1)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the clean images.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    radius: Annotated[
        list[float] | None,
        typer.Option(help="Radius of the perturbations, in pixel units of [0, 1]; repeatable."),
    ] = None,
    test: Annotated[str | None, typer.Option(help="Test images, a data spec: measures ACC.")] = None,
    triggered: Annotated[Path | None, typer.Option(help="triggered.parquet: measures ASR and RA.")] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Also write the model without the layer, as fast.")] = False,
    size: Size = None,
    precision: PrecisionName = None,
    device: DeviceName = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Take the backdoor out of a classifier; writes the purified model, run.json and report.html."""
    started = time.perf_counter()
    defense = preset(method, name=settings, profile=profile, target=_target(target))
    place = choose_device(device)
    changes: dict[str, Any] = {
        "site": site,
        "epochs": epochs,
        "batch_size": batch_size,
        "radii": tuple(radius) if radius else None,
        "precision": precision or choose_precision(place),
    }
    defense = replace(defense, **{name: value for name, value in changes.items() if value is not None})
    loaded = load_model(model, architecture=arch, num_classes=num_classes, profile=profile)
    shape = parse_size(size) or loaded.record.image_size
    pool = read_images(clean, size=shape, num_classes=loaded.record.num_classes)
    triggered = triggered_path(model, triggered)
    evidence = read_evidence(test, triggered, size=pool.image_size, num_classes=loaded.record.num_classes)
    with bars(console, quiet=quiet) as progress:
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
            sources={
                "clean": clean,
                "test": test,
                "triggered": None if triggered is None else str(triggered),
            },
            load_seconds=time.perf_counter() - started,
            command=["polarizer", *sys.argv[1:]],
            progress=progress,
        )
        if fold:
            record = fold_run(out, pool, evidence, device=place)
    if not quiet:
        show_table(summary_table(record))
        folded = [record["fold"]["remark"]] if fold else []
        for remark in (*record["findings"], *record["warnings"], *folded):
            console.print(f"note: {remark}", markup=False, highlight=False)
        console.print(f"report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def _target(text: str | None) -> Target:
    if text is None or text == "next":
        return "next" if text else None
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"--target {text!r}: expected a class number or 'next'") from None
