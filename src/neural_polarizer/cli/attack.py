"""``polarizer attack``."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from neural_polarizer.attacks import ATTACKS
from neural_polarizer.cli.options import (
    Architecture,
    DeviceName,
    Limit,
    Out,
    PrecisionName,
    ProfileName,
    Quiet,
    Seed,
    Size,
    Width,
    parse_size,
)
from neural_polarizer.cli.output import console, show_table
from neural_polarizer.cli.progress import bars
from neural_polarizer.data.sources import read_images
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.errors import BadInputError
from neural_polarizer.runs.attack import run_attack
from neural_polarizer.train import Schedule

FEW_EPOCHS = 30


def attack(
    name: Annotated[str, typer.Argument(help=f"Which attack: {', '.join(ATTACKS)}.")],
    data: Annotated[str, typer.Option(help="Training images, a data spec.")],
    test: Annotated[str, typer.Option(help="Test images, a data spec.")],
    out: Out,
    arch: Architecture = "preactresnet18",
    width: Width = None,
    target: Annotated[int, typer.Option(help="The attacker's class.", min=0)] = 0,
    label_rule: Annotated[
        Literal["all-to-one", "all-to-all"], typer.Option(help="To the target class, or to the next class.")
    ] = "all-to-one",
    poison_rate: Annotated[float, typer.Option(help="Share of the training images that are poisoned.")] = 0.1,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    policy: Annotated[
        Literal["auto", "cosine", "one-cycle", "constant"],
        typer.Option(help=f"Learning rates; auto: one-cycle for up to {FEW_EPOCHS} epochs, else cosine."),
    ] = "auto",
    lr: Annotated[float | None, typer.Option(help="Peak rate; 0.01, or 0.1 for one-cycle.")] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror images; default: with --profile cifar10 only."),
    ] = None,
    crop_padding: Annotated[
        int, typer.Option(help="Pixels of padding for random crops; crops can cut a trigger off.", min=0)
    ] = 4,
    profile: ProfileName = "none",
    size: Size = None,
    limit: Limit = None,
    picture: Annotated[Path | None, typer.Option(help="blended: your own trigger picture.")] = None,
    alpha: Annotated[float | None, typer.Option(help="blended: share of the picture in the mix.")] = None,
    patch: Annotated[int | None, typer.Option(help="badnets: edge of the square in pixels.")] = None,
    precision: PrecisionName = None,
    device: DeviceName = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a backdoored model; a run that was interrupted goes on where it stopped."""
    if name not in ATTACKS:
        raise BadInputError(f"unknown attack {name!r}: choose one of {', '.join(ATTACKS)}")
    own: dict[str, dict[str, object]] = {
        "blended": {"picture": picture and str(picture), "alpha": alpha},
        "badnets": {"size": patch},
    }
    given = {key: value for options in own.values() for key, value in options.items() if value is not None}
    foreign = [key for key in given if key not in own[name]]
    if foreign:
        raise typer.BadParameter(f"{name} has no {', '.join(foreign)}")
    planted = ATTACKS[name](target=target, label_rule=label_rule, poison_rate=poison_rate, **given)
    shape = parse_size(size)
    train_images = read_images(data, size=shape, limit=limit)
    test_images = read_images(test, size=shape, num_classes=train_images.num_classes)
    place = choose_device(device)
    kind = policy if policy != "auto" else ("one-cycle" if epochs <= FEW_EPOCHS else "cosine")
    schedule = Schedule(
        epochs=epochs,
        batch_size=batch_size,
        policy=kind,
        lr=lr or (0.1 if kind == "one-cycle" else 0.01),
        crop_padding=crop_padding,
        flip=profile == "cifar10" if flip is None else flip,
        precision=precision or choose_precision(place),
    )
    with bars(console, quiet=quiet) as progress:
        record = run_attack(
            planted,
            train_images,
            test_images,
            out,
            architecture=arch,
            width=width,
            profile=profile,
            schedule=schedule,
            seed=seed,
            device=place,
            progress=progress,
        )
    if not quiet:
        show_table(_summary(record))
        console.print(f"written to {out}", markup=False, highlight=False)


def _summary(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['attack']} ({record['settings']['label_rule']})")
    for head in ("ACC", "ASR", "RA", "poisoned", "seconds"):
        table.add_column(head, justify="right")
    table.add_row(
        *(f"{100 * record[key]:.2f} %" for key in ("acc", "asr", "ra")),
        str(record["n_poisoned"]),
        f"{sum(record['seconds'].values()):.0f}",
    )
    return table
