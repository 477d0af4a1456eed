"""How often an audit is right: p-values of backdoored and clean models (docs/research/audit.md).

    python benchmarks/audit_roc.py --data DATA --out runs/audit [--models FOLDER] [--train] [--seed 0 --seed 1]

Audited are the published models of benchmarks/published/manifest.toml that lie in FOLDER, and every attack and every
clean model in the cache that was trained on a data set of DATA; --train first trains those of the list below that are
missing. Each is one line of OUT/scores.jsonl, computed once; a run that was killed goes on. --only report just prints.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from neural_polarizer.audit import audited
from neural_polarizer.bench.analyses import curve_png
from neural_polarizer.bench.cells import VictimCell
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.sources import Sources, parse_sources
from neural_polarizer.bench.suite import load_suite, parse_suite
from neural_polarizer.cache import home, sealed
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.files import read_json, write_bytes
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.runs.attack import MODEL, RECORD, Planting, cached_attack, clean_model

PUBLISHED = Path(__file__).parent / "published" / "published.toml"
DATA_SETS = {"cifar10", "gtsrb"}
N_CLEAN = 500
WORKING = 0.5
"""An attack counts as a backdoor from this ASR on; a weaker one is listed, and in no rate."""
SUITE = """
[[grid]]
data = ["cifar10", "gtsrb"]
attack = ["badnets", "blended", "input-aware", "lf", "ssba", "trojan", "wanet"]
defense = ["none"]
[[grid]]
data = ["cifar10"]
attack = ["badnets-a2a", "blended-a2a", "input-aware-a2a", "lf-a2a", "ssba-a2a"]
defense = ["none"]
"""
CLEAN = """
[[grid]]
data = ["cifar10", "gtsrb"]
attack = ["badnets"]
victim_seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
defense = ["none"]
"""


@dataclass(frozen=True)
class Audited:
    """A model to audit: its name and data set, the attacker's label ("clean" for none), and how to get it."""

    name: str
    data: str
    target: int | str
    asr: float | None
    load: Callable[[], LoadedModel]


def given(folder: Path) -> Iterator[Audited]:
    """The published models whose files are there."""
    for name, victim in load_suite(str(PUBLISHED)).given.items():
        if victim.missing(folder) is None:
            target = "clean" if victim.trigger is None else victim.trigger.target
            asr = None if victim.trigger is None else 1.0
            yield Audited(name, victim.data, target, asr, partial(victim.load, folder))


def trained(sources: Sources) -> Iterator[Audited]:
    """What the cache holds that was trained on these data sets; implants were, too."""
    victims = load_suite(str(PUBLISHED)).given.values()
    networks = {victim.hashes[victim.file]: victim.definition() for victim in victims}
    for data in sorted(DATA_SETS & sources.specs.keys()):
        train, _ = sources.read(data)
        sha256 = train.sha256()
        for folder in sorted((home() / "attacks").glob("*")):
            record = read_json(folder / RECORD) if sealed(folder) else {}
            if record.get("data_sha256") == sha256:
                settings, init = record["settings"], record.get("init")
                target = "next" if settings["label_rule"] == "all-to-all" else settings["target"]
                name = f"{data} {record['attack']}{' implant' * bool(init)} {folder.name[:6]}"
                network = networks[init["sha256"]] if init else None
                load = partial(load_model, folder / MODEL, architecture=network)
                yield Audited(name, data, target, record["asr"], load)
        for folder in sorted((home() / "clean").glob("*")):
            if sealed(folder) and load_model(folder / MODEL).record.classes == train.classes:
                load = partial(load_model, folder / MODEL)
                yield Audited(f"{data} clean {folder.name[:6]}", data, "clean", None, load)


def train_missing(sources: Sources, device: torch.device) -> None:
    """Fill the cache with the victims and clean models of the list."""
    for text, clean in ((SUITE, False), (CLEAN, True)):
        for each in planned(parse_suite(text, "audit")):
            if isinstance(each.cell, VictimCell):
                train, test = sources.read(each.cell.data)
                if clean:
                    clean_model(train, each.cell.victim, device=device)
                else:
                    cached_attack(Planting(each.cell.attack, train, test, each.cell.victim), device=device)


def line(each: Audited, train: ImageSet, seed: int) -> dict[str, Any]:
    """One audit as a line of the record."""
    count = max(1, N_CLEAN // train.num_classes) * train.num_classes
    clean = train.select(clean_subset(train, count, seed=seed))
    model, started = each.load().model, time.process_time()
    found = audited(model, clean, seed=seed)
    told = {key: getattr(found, key) for key in ("verdict", "suspect", "likeliest", "p_value", "posterior", "level")}
    told |= {"accuracy": found.accuracy, "site": found.site, "reason": found.reason}
    told |= {"nameable": dict(found.nameable), "by_class": dict(found.by_class)}
    about = {"name": each.name, "data": each.data, "target": each.target, "asr": each.asr, "seed": seed}
    return {**about, **told, "cpu_seconds": time.process_time() - started}


def auc(positive: list[float], negative: list[float]) -> float:
    """Share of the pairs in which the backdoored model has the smaller p-value."""
    wins = [(p < n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(wins) / len(wins)


def roc(positive: list[float], negative: list[float]) -> bytes:
    """True positives against false alarms, as a picture."""
    bounds = sorted(negative)
    false = [index / len(negative) for index in range(len(bounds) + 1)]
    true = [sum(p < bound for p in positive) / len(positive) for bound in (*bounds, float("inf"))]
    return curve_png(false, {"true positives": true}, "false alarms")


def report(lines: list[dict[str, Any]], out: Path) -> None:
    """Print the table and the rates, and write the curve."""
    print(
        "| model | seed | attacker's | nearest | p | posterior | verdict | CPU s |\n|---|---|---|---|---|---|---|---|"
    )
    for each in sorted(lines, key=lambda each: (each["target"] == "clean", each["name"], each["seed"])):
        figures = f"{each['p_value']:.2g} | {each['posterior']:.2f} | {each['verdict']} | {each['cpu_seconds']:.0f}"
        print(f"| {each['name']} | {each['seed']} | {each['target']} | {each['likeliest']} | {figures} |")
    bad = [each for each in lines if each["target"] != "clean" and each["asr"] >= WORKING]
    good = [each for each in lines if each["target"] == "clean"]
    right = [each for each in bad if each["verdict"] == "backdoor" and each["suspect"] == each["target"]]
    wrong = [each for each in bad if each["verdict"] == "backdoor" and each["suspect"] != each["target"]]
    print(f"\nbackdoored: {len(bad)} audits, {len(right)} name the attacker's label, {len(wrong)} another one")
    nearest = sum(each["likeliest"] == each["target"] for each in bad)
    print(f"the attacker's label is the nearest in {nearest} of {len(bad)}")
    print(f"clean: {len(good)} audits, {sum(each['verdict'] == 'backdoor' for each in good)} false alarms")
    if bad and good:
        positive, negative = ([each["p_value"] for each in group] for group in (bad, good))
        print(f"ROC AUC of the p-value: {auc(positive, negative):.3f}")
        write_bytes(out / "roc.png", roc(positive, negative))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10 and gtsrb as parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="folder with the files of the published models")
    parser.add_argument("--seed", type=int, action="append", help="of images and searches; repeatable; default: 0")
    parser.add_argument("--train", action="store_true", help="train what the cache lacks; half a day on two cores")
    parser.add_argument("--only", choices=("report",))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "scores.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    if asked.only != "report":
        sources = parse_sources([str(asked.data)])
        if asked.train:
            train_missing(sources, torch.device("cpu"))
        listed = [*(given(asked.models) if asked.models else ()), *trained(sources)]
        done = {(each["name"], each["seed"]) for each in lines}
        for seed in asked.seed or [0]:
            for each in sorted(listed, key=lambda each: each.data):
                if (each.name, seed) in done or each.data not in sources.specs:
                    continue
                lines.append(line(each, sources.read(each.data)[0], seed))
                with path.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(each.name, seed, f"{lines[-1]['p_value']:.2g}", lines[-1]["verdict"], flush=True)
    report(lines, asked.out)


if __name__ == "__main__":
    main()
