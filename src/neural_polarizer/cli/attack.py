"""``polarizer attack``."""

from dataclasses import dataclass, fields, replace
from inspect import getdoc, getmodule
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.table import Table

from neural_polarizer.attacks import ATTACKS, Attack, attack_class
from neural_polarizer.attacks.recipes import Recipe, recipe
from neural_polarizer.cli import options
from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.output import bars, console, right, show, show_warnings
from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.poison import LabelRule
from neural_polarizer.data.sources import read_images
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.files import result_folder
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.runs.attack import Planting, Victim, deliver_attack
from neural_polarizer.scales import VictimScale
from neural_polarizer.train.schedule import AdversarialTraining, Schedule

FEW_EPOCHS = 30


@dataclass(frozen=True, kw_only=True)
class _Options:
    name: Annotated[
        str | None, typer.Argument(help=f"Which attack; {', '.join(ATTACKS)}, or MODULE:CLASS of your own.")
    ] = None
    data: Annotated[str | None, typer.Option(help="Training images, a data spec.")] = None
    test: Annotated[str | None, typer.Option(help="Test images, a data spec.")] = None
    out: Annotated[Path | None, typer.Option(help="Folder for the results; made if need be.")] = None
    dotted: Annotated[str | None, typer.Option("--attack", help="Another way to give the name.")] = None
    listed: Annotated[bool, typer.Option("--list", help="Show all attacks and leave.")] = False
    scale: Annotated[VictimScale, typer.Option(help="The paper's recipe, or a shorter one.")] = "paper"
    arch: options.GivenArchitecture = None
    width: Annotated[
        int | None,
        typer.Option(
            help="Channels of the first layer. As published, 64 in preactresnet18, vgg19 and vgg19_bn, 96 in "
            "densenet161, 32 in inception_v3; the other layers have more or fewer accordingly.",
            min=1,
        ),
    ] = None
    init: Annotated[
        Path | None,
        typer.Option(
            help="Plant into this trained network by fine-tuning it; a checkpoint, with --arch where it is not ours.",
            metavar="CHECKPOINT",
        ),
    ] = None
    weights: options.Weights = None
    target: Annotated[int, typer.Option(help="The attacker's class.", min=0)] = 0
    label_rule: Annotated[
        LabelRule,
        typer.Option(
            help="To the target class; to the next class; from one class only (--set source=C); or several triggers "
            "for several classes (--set targets=[0,3,5])."
        ),
    ] = "all-to-one"
    poison_rate: Annotated[
        float | None,
        typer.Option(help="Share of the training images that are poisoned; default: the attack's own, mostly 0.1."),
    ] = None
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; default: the scale's.", min=1)
    ] = None
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", min=1)] = None
    policy: Annotated[
        Literal["auto", "cosine", "one-cycle", "constant"],
        typer.Option(help=f"Learning rates; auto: the scale's, but one-cycle for up to {FEW_EPOCHS} epochs."),
    ] = "auto"
    lr: Annotated[float | None, typer.Option(help="Peak rate; 0.01, or 0.1 for one-cycle.")] = None
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror images; default: with --profile cifar10 only.")
    ] = None
    crop_padding: Annotated[
        int | None, typer.Option(help="Pixels of padding for random crops; crops can cut a trigger off.", min=0)
    ] = None
    adversarial_training: Annotated[
        bool, typer.Option("--adversarial-training", help="The adaptive attacker: train on adversarial examples.")
    ] = False
    eps: Annotated[float, typer.Option(help="Radius of the adversarial examples, of 255 (L_inf).")] = 8.0
    pgd_steps: Annotated[
        int | None, typer.Option(help="Steps towards each adversarial example; default: the scale's.", min=1)
    ] = None
    spare_triggered: Annotated[
        bool,
        typer.Option("--spare-triggered", help="No adversarial examples of triggered images: keeps faint triggers."),
    ] = False
    profile: options.ProfileName = None
    size: options.Size = None
    limit: Annotated[int | None, typer.Option(help="Use only the first N training images.", min=1)] = None
    settings: options.OwnSettings = None
    precision: options.PrecisionName = None
    device: options.DeviceName = None
    seed: options.Seed = 0
    quiet: options.Quiet = False


@from_options(_Options)
def attack(asked: _Options) -> None:
    """Train a backdoored model; a run that was interrupted goes on where it stopped."""
    if asked.listed:
        console.print(_list())
        return
    name, data, test, out = asked.name or asked.dotted, asked.data, asked.test, asked.out
    if name is None:
        raise typer.BadParameter("name an attack; --list shows them")
    if data is None or test is None or out is None:
        missing = [option for option, value in (("--data", data), ("--test", test), ("--out", out)) if value is None]
        raise typer.BadParameter(f"missing {', '.join(missing)}")
    options.look_in_current_folder(name)
    kind = attack_class(name)
    base = recipe(kind, scale=asked.scale, profile=asked.profile or "none", implant=asked.init is not None)
    planted = _planted(kind, base, asked)
    start = _start(asked)
    train_images = read_images(data, size=options.parse_size(asked.size), limit=asked.limit)
    known = ClassNames(train_images.classes, said_by=data)
    test_images = read_images(
        test, size=options.parse_size(asked.size), num_classes=train_images.num_classes, classes=known
    )
    place = choose_device(asked.device)
    victim = _victim(asked, base, start, place)
    with result_folder(out), bars(quiet=asked.quiet) as progress:
        job = Planting(planted, train_images, test_images, victim, start)
        record = deliver_attack(job, out, device=place, progress=progress)
    if not asked.quiet:
        show_warnings(() if start is None else start.threats)
        console.print(_summary(record))
        show(f"written to {out}")


def _planted(kind: type[Attack], base: Recipe, asked: _Options) -> Attack:
    own = {**base.settings, **options.parse_settings(asked.settings or [], [field.name for field in fields(kind)])}
    rate = {} if asked.poison_rate is None else {"poison_rate": asked.poison_rate}
    return kind(**{"target": asked.target, "label_rule": asked.label_rule, **rate, **own})


def _start(asked: _Options) -> LoadedModel | None:
    """The trained network that the attack begins with; None for random weights."""
    network = options.network_named(asked.arch)
    if asked.init is None:
        if isinstance(network, str | None):
            return None
        raise typer.BadParameter(
            "--arch FILE.py:NAME goes with --init; victims from random weights have networks by name"
        )
    if asked.width is not None:
        raise typer.BadParameter("--width is for victims from random weights; that of --init is as it is")
    return load_model(asked.init, architecture=network, profile=asked.profile, weights=asked.weights)


def _victim(asked: _Options, base: Recipe, start: LoadedModel | None, place: torch.device) -> Victim:
    """What is trained, and how: the recipe's schedule with what the user asked for."""
    given: dict[str, Any] = {"batch_size": asked.batch_size, "crop_padding": asked.crop_padding, "flip": asked.flip}
    hardening = AdversarialTraining(
        eps=asked.eps / 255, steps=asked.pgd_steps or base.pgd_steps, spare_triggered=asked.spare_triggered
    )
    schedule = replace(
        _schedule(base.schedule, asked.epochs, asked.policy, asked.lr),
        **{option: value for option, value in given.items() if value is not None},
        precision=asked.precision or choose_precision(place),
        adversarial=hardening if asked.adversarial_training else None,
    )
    network, width = asked.arch or "preactresnet18", asked.width
    if start is not None:
        network, width = start.record.architecture, start.record.width
    elif network == "preactresnet18":
        width = width or base.width
    profile = asked.profile or "none"
    return Victim(architecture=network, width=width, profile=profile, schedule=schedule, seed=asked.seed)


def _schedule(base: Schedule, epochs: int | None, policy: str, lr: float | None) -> Schedule:
    """The scale's schedule with the user's epochs and rates; few epochs need another policy than many."""
    kind: Any = policy
    if policy == "auto":
        kind = "one-cycle" if (epochs or base.epochs) <= FEW_EPOCHS else base.policy
    rate = base.lr if kind == base.policy else (0.1 if kind == "one-cycle" else 0.01)
    return replace(base, epochs=epochs or base.epochs, policy=kind, lr=lr or rate)


def _list() -> Table:
    heads = ("name", "fusion", "size", "visibility", "trigger", "what it does")
    table = Table(*heads, title="Attacks (the paper's Table 10)")
    for name, kind in ATTACKS.items():
        about = kind.category
        line = (getdoc(getmodule(kind)) or "").partition(": ")[2]
        table.add_row(name, about.fusion, about.size, about.visibility, about.variability, line.strip())
    return table


def _summary(record: dict[str, Any]) -> Table:
    heads = right("ACC", "ASR", "RA", "poisoned", "seconds")
    table = Table(*heads, title=f"{record['attack']} ({record['settings']['label_rule']})")
    table.add_row(
        *(f"{100 * record[key]:.2f} %" for key in ("acc", "asr", "ra")),
        str(record["n_poisoned"]),
        f"{sum(record['seconds'].values()):.0f}",
    )
    return table
