"""``polarizer demo``: the whole story offline, on digits that ship inside a PyPI package."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from neural_polarizer.attacks import BadNets
from neural_polarizer.cli.options import Quiet, Seed
from neural_polarizer.cli.output import bars, console, show, show_report, show_warnings
from neural_polarizer.cli.result import found_and_cost, summary_table
from neural_polarizer.data.poison import read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses import DEFAULT
from neural_polarizer.defenses.recipes import make_defense
from neural_polarizer.devices import choose_device
from neural_polarizer.files import output_folder, result_folder, writing
from neural_polarizer.model_files.load import load_model
from neural_polarizer.progress import Progress
from neural_polarizer.runs.attack import FILES, RECORD, TRAINING_STATE, TRIGGERED, Planting, Victim, run_attack
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.runs.purification import Purification
from neural_polarizer.runs.purify import REPORT, run_purify
from neural_polarizer.train.schedule import Schedule

_TRAIN = "digits:train"
CLEAN_SHARE = 0.05
SCHEDULE = Schedule(epochs=4, batch_size=64, policy="one-cycle", lr=0.1, crop_padding=2, flip=False)


_STAGES = {
    "train": (
        "Training a small classifier of digits. One image in ten gets a white square in its corner and the label 0: "
        "this is the backdoor."
    ),
    "look": "Purifying it with {n} clean images, all defaults. Which class is suspiciously easy to reach?",
    "stand-ins": "Making perturbations that stand in for the trigger, which the defense does not know.",
    "weight": "Learning one small layer that blocks them, and measuring how far it may go without harm.",
}
"""What the command says when a phase of that name begins."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the two runs.")] = Path("runs/demo"),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Plant a backdoor in a small digit classifier, purify it with 5 % clean images, and write the report."""
    with result_folder(out), bars(quiet=quiet) as progress:
        record = _run(out, seed, progress if quiet else _telling(progress))
    if not quiet:
        show_warnings(record["warnings"])
        console.print(summary_table(record))
        found, cost = found_and_cost(record)
        show(f"found: {found}")
        show(f"cost: {cost}")
        show_report(out / "purified" / REPORT)


def _telling(progress: Progress) -> Progress:
    """``progress`` that says what happens when a stage of the demo begins."""
    waiting = dict(_STAGES)

    def tell(phase: str, done: int, total: int) -> None:
        for name in [name for name in waiting if phase.startswith(name)]:
            show(waiting.pop(name).format(n=round(CLEAN_SHARE * len(read_images(_TRAIN)))))
        progress(phase, done, total)

    return tell


def _run(out: Path, seed: int, progress: Progress) -> dict[str, Any]:
    train, test = read_images(_TRAIN), read_images("digits:test")
    device = choose_device(None)
    attacked = out / "attack"
    victim = Victim(architecture="preactresnet18", width=8, profile="none", schedule=SCHEDULE, seed=seed)
    with writing(output_folder(attacked), () if (attacked / RECORD).exists() else (*FILES, TRAINING_STATE)):
        run_attack(Planting(BadNets(), train, test, victim), attacked, device=device, progress=progress)
    started = time.perf_counter()
    loaded = load_model(attacked)
    triggered = read_triggered(attacked / TRIGGERED, size=None, num_classes=train.num_classes)
    job = Purification(
        loaded=loaded,
        pool=train,
        defense=make_defense(DEFAULT),
        method=DEFAULT,
        n_clean=round(CLEAN_SHARE * len(train)),
        seed=seed,
        evidence=Evidence(test=test, triggered=triggered),
        sources={"clean": train.source, "test": test.source, "triggered": str(attacked / TRIGGERED)},
    )
    return run_purify(
        job,
        out / "purified",
        device=device,
        load_seconds=time.perf_counter() - started,
        command=["polarizer", "demo", "--out", str(out), "--seed", str(seed)],
        progress=progress,
    )
