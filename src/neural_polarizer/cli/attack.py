"""``polarizer attack``."""

from dataclasses import fields, replace
from inspect import getdoc, getmodule
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from neural_polarizer.attacks import ATTACKS, attack_class
from neural_polarizer.attacks.recipes import recipe
from neural_polarizer.cli.options import (
    DeviceName,
    GivenArchitecture,
    Limit,
    OwnSettings,
    PrecisionName,
    ProfileName,
    Quiet,
    Seed,
    Size,
    Weights,
    Width,
    look_in_current_folder,
    network_named,
    parse_settings,
    parse_size,
)
from neural_polarizer.cli.output import console, show_table
from neural_polarizer.cli.progress import bars
from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.poison import LabelRule
from neural_polarizer.data.sources import read_images
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.files import result_folder
from neural_polarizer.model_files.load import load_model
from neural_polarizer.runs.attack import Victim, deliver_attack
from neural_polarizer.scales import Scale
from neural_polarizer.train import AdversarialTraining, Schedule

FEW_EPOCHS = 30


def attack(
    name: Annotated[
        str | None, typer.Argument(help=f"Which attack; {', '.join(ATTACKS)}, or MODULE:CLASS of your own.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Training images, a data spec.")] = None,
    test: Annotated[str | None, typer.Option(help="Test images, a data spec.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; made if need be.")] = None,
    dotted: Annotated[str | None, typer.Option("--attack", help="Another way to give the name.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show all attacks and leave.")] = False,
    scale: Annotated[Scale, typer.Option(help="The paper's recipe, or minutes on two cores.")] = "paper",
    arch: GivenArchitecture = None,
    width: Width = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Plant into this trained network by fine-tuning it; a checkpoint, with --arch where it is not ours.",
            metavar="CHECKPOINT",
        ),
    ] = None,
    weights: Weights = None,
    target: Annotated[int, typer.Option(help="The attacker's class.", min=0)] = 0,
    label_rule: Annotated[
        LabelRule,
        typer.Option(
            help="To the target class; to the next class; from one class only (--set source=C); or several triggers "
            "for several classes (--set targets=[0,3,5])."
        ),
    ] = "all-to-one",
    poison_rate: Annotated[
        float | None,
        typer.Option(help="Share of the training images that are poisoned; default: the attack's own, mostly 0.1."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; default: the scale's.", min=1)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", min=1)] = None,
    policy: Annotated[
        Literal["auto", "cosine", "one-cycle", "constant"],
        typer.Option(help=f"Learning rates; auto: the scale's, but one-cycle for up to {FEW_EPOCHS} epochs."),
    ] = "auto",
    lr: Annotated[float | None, typer.Option(help="Peak rate; 0.01, or 0.1 for one-cycle.")] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror images; default: with --profile cifar10 only."),
    ] = None,
    crop_padding: Annotated[
        int | None, typer.Option(help="Pixels of padding for random crops; crops can cut a trigger off.", min=0)
    ] = None,
    adversarial_training: Annotated[
        bool, typer.Option("--adversarial-training", help="The adaptive attacker: train on adversarial examples.")
    ] = False,
    eps: Annotated[float, typer.Option(help="Radius of the adversarial examples, of 255 (L_inf).")] = 8.0,
    pgd_steps: Annotated[
        int | None, typer.Option(help="Steps towards each adversarial example; default: the scale's.", min=1)
    ] = None,
    spare_triggered: Annotated[
        bool,
        typer.Option("--spare-triggered", help="No adversarial examples of triggered images: keeps faint triggers."),
    ] = False,
    profile: ProfileName = None,
    size: Size = None,
    limit: Limit = None,
    settings: OwnSettings = None,
    precision: PrecisionName = None,
    device: DeviceName = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a backdoored model; a run that was interrupted goes on where it stopped."""
    if listed:
        show_table(_list())
        return
    missing = [f"--{option}" for option, value in (("data", data), ("test", test), ("out", out)) if value is None]
    chosen = name or dotted
    if chosen is None:
        raise typer.BadParameter("name an attack; --list shows them")
    if data is None or test is None or out is None:
        raise typer.BadParameter(f"missing {', '.join(missing)}")
    look_in_current_folder(chosen)
    kind = attack_class(chosen)
    base = recipe(kind, scale=scale, profile=profile or "none", implant=init is not None)
    own = {**base.settings, **parse_settings(settings or [], [field.name for field in fields(kind)])}
    rate = {} if poison_rate is None else {"poison_rate": poison_rate}
    planted = kind(**{"target": target, "label_rule": label_rule, **rate, **own})
    network = network_named(arch)
    if init is None and not isinstance(network, str | None):
        raise typer.BadParameter(
            "--arch FILE.py:NAME goes with --init; victims from random weights have networks by name"
        )
    if init is not None and width is not None:
        raise typer.BadParameter("--width is for victims from random weights; that of --init is as it is")
    start = None if init is None else load_model(init, architecture=network, profile=profile, weights=weights)
    shape = parse_size(size)
    train_images = read_images(data, size=shape, limit=limit)
    known = ClassNames(train_images.classes, said_by=data)
    test_images = read_images(test, size=shape, num_classes=train_images.num_classes, classes=known)
    place = choose_device(device)
    asked: dict[str, Any] = {"batch_size": batch_size, "crop_padding": crop_padding, "flip": flip}
    hardening = AdversarialTraining(eps=eps / 255, steps=pgd_steps or base.pgd_steps, spare_triggered=spare_triggered)
    schedule = replace(
        _schedule(base.schedule, epochs, policy, lr),
        **{option: value for option, value in asked.items() if value is not None},
        precision=precision or choose_precision(place),
        adversarial=hardening if adversarial_training else None,
    )
    name_of_network = arch or "preactresnet18"
    if start is not None:
        name_of_network, width = start.record.architecture, start.record.width
    elif name_of_network == "preactresnet18":
        width = width or base.width
    victim = Victim(architecture=name_of_network, width=width, profile=profile or "none", schedule=schedule, seed=seed)
    with result_folder(out), bars(console, quiet=quiet) as progress:
        record = deliver_attack(
            planted, train_images, test_images, out, victim=victim, device=place, init=start, progress=progress
        )
    if not quiet:
        show_table(_summary(record))
        console.print(f"written to {out}", markup=False, highlight=False)


def _schedule(base: Schedule, epochs: int | None, policy: str, lr: float | None) -> Schedule:
    """The scale's schedule with the user's epochs and rates; few epochs need another policy than many."""
    kind: Any = policy
    if policy == "auto":
        kind = "one-cycle" if (epochs or base.epochs) <= FEW_EPOCHS else base.policy
    rate = base.lr if kind == base.policy else (0.1 if kind == "one-cycle" else 0.01)
    return replace(base, epochs=epochs or base.epochs, policy=kind, lr=lr or rate)


def _list() -> Table:
    table = Table(title="Attacks (the paper's Table 10)")
    for head in ("name", "fusion", "size", "visibility", "trigger", "what it does"):
        table.add_column(head)
    for name, kind in ATTACKS.items():
        about = kind.category
        line = (getdoc(getmodule(kind)) or "").partition(": ")[2]
        table.add_row(name, about.fusion, about.size, about.visibility, about.variability, line.strip())
    return table


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
