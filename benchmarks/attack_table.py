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
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from neural_polarizer.attacks import ATTACKS
from neural_polarizer.bench.cells import VictimCell
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.suite import parse_suite
from neural_polarizer.data.images import to_pixels
from neural_polarizer.data.sources import read_images
from neural_polarizer.devices import choose_device, choose_precision, keep_freed_memory
from neural_polarizer.files import output_folder, read_json, write_json, write_text
from neural_polarizer.metrics import evaluate
from neural_polarizer.runs.attack import PICTURE, RECORD, Planting, cached_attack, clean_model, load_attack

SUITE = """
precision = "{precision}"
[[grid]]
attack = [{attacks}, "badnets-a2a", "blended-a2a", "input-aware-a2a", "lf-a2a", "ssba-a2a"]
{common}
[[grid]]
attack = ["adap-blend", "adap-patch"]
poison_rate = [0.003]
{common}
[[grid]]
data = ["gtsrb"]
attack = ["badnets", "blended", "wanet"]
{common}
[[grid]]
attack = ["blended", "input-aware", "lf", "ssba"]
adaptive = [true]
{common}
[options.attack]  # of the adaptive attacker; ssba is lost in stronger perturbations, and in any of triggered images
blended = {{ eps = 4 }}
input-aware = {{ eps = 4 }}
lf = {{ eps = 3 }}
ssba = {{ eps = 3, spare_triggered = true }}
"""
SHOWN = 1000


def cells_of(seed: int, epochs: int | None) -> dict[str, VictimCell]:
    """All victims by name; ``epochs`` replace the recipes'."""
    text = SUITE.format(
        precision=choose_precision(choose_device(None)),
        attacks=", ".join(f'"{name}"' for name in ATTACKS if not name.startswith("adap-")),
        common=f'victim_seed = {seed}\ndefense = ["none"]',
    )
    text += f"[victims.preactresnet18]\nepochs = {epochs}\n" if epochs else ""
    found = {}
    for each in planned(parse_suite(text, "attacks")):
        assert isinstance(each.cell, VictimCell)
        labels = each.labels
        found[f"{labels['data']}-{labels['attack']}{'-adaptive' * bool(labels['adaptive'])}"] = each.cell
    return found


def run(name: str, cell: VictimCell, data: Path, out: Path) -> None:
    """One line of the table; takes what is in the cache, and the clean model that it is compared with, too."""
    train, test = (read_images(str(data / cell.data / f"{split}.parquet")) for split in ("train", "test"))
    device = choose_device(None)
    clean = evaluate(clean_model(train, cell.victim, device=device), test, device=device)
    folder = cached_attack(Planting(cell.attack, train, test, cell.victim), device=device)
    record = read_json(folder / RECORD)
    attack, state = load_attack(folder)
    images = test.images[:SHOWN]
    error = to_pixels(attack.stamp(images, state)) - to_pixels(images)
    psnr = -10 * error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
    result = {
        "name": name,
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
    output_folder(out / name)
    shutil.copyfile(folder / PICTURE, out / name / PICTURE)
    write_json(out / name / "cell.json", result)


def report(out: Path, names: Iterable[str]) -> str:
    """All finished cells as a Markdown table."""
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; width 16; L_inf of 255",
        "",
        "| attack | seed | epochs | ACC | clean ACC | ASR | RA | PSNR (dB) | L_inf | trigger s | train s | MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found = [read_json(out / name / "cell.json") for name in names if (out / name / "cell.json").exists()]
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
    cells = cells_of(options.seed, options.epochs)
    words = options.only.split()
    wanted = (
        [options.only] if options.only in cells else [name for name in cells if all(word in name for word in words)]
    )
    # One process a cell, as the peak of memory is the process's; this takes Python 3.11.
    with ProcessPoolExecutor(  # type: ignore[call-overload]
        options.workers, get_context("spawn"), initializer=start_worker, max_tasks_per_child=1
    ) as pool:
        jobs = {pool.submit(run, name, cells[name], options.data, options.out): name for name in wanted}
        for job in as_completed(jobs):
            job.result()
            print("done:", jobs[job], flush=True)
            write_text(options.out / "table.md", report(options.out, cells))
    print(report(options.out, cells))


if __name__ == "__main__":
    main()
