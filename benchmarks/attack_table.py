"""All attacks at laptop scale: ACC, ASR, how visible the trigger is, seconds and peak memory of each.

    python benchmarks/attack_table.py --data DATA --out runs/attack_table

DATA holds ``cifar10/`` and ``gtsrb/`` with ``train.parquet`` and ``test.parquet``. Everything trained lies in
``$POLARIZER_HOME`` and is not trained again, so the command can be killed and repeated; ``--only`` narrows it.
``table.md``, ``table.json`` and the contact sheets below ``--out`` hold all finished attacks.

Expected time on one core without matrix units: 5 to 8 min an attack; the adaptive attacker twice as long.
"""

import argparse
import os
import platform
import resource
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from neural_polarizer.attacks import ATTACKS
from neural_polarizer.attacks.recipes import recipe
from neural_polarizer.data.images import to_pixels
from neural_polarizer.data.poison import LabelRule
from neural_polarizer.data.sources import read_images
from neural_polarizer.devices import choose_device, choose_precision, keep_freed_memory
from neural_polarizer.files import output_folder, read_json, write_json, write_text
from neural_polarizer.metrics import evaluate
from neural_polarizer.runs.attack import PICTURE, RECORD, Planting, Victim, cached_attack, clean_model, load_attack
from neural_polarizer.train import AdversarialTraining

ALL_TO_ALL = ("badnets", "blended", "input-aware", "lf", "ssba")
ADAPTIVE = {
    **{name: AdversarialTraining(eps=4 / 255) for name in ("blended", "input-aware")},
    "lf": AdversarialTraining(eps=3 / 255),
    # A trigger so faint is lost in stronger perturbations, and in any of the triggered images.
    "ssba": AdversarialTraining(eps=3 / 255, spare_triggered=True),
}
ON_GTSRB = ("badnets", "blended", "wanet")
SHOWN = 1000


@dataclass(frozen=True)
class Cell:
    """One attack on one data set."""

    data: str
    attack: str
    rule: LabelRule = "all-to-one"
    adaptive: bool = False

    @property
    def name(self) -> str:
        more = ("-a2a" if self.rule == "all-to-all" else "") + ("-adaptive" if self.adaptive else "")
        return f"{self.data}-{self.attack}{more}"


CELLS = (
    *(Cell("cifar10", attack) for attack in ATTACKS),
    *(Cell("cifar10", attack, "all-to-all") for attack in ALL_TO_ALL),
    *(Cell("gtsrb", attack) for attack in ON_GTSRB),
    *(Cell("cifar10", attack, adaptive=True) for attack in ADAPTIVE),
)


def victim_of(cell: Cell, seed: int, epochs: int | None) -> Victim:
    """What the cell trains."""
    plan = recipe(ATTACKS[cell.attack], scale="laptop", profile=cell.data)
    schedule = replace(
        plan.schedule,
        epochs=epochs or plan.schedule.epochs,
        precision=choose_precision(choose_device(None)),
        adversarial=replace(ADAPTIVE[cell.attack], steps=plan.pgd_steps) if cell.adaptive else None,
    )
    return Victim(architecture="preactresnet18", width=plan.width, profile=cell.data, schedule=schedule, seed=seed)


def run(cell: Cell, seed: int, epochs: int | None, data: Path, out: Path) -> None:
    """One line of the table; takes what is in the cache, and the clean model that it is compared with, too."""
    victim = victim_of(cell, seed, epochs)
    train, test = (read_images(str(data / cell.data / f"{split}.parquet")) for split in ("train", "test"))
    device = choose_device(None)
    attack = ATTACKS[cell.attack](
        **recipe(ATTACKS[cell.attack], scale="laptop", profile=cell.data).settings, label_rule=cell.rule
    )
    clean = evaluate(clean_model(train, victim, device=device), test, device=device)
    folder = cached_attack(Planting(attack, train, test, victim), device=device)
    record = read_json(folder / RECORD)
    attack, state = load_attack(folder)
    images = test.images[:SHOWN]
    error = to_pixels(attack.stamp(images, state)) - to_pixels(images)
    psnr = -10 * error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
    result = {
        "name": cell.name,
        "acc": record["acc"],
        "clean_acc": clean.acc,
        "asr": record["asr"],
        "ra": record["ra"],
        "psnr": float(psnr.mean()),
        "linf": float(255 * error.abs().amax(dim=(1, 2, 3)).mean()),
        "seconds": record["seconds"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "record": record,
    }
    output_folder(out / cell.name)
    shutil.copyfile(folder / PICTURE, out / cell.name / PICTURE)
    write_json(out / cell.name / "cell.json", result)


def report(out: Path) -> str:
    """All finished cells as a Markdown table."""
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; width 16; L_inf of 255",
        "",
        "| attack | seed | epochs | ACC | clean ACC | ASR | RA | PSNR (dB) | L_inf | trigger s | train s | MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found = [read_json(out / cell.name / "cell.json") for cell in CELLS if (out / cell.name / "cell.json").exists()]
    for row in found:
        rates = " | ".join(f"{100 * row[rate]:.2f}" for rate in ("acc", "clean_acc", "asr", "ra"))
        spent, record = row["seconds"], row["record"]
        lines.append(
            f"| {row['name']} | {record['seed']} | {record['schedule']['epochs']} | {rates} | {row['psnr']:.1f} "
            f"| {row['linf']:.0f} | {spent['trigger']:.0f} | {spent['train']:.0f} | {row['peak_mb']:.0f} |"
        )
    write_json(out / "table.json", found)
    return "\n".join(lines) + "\n"


def start_worker() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/attack_table"))
    parser.add_argument("--only", default="", help="a cell's name, or words that it must contain, as 'cifar10 a2a'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    options = parser.parse_args()
    exact = [cell for cell in CELLS if cell.name == options.only]
    wanted = exact or [cell for cell in CELLS if all(word in cell.name for word in options.only.split())]
    # One process a cell, as the peak of memory is the process's; this takes Python 3.11.
    with ProcessPoolExecutor(  # type: ignore[call-overload]
        options.workers, get_context("spawn"), initializer=start_worker, max_tasks_per_child=1
    ) as pool:
        more = (options.seed, options.epochs, options.data, options.out)
        jobs = {pool.submit(run, cell, *more): cell for cell in wanted}
        for job in as_completed(jobs):
            job.result()
            print("done:", jobs[job].name, flush=True)
            write_text(options.out / "table.md", report(options.out))
    print(report(options.out))


if __name__ == "__main__":
    main()
