"""The NPD family on real data: every method, both presets, several seeds; ACC and ASR before and after.

    python benchmarks/npd_table.py --data DATA --out runs/npd_table

DATA holds ``gtsrb/`` and ``cifar10/`` with ``train.parquet`` and ``test.parquet``. Victims are kept in the cache, each
purification is a folder below ``--out``; finished ones are not computed again, so the command can be killed and
repeated, and ``--only`` narrows it. ``table.md`` and ``table.json`` below ``--out`` hold all finished cells.

Expected time on one core without matrix units: victims 70 min, "shipped" 2 min a cell, "reference" 5 min a cell.
"""

import argparse
import os
import platform
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from neural_polarizer.attacks import ATTACKS
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import LabelRule, read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.npd.presets import KNOWS_TARGET, VARIANTS, Preset, preset
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.files import read_json, write_json, write_text
from neural_polarizer.model_files.load import load_model
from neural_polarizer.runs.attack import MODEL, TRIGGERED, Planting, Victim, cached_attack
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.runs.purification import Purification
from neural_polarizer.runs.purify import run_purify
from neural_polarizer.train import Schedule

CLEAN_SHARE = 0.05


@dataclass(frozen=True)
class Planned:
    """A backdoored model to be trained: data set, attack, label rule, epochs, seeds to purify it with.

    Crops cut a patch off and so teach the victim that the target label needs no trigger: in a few epochs BadNets
    gets to an ASR of 95 % with little or no cropping only.
    """

    data: str
    attack: str
    rule: LabelRule
    epochs: int
    crop_padding: int
    seeds: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.attack}" + ("-a2a" if self.rule == "all-to-all" else "")


VICTIMS = (
    Planned("gtsrb", "badnets", "all-to-one", 5, 0, 3),
    Planned("gtsrb", "blended", "all-to-one", 3, 4, 3),
    Planned("gtsrb", "badnets", "all-to-all", 5, 0, 1),
    Planned("cifar10", "badnets", "all-to-one", 8, 2, 1),
    Planned("cifar10", "blended", "all-to-one", 8, 2, 1),
)


def trained(victim: Planned, data: Path, width: int) -> Path:
    """The victim's folder in the cache, as ``polarizer attack`` makes it."""
    training, test = (images(str(data / victim.data / f"{split}.parquet")) for split in ("train", "test"))
    device = choose_device(None)
    schedule = Schedule(
        epochs=victim.epochs,
        policy="one-cycle",
        lr=0.1,
        crop_padding=victim.crop_padding,
        flip=victim.data == "cifar10",
        precision=choose_precision(device),
    )
    model = Victim(architecture="preactresnet18", width=width, profile=victim.data, schedule=schedule, seed=0)
    attack = ATTACKS[victim.attack](label_rule=victim.rule)
    return cached_attack(Planting(attack, training, test, model), device=device)


def purify(victim: Planned, method: str, name: Preset, seed: int, data: Path, out: Path, width: int) -> None:
    """One cell of the table."""
    target: Any = None
    if method in KNOWS_TARGET:
        target = "next" if victim.rule == "all-to-all" else 0
    specs = [str(data / victim.data / f"{split}.parquet") for split in ("train", "test")]
    settings = preset(method, name=name, profile=victim.data, target=target)
    place = out / victim.name / "purified" / f"{name}-{method}-{seed}"
    purify_victim(trained(victim, data, width), specs, settings, place, method=method, seed=seed)


def purify_victim(
    folder: Path, specs: list[str], settings: NPD, out: Path, *, method: str, seed: int
) -> dict[str, Any]:
    """Purify the victim in ``folder`` with 5 % of the training images."""
    pool, test = (images(spec) for spec in specs)
    device = choose_device(None)
    job = Purification(
        loaded=load_model(folder / MODEL),
        pool=pool,
        defense=replace(settings, precision=choose_precision(device)),
        method=method,
        n_clean=int(len(pool) * CLEAN_SHARE) // pool.num_classes * pool.num_classes,
        seed=seed,
        evidence=Evidence(
            test=test,
            triggered=read_triggered(folder / TRIGGERED, size=pool.image_size, num_classes=pool.num_classes),
        ),
        sources={"clean": specs[0], "test": specs[1], "triggered": str(folder / TRIGGERED)},
    )
    return run_purify(job, out, device=device)


@cache
def images(spec: str) -> ImageSet:
    """The images of a data spec, read once a process."""
    return read_images(spec)


def cells(only: str) -> list[tuple[Planned, str, Preset, int]]:
    """All cells whose name contains every word of ``only``, one seed of all before the next."""
    names: tuple[Preset, ...] = ("shipped", "reference")
    found = [
        (victim, method, name, seed)
        for seed in range(max(victim.seeds for victim in VICTIMS))
        for name in names
        for method in VARIANTS
        for victim in VICTIMS  # one after the other, so that the processes begin with different ones
        if seed < victim.seeds
    ]
    return [cell for cell in found if all(word in " ".join(map(str, label(*cell))) for word in only.split())]


def label(victim: Planned, method: str, name: str, seed: int) -> tuple[str, ...]:
    return (victim.name, f"{name}-{method}-{seed}")


def report(out: Path) -> str:
    """Mean and spread over the seeds of all finished cells, as a Markdown table; the records as JSON beside it."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for victim in VICTIMS:
        for path in sorted((out / victim.name / "purified").glob("*/run.json")):
            name = path.parent.name.partition("-")[0]
            groups[victim.name, name, read_json(path)["method"]].append(read_json(path))
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; percent, mean ± deviation",
        "",
        "| victim | preset | method | seeds | ACC before | after | ASR before | after | RA after | DER | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (victim_name, name, method), records in groups.items():
        before = records[0]["before"]
        after = [spread([record["after"][rate] for record in records]) for rate in ("acc", "asr", "ra")]
        others = ("load", "evaluate", "total")
        seconds = mean(
            sum(value for phase, value in record["seconds"].items() if phase not in others) for record in records
        )
        der = spread([record["der"] for record in records])
        lines.append(
            f"| {victim_name} | {name} | {method} | {len(records)} | {100 * before['acc']:.2f} | {after[0]} "
            f"| {100 * before['asr']:.2f} | {after[1]} | {after[2]} | {der} | {seconds:.0f} |"
        )
    write_json(out / "table.json", {" ".join(key): records for key, records in groups.items()})
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Percent, with the standard deviation where there are several."""
    shown = f"{100 * mean(values):.2f}"
    return shown if len(values) < 2 else f"{shown} ± {100 * stdev(values):.2f}"


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/npd_table"))
    parser.add_argument("--only", default="", help="words that a cell's name must contain, as 'gtsrb shipped'")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    options = parser.parse_args()
    wanted = cells(options.only)
    more = (options.data, options.out, options.width)
    with ProcessPoolExecutor(options.workers, get_context("spawn"), initializer=_one_thread) as pool:
        jobs = {pool.submit(purify, *cell, *more): cell for cell in wanted}
        for job in as_completed(jobs):
            job.result()
            print("done:", *label(*jobs[job]), flush=True)
            write_text(options.out / "table.md", report(options.out))
    print(report(options.out))


if __name__ == "__main__":
    main()
