"""How much poison in the defender's "clean" images NPD survives (docs/research/audit.md).

    python benchmarks/poisoned_clean_set.py --data DATA --out runs/poison

A share of the clean images carries the trigger and the attacker's label, as in the training set. Victims are those of
the suites (trained, or taken from the cache). Every measurement is one line of OUT/poison.jsonl, computed once.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from neural_polarizer.attacks.base import LearnedTrigger
from neural_polarizer.bench.analyses import curve_png
from neural_polarizer.bench.cells import VictimCell
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.sources import parse_sources
from neural_polarizer.bench.suite import parse_suite
from neural_polarizer.data.poison import poison, read_triggered
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.defenses.recipes import make_defense
from neural_polarizer.files import read_json, write_bytes
from neural_polarizer.metrics import Metrics, defense_effectiveness, evaluate
from neural_polarizer.model_files.load import load_model
from neural_polarizer.runs.attack import MODEL, RECORD, TRIGGERED, Planting, cached_attack, load_attack

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
N_CLEAN = 500
SUITE = """
[[grid]]
data = ["cifar10"]
attack = ["badnets", "blended"]
defense = ["none"]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10 as parquet")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "poison.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    done = {(each["attack"], each["share"]) for each in lines}
    train, test = parse_sources([str(asked.data)]).read("cifar10")
    chosen = train.select(clean_subset(train, N_CLEAN, seed=0))
    for each in planned(parse_suite(SUITE, "poison")):
        assert isinstance(each.cell, VictimCell)
        attack = str(each.labels["attack"])
        shares = [share for share in SHARES if (attack, share) not in done]
        if not shares:
            continue
        job = Planting(each.cell.attack, train, test, each.cell.victim)
        victim = cached_attack(job, device=torch.device("cpu"))
        model, trigger = load_model(victim / MODEL).model, LearnedTrigger(*load_attack(victim))
        triggered = read_triggered(victim / TRIGGERED, size=train.image_size, num_classes=train.num_classes)
        record = read_json(victim / RECORD)
        before = Metrics(**{name: record[name] for name in ("acc", "asr", "ra", "n_test", "n_triggered")})
        for share in shares:
            shown = poison(chosen, trigger, rate=share, seed=0)[0] if share else chosen
            purified = make_defense("npd", profile="cifar10").repair(model, shown, seed=0)
            after = evaluate(purified.model, test, triggered)
            der = defense_effectiveness(before, after)
            lines.append({"attack": attack, "share": share, "der": der, "suspect": purified.suspect, **asdict(after)})
            with path.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(attack, share, f"ACC {after.acc:.4f} ASR {after.asr:.4f} DER {der:.4f}", flush=True)
    curves = {
        f"{attack}: {name.upper()}": [
            next((each[name] for each in lines if (each["attack"], each["share"]) == (attack, share)), None)
            for share in SHARES
        ]
        for attack in ("badnets", "blended")
        for name in ("der", "asr")
    }
    write_bytes(asked.out / "poison.png", curve_png(list(SHARES), curves, "share of the clean images with the trigger"))


if __name__ == "__main__":
    main()
