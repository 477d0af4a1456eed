"""NPD in pixels alone, as shipped, and fast: every attack, two data sets, three seeds; ACC, ASR, DER and seconds.

    python benchmarks/npd_modes.py --data DATA --out runs/npd_modes

DATA holds ``cifar10/`` and ``gtsrb/`` with ``train.parquet`` and ``test.parquet``. The victims are those of
``defense_table.py``, on GTSRB as well, trained once in ``$POLARIZER_HOME`` with seed 0; the seeds are those of the
purification: other clean images, other batches. Each purification is a folder below ``--out``; finished ones are not
computed again, so the command can be killed and repeated, and ``--only`` narrows it. ``table.md`` and ``modes.json``
hold all finished cells.

Expected time on one core without matrix units: victims 5 min each; "pixels" 1 to 2 min, "shipped" 1 min, "fast" 15 s.
"""

import argparse
import os
import platform
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from defense_table import CELL, VICTIMS, Planted, cell, start_worker, train

from neural_polarizer.defenses.presets import preset
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.files import read_json, write_json, write_text

MODES: dict[str, dict[str, Any]] = {"pixels": {"feature_share": 0.0}, "shipped": {}, "fast": {"speed": "fast"}}
DATA_SETS = ("cifar10", "gtsrb")
SEEDS = (0, 1, 2)
ALL = tuple(replace(victim, data=data) for data in DATA_SETS for victim in VICTIMS)


def place_of(out: Path, planted: Planted, mode: str, seed: int) -> Path:
    return out / f"{planted.data}-{planted.name}" / f"{mode}-{seed}"


def purify(planted: Planted, mode: str, folder: Path, data: Path, out: Path, seed: int) -> dict[str, Any]:
    """One cell of the table."""
    device = choose_device(None)
    defense = replace(preset("npd"), precision=choose_precision(device), **MODES[mode])
    return cell(planted, "npd", defense, folder, data, place_of(out, planted, mode, seed), seed, device)


def report(out: Path) -> tuple[str, dict[str, Any]]:
    """All finished cells as a Markdown table, with means over the seeds and over the attacks; and as figures."""
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; width 16; percent",
        "",
        "| data | attack | ACC, ASR before | mode | seeds | ACC lost | ASR (largest) | RA | DER (smallest) | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    der: dict[str, dict[str, list[float]]] = {}
    for data in DATA_SETS:
        rows: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
        for planted in (victim for victim in ALL if victim.data == data):
            for mode in MODES:
                paths = [place_of(out, planted, mode, seed) / CELL for seed in SEEDS]
                cells = [found for path in paths if path.exists() and "after" in (found := read_json(path))]
                if cells:
                    row = _row(cells)
                    rows[mode].append(row)
                    before = cells[0]["before"]
                    shown = f"{100 * before['acc']:.2f}, {100 * before['asr']:.2f}"
                    lines.append(f"| {data} | {planted.name} | {shown} | {mode} | {len(cells)} | {_text(row)} |")
                    attacks = der.setdefault(f"{data}, {planted.name}", {})
                    attacks[mode] = [each["der"] for each in cells]
        for mode, found in rows.items():
            if found:
                total = {key: mean(row[key] for row in found) for key in found[0]}
                lines.append(f"| {data} | mean of {len(found)} | | {mode} | | {_text(total)} |")
    return "\n".join(lines) + "\n", {"setting": lines[0], "der": der}


def _row(cells: list[dict[str, Any]]) -> dict[str, float]:
    after, ders = [each["after"] for each in cells], [each["der"] for each in cells]
    return {
        "lost": mean(each["before"]["acc"] - each["after"]["acc"] for each in cells),
        "asr": mean(each["asr"] for each in after),
        "largest": max(each["asr"] for each in after),
        "ra": mean(each["ra"] for each in after),
        "der": mean(ders),
        "smallest": min(ders),
        "seconds": mean(each["seconds"] for each in cells),
    }


def _text(row: dict[str, float]) -> str:
    percent = {key: f"{100 * value:.2f}" for key, value in row.items()}
    return " | ".join(
        (
            percent["lost"],
            f"{percent['asr']} ({percent['largest']})",
            percent["ra"],
            f"{percent['der']} ({percent['smallest']})",
            f"{row['seconds']:.0f}",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/npd_modes"))
    parser.add_argument(
        "--only", default="", help="words that data, attack, mode and seed must be among: 'gtsrb fast 0'"
    )
    parser.add_argument("--epochs", type=int, help="of the victims, instead of the recipe's")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    options = parser.parse_args()
    asked = options.only.split()
    data_sets, attacks, modes, seeds = (
        [name for name in names if name in asked] or list(names)
        for names in (DATA_SETS, [victim.name for victim in VICTIMS], MODES, list(map(str, SEEDS)))
    )
    unknown = {*asked} - {*DATA_SETS, *(victim.name for victim in VICTIMS), *MODES, *map(str, SEEDS)}
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}")
    victims = [victim for victim in ALL if victim.data in data_sets and victim.name in attacks]
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), initializer=start_worker, max_tasks_per_child=1
    ) as pool:
        trained = {pool.submit(train, victim, options.data, 0, options.epochs): victim for victim in victims}
        jobs = {}
        for done in as_completed(trained):
            victim, folder = trained[done], done.result()
            for mode in modes:
                for seed in map(int, seeds):
                    job = pool.submit(purify, victim, mode, folder, options.data, options.out, seed)
                    jobs[job] = f"{victim.data} {victim.name} {mode} {seed}"
        for job in as_completed(jobs):
            print("done:", jobs[job], job.result().get("error", ""), flush=True)
            text, figures = report(options.out)
            write_text(options.out / "table.md", text)
            write_json(options.out / "modes.json", figures)
    print(report(options.out)[0])


if __name__ == "__main__":
    main()
