"""All attacks against all defenses on CIFAR-10 at laptop scale: ACC, ASR, RA, DER, seconds and peak memory.

    python benchmarks/defense_table.py --data DATA --paper PAPER --out runs/defense_table

DATA holds ``cifar10/`` with ``train.parquet`` and ``test.parquet``. The victims are those of ``attack_table.py`` and
are trained once for both, in ``$POLARIZER_HOME``. Each purification is a folder below ``--out``; finished ones are not
computed again, so the command can be killed and repeated, and ``--only`` narrows it. ``table.md`` and ``table.json``
hold all finished cells. PAPER is a folder with ``table01_cifar10_preactresnet18.csv`` (columns attack, defense, acc,
asr and der in percent), to be shown beside ours. EP sees as many poisoned training images as the others have clean
ones, as in its publication.

Expected time on 2 cores without matrix units: victims 1 h, the 80 purifications 3 h.
"""

import argparse
import csv
import os
import platform
import resource
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from neural_polarizer.artifacts import load_model, versions
from neural_polarizer.attacks import ATTACKS
from neural_polarizer.attacks.base import LearnedTrigger
from neural_polarizer.attacks.recipes import recipe
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import LabelRule, poison, read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses import Defense
from neural_polarizer.defenses.presets import KNOWS_TARGET, VARIANTS
from neural_polarizer.defenses.recipes import make_defense, with_precision
from neural_polarizer.devices import choose_device, choose_precision, keep_freed_memory
from neural_polarizer.errors import NeuralPolarizerError
from neural_polarizer.files import output_folder, read_json, write_json, write_text
from neural_polarizer.metrics import Metrics
from neural_polarizer.rng import stream
from neural_polarizer.runs import purify as purify_run
from neural_polarizer.runs.attack import MODEL, RECORD, TRIGGERED, Victim, cached_attack, load_attack
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.runs.purify_checks import settings_of
from neural_polarizer.settings import changed

CLEAN_SHARE = 0.05
METHODS = ("ft", "fp", "nad", "nc", "anp", "i-bau", "ep", "npd", "npd-tp", "npd-tu")
RATES = ("acc", "asr", "ra", "n_test", "n_triggered")
NOT_THE_DEFENSE = ("load", "evaluate", "total")
CELL = "cell.json"
Paper = dict[tuple[str, str], dict[str, float]]


@dataclass(frozen=True)
class Planted:
    """A backdoored model: which attack, with which labels."""

    attack: str
    rule: LabelRule = "all-to-one"
    data: str = "cifar10"

    @property
    def name(self) -> str:
        return self.attack + ("-a2a" if self.rule == "all-to-all" else "")


VICTIMS = (
    Planted("badnets"),
    Planted("badnets", "all-to-all"),
    *(Planted(name) for name in ("blended", "input-aware", "lf", "ssba", "trojan", "wanet")),
)


def images(data: Path, planted: Planted, split: str) -> ImageSet:
    return read_images(str(data / planted.data / f"{split}.parquet"))


def train(planted: Planted, data: Path, seed: int, epochs: int | None) -> Path:
    """The victim's folder in the cache; the same request as ``attack_table.py`` makes."""
    device = choose_device(None)
    plan = recipe(ATTACKS[planted.attack], scale="laptop", profile=planted.data)
    schedule = replace(plan.schedule, epochs=epochs or plan.schedule.epochs, precision=choose_precision(device))
    victim = Victim(architecture="preactresnet18", width=plan.width, profile=planted.data, schedule=schedule, seed=seed)
    attack = ATTACKS[planted.attack](**plan.settings, label_rule=planted.rule)
    train, test = (images(data, planted, split) for split in ("train", "test"))
    return cached_attack(attack, train, test, victim=victim, device=device)


def defense_for(method: str, planted: Planted, device: torch.device) -> Defense:
    """NPD's shipped preset, the laptop settings of the others; methods that know the target are told it."""
    if method in VARIANTS:
        target: Any = "next" if planted.rule == "all-to-all" else 0
        defense = make_defense(method, target=target if method in KNOWS_TARGET else None)
    else:
        defense = make_defense(method, scale="laptop", profile=planted.data)
    found: Defense = changed(
        with_precision(defense, choose_precision(device)), {"data": "mixture"} if method == "ep" else {}
    )
    return found


def purify(planted: Planted, method: str, folder: Path, data: Path, out: Path, seed: int) -> dict[str, Any]:
    """One cell of the table, kept in ``out``."""
    device = choose_device(None)
    place = out / planted.name / method
    return cell(planted, method, defense_for(method, planted, device), folder, data, place, seed, device)


def cell(
    planted: Planted,
    method: str,
    defense: Defense,
    folder: Path,
    data: Path,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """One purification, kept in ``out``; a failure is a cell with its error, and is tried again next time."""
    place = output_folder(out)
    victim = read_json(folder / RECORD)
    request = {
        "victim": planted.name,
        "method": method,
        "seed": seed,
        "settings": settings_of(defense),
        "model_sha256": victim["model_sha256"],
        "versions": versions(),
    }
    if (place / CELL).exists():
        known = read_json(place / CELL)
        if "error" not in known and all(known.get(key) == value for key, value in request.items()):
            return known
    (place / purify_run.RECORD).unlink(missing_ok=True)  # of other settings, or of a run that was killed at its end
    try:
        record = _purified(planted, defense, method, folder, data, place, seed, device)
        spent = sum(value for phase, value in record["seconds"].items() if phase not in NOT_THE_DEFENSE)
        result = {key: record[key] for key in ("before", "after", "der", "audit", "suspect", "warnings", "precision")}
        found = {
            **request,
            **result,
            "seconds": spent,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    except NeuralPolarizerError as error:
        found = {**request, "error": str(error)}
    write_json(place / CELL, found)
    return found


def _purified(
    planted: Planted,
    defense: Defense,
    method: str,
    folder: Path,
    data: Path,
    place: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    pool, test = (images(data, planted, split) for split in ("train", "test"))
    victim = read_json(folder / RECORD)
    count = int(len(pool) * CLEAN_SHARE) // pool.num_classes * pool.num_classes
    triggered = read_triggered(folder / TRIGGERED, size=pool.image_size, num_classes=pool.num_classes)
    return purify_run.run_purify(
        load_model(folder / MODEL),
        pool,
        defense,
        place,
        method=method,
        n_clean=count,
        seed=seed,
        device=device,
        evidence=Evidence(test=test, triggered=triggered),
        mixture=poisoned(folder, pool, count, seed) if method == "ep" else None,
        sources={"clean": pool.source, "test": test.source, "triggered": str(folder / TRIGGERED)},
        before=Metrics(**{rate: victim[rate] for rate in RATES}),
    )


def poisoned(folder: Path, train: ImageSet, count: int, seed: int) -> ImageSet:
    """A random part of the training set, poisoned at the victim's rate with its trigger."""
    attack, state = load_attack(folder)
    rows = torch.randperm(len(train), generator=stream(seed, "mixture"))[:count]
    return poison(train.select(rows), LearnedTrigger(attack, state), rate=attack.poison_rate, seed=seed)[0]


def read_paper(folder: Path) -> Paper:
    """The paper's Table 1 by attack and defense in our names, in fractions; averages under "mean"."""
    found: Paper = {}
    with (folder / "table01_cifar10_preactresnet18.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            attack = {"avg": "mean", "badnets_a2o": "badnets"}.get(row["attack"], row["attack"].replace("_", "-"))
            values = {rate: float(row[rate]) / 100 for rate in ("acc", "asr", "der") if row[rate]}
            found[attack, row["defense"].replace("_", "-")] = values
    return found


def report(cells: dict[tuple[str, str], dict[str, Any]], paper: Paper) -> str:
    """The cells by victim and method as a Markdown table, then the means over the victims."""
    heads = "| attack | defense | ACC | ASR | RA | DER | seconds | MB |" + (" paper ACC | ASR | DER |" if paper else "")
    title = f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; width 16; percent"
    lines = [title, "", heads, "|" + "---|" * (heads.count("|") - 1)]
    names = [victim.name for victim in VICTIMS if any(name == victim.name for name, _ in cells)]
    for name in names:
        mine = {method: cells[name, method] for method in METHODS if (name, method) in cells}
        before = next((cell["before"] for cell in mine.values() if "before" in cell), {})
        lines.append(_line(name, "none", before, paper))
        for method, cell in mine.items():
            if "error" in cell:
                lines.append(f"| {name} | {method} | failed: {cell['error']} |" + " |" * (heads.count("|") - 4))
            else:
                shown = {**cell["after"], **{key: cell[key] for key in ("der", "seconds", "peak_mb")}}
                lines.append(_line(name, method, shown, paper))
    for method in METHODS:
        mine = {name: cells[name, method] for name in names if "after" in cells.get((name, method), {})}
        if mine:
            rows = [{**cell["after"], "der": cell["der"], "seconds": cell["seconds"]} for cell in mine.values()]
            means = {key: mean(row[key] for row in rows) for key in ("acc", "asr", "ra", "der", "seconds")}
            most = max(cell["peak_mb"] for cell in mine.values())
            # The paper's means are over all attacks, and compare with no others.
            theirs = "mean" if len(mine) == len(VICTIMS) else "some"
            lines.append(_line(theirs, method, {**means, "peak_mb": most}, paper, f"mean of {len(mine)}"))
    return "\n".join(lines) + "\n"


def _line(attack: str, method: str, values: dict[str, Any], paper: Paper, shown: str | None = None) -> str:
    rates = [_percent(values.get(rate)) for rate in ("acc", "asr", "ra", "der")]
    costs = [f"{values[cost]:.0f}" if cost in values else "-" for cost in ("seconds", "peak_mb")]
    theirs = paper.get((attack, method), {})
    beside = [_percent(theirs.get(rate)) for rate in ("acc", "asr", "der")] if paper else []
    return "| " + " | ".join([shown or attack, method, *rates, *costs, *beside]) + " |"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}"


def finished(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All cells that are there."""
    places = {(victim.name, method): out / victim.name / method / CELL for victim in VICTIMS for method in METHODS}
    return {key: read_json(path) for key, path in places.items() if path.exists()}


def write_tables(out: Path, paper: Paper) -> str:
    cells = finished(out)
    text = report(cells, paper)
    write_text(out / "table.md", text)
    write_json(out / "table.json", list(cells.values()))
    return text


def start_worker() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/defense_table"))
    parser.add_argument("--paper", type=Path, help="folder with the tables of the paper, to be shown beside ours")
    parser.add_argument("--only", default="", help="words that attack and method must be among, as 'badnets wanet nc'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of the victims, instead of the recipe's")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    options = parser.parse_args()
    paper = read_paper(options.paper) if options.paper else {}
    asked = options.only.split()
    victims = [victim for victim in VICTIMS if victim.name in asked] or list(VICTIMS)
    methods = [method for method in METHODS if method in asked] or list(METHODS)
    unknown = set(asked) - {victim.name for victim in VICTIMS} - set(METHODS)
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}")
    # One process a job, as the peak of memory is the process's.
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), initializer=start_worker, max_tasks_per_child=1
    ) as pool:
        trained = {pool.submit(train, victim, options.data, options.seed, options.epochs): victim for victim in victims}
        jobs = {}
        for done in as_completed(trained):
            victim, folder = trained[done], done.result()
            print("victim:", victim.name, flush=True)
            for method in methods:
                job = pool.submit(purify, victim, method, folder, options.data, options.out, options.seed)
                jobs[job] = f"{victim.name} {method}"
        for job in as_completed(jobs):
            print("done:", jobs[job], job.result().get("error", ""), flush=True)
            write_tables(options.out, paper)
    print(write_tables(options.out, paper))


if __name__ == "__main__":
    main()
