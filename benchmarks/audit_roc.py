"""How often an audit is right: scores of models before and after a purification (docs/research/audit.md).

    python benchmarks/audit_roc.py --data DATA --out runs/audit [--only audit|purified|report]

Victims are those of the suites (trained, or taken from the cache); clean models are trained by the same recipes with
other seeds. Every model is one line of OUT/scores.jsonl, computed once; a run that was killed goes on.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neural_polarizer.artifacts import load_model
from neural_polarizer.audit import score
from neural_polarizer.audit.evidence import collect_margins
from neural_polarizer.bench.cells import VictimCell
from neural_polarizer.bench.figures import curve_png
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.sources import Sources
from neural_polarizer.bench.suite import parse_suite
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import read_triggered
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.defenses.recipes import make_defense
from neural_polarizer.files import read_json, write_bytes
from neural_polarizer.metrics import evaluate
from neural_polarizer.runs.attack import MODEL, RECORD, TRIGGERED, cached_attack, clean_model

DATA_SETS = ("cifar10", "gtsrb")
N_CLEAN = 500
SUITE = """
[[grid]]
data = ["cifar10", "gtsrb"]
attack = ["badnets", "blended", "input-aware", "lf", "ssba", "trojan", "wanet"]
defense = ["none"]
[[grid]]
data = ["cifar10"]
attack = ["badnets-a2a", "blended-a2a", "input-aware-a2a", "lf-a2a", "ssba-a2a"]
defense = ["none"]
[[grid]]
data = ["cifar10"]
attack = ["badnets", "blended", "input-aware", "wanet"]
poison_rate = [0.05, 0.2, 0.3]
defense = ["none"]
"""
CLEAN = """
[[grid]]
data = ["cifar10", "gtsrb"]
attack = ["badnets"]
victim_seed = [0, 1, 2, 3, 4, 5, 6, 7, 8]
defense = ["none"]
[[grid]]
data = ["cifar10", "gtsrb"]
attack = ["lf"]
defense = ["none"]
"""
"""The recipe of LF is longer; its trigger is not used."""
DEFENSES = ("npd", "fp")
NAMES = ("data", "attack", "rate", "seed", "epochs", "defense")


@dataclass(frozen=True)
class Audited:
    """A model to audit: what it is, and how to get it."""

    data: str
    attack: str
    poison_rate: float
    seed: int
    cell: VictimCell


def models(text: str, *, clean: bool) -> Iterator[Audited]:
    for each in planned(parse_suite(text, "audit")):
        if isinstance(each.cell, VictimCell):
            labels = each.labels
            name = "clean" if clean else str(labels["attack"])
            rate = 0.0 if clean else float(labels["poison_rate"])
            yield Audited(str(labels["data"]), name, rate, int(labels["victim_seed"]), each.cell)


def named(each: Audited, defense: str) -> tuple[Any, ...]:
    return each.data, each.attack, each.poison_rate, each.seed, each.cell.victim.schedule.epochs, defense


def chosen(train: ImageSet) -> ImageSet:
    count = max(1, N_CLEAN // train.num_classes) * train.num_classes
    return train.select(clean_subset(train, count, seed=0))


def line(model: nn.Module, clean: ImageSet) -> dict[str, Any]:
    started = time.perf_counter()
    found = score(collect_margins(model, clean, seed=0), seed=0)
    return {**asdict(found), "seconds": time.perf_counter() - started}


def auc(positive: list[float], negative: list[float]) -> float:
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(wins) / len(wins)


def ranks(values: list[float]) -> torch.Tensor:
    column = torch.tensor(values, dtype=torch.float64)
    return ((column[:, None] > column).double() + 0.5 * (column[:, None] == column).double()).sum(dim=1)


def roc(positive: list[float], negative: list[float]) -> bytes:
    """True positives against false alarms, as a picture."""
    bounds = sorted(negative, reverse=True)
    false = [index / len(negative) for index in range(len(bounds) + 1)]
    true = [sum(p > bound for p in positive) / len(positive) for bound in (*bounds, float("-inf"))]
    return curve_png(false, {"true positives": true}, "false alarms")


def report(lines: list[dict[str, Any]], out: Path) -> None:
    first = [each for each in lines if each["defense"] == "none"]
    bad = [each for each in first if each["attack"] != "clean" and each["acc"] > 0.5]
    good = [each for each in first if each["attack"] == "clean"]
    scores, negative = [each["value"] for each in bad], [each["value"] for each in good]
    print(f"{len(bad)} backdoored, {len(good)} clean models; ROC AUC {auc(scores, negative):.3f}")
    write_bytes(out / "roc.png", roc(scores, negative))
    allowed = sorted(negative, reverse=True)[int(0.05 * len(negative))]
    print(f"at most 5 % false alarms: score > {allowed:.2f}, true positives {sum(v > allowed for v in scores)}")
    right = [each["suspect"] == ("next" if each["attack"].endswith("-a2a") else 0) for each in bad]
    print(f"attacker's label named: {sum(right)} of {len(bad)}")
    for verdict in ("backdoor", "inconclusive", "no sign"):
        counts = [sum(each["verdict"] == verdict for each in group) for group in (bad, good)]
        told = [n for each, n in zip(bad, right, strict=True) if each["verdict"] == verdict]
        print(f"verdict {verdict!r}: {counts[0]} backdoored ({sum(told)} with the right label), {counts[1]} clean")
    print("\n| attack | models | score | named | verdict backdoor |\n|---|---|---|---|---|")
    for attack in dict.fromkeys(each["attack"] for each in (*bad, *good)):
        group = [(each, n) for each, n in zip(bad, right, strict=True) if each["attack"] == attack]
        rows = [each for each in first if each["attack"] == attack] if attack == "clean" else [e for e, _ in group]
        values = ", ".join(f"{each['value']:.1f}" for each in rows)
        told = "-" if attack == "clean" else f"{sum(n for _, n in group)} of {len(group)}"
        print(f"| {attack} | {len(rows)} | {values} | {told} | {sum(e['verdict'] == 'backdoor' for e in rows)} |")
    print("\nclean scores:", ", ".join(f"{value:.2f}" for value in sorted(negative)))
    pairs = [(each["value"], each["asr"]) for each in lines if each["attack"] != "clean" and each["acc"] > 0.5]
    if len(pairs) > 2:
        one, two = (ranks([pair[place] for pair in pairs]) for place in (0, 1))
        print(
            f"rank correlation of score and ASR over {len(pairs)} models, before and after: "
            f"{float(torch.corrcoef(torch.stack([one, two]))[0, 1]):.2f}"
        )
    for defense in DEFENSES:
        after = [each for each in lines if each["defense"] == defense]
        if after:
            accused = sum(each["verdict"] == "backdoor" for each in after)
            mean = sum(each["value"] for each in after) / len(after)
            print(f"after {defense}: {len(after)} models, verdict 'backdoor' {accused}, mean score {mean:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10 and gtsrb as parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("audit", "purified", "report"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "scores.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    done = {tuple(each[name] for name in NAMES) for each in lines}
    sources = Sources(
        {
            name: tuple(str(asked.data / name / f"{part}.parquet") for part in ("train", "test"))  # type: ignore[misc]
            for name in DATA_SETS
        }
    )
    device = torch.device("cpu")

    def keep(each: Audited, defense: str, found: dict[str, Any]) -> None:
        lines.append({**dict(zip(NAMES, named(each, defense), strict=True)), **found})
        with path.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(
            each.data,
            each.attack,
            each.poison_rate,
            each.seed,
            defense,
            f"{found['value']:.2f}",
            found["verdict"],
            flush=True,
        )

    def missing(each: Audited, defense: str) -> bool:
        return named(each, defense) not in done

    listed = sorted(
        (*models(CLEAN, clean=True), *models(SUITE, clean=False)), key=lambda each: (each.attack == "clean", each.data)
    )
    for each in listed if asked.only != "report" else ():
        usual = each.attack != "clean" and each.poison_rate == 0.1 and not each.attack.endswith("-a2a")
        wanted = [d for d in ("none", *(DEFENSES if usual else ())) if missing(each, d)]
        wanted = [d for d in wanted if asked.only is None or (d == "none") == (asked.only == "audit")]
        if not wanted:
            continue
        train, test = sources.read(each.data)
        if each.attack == "clean":
            model = clean_model(train, each.cell.victim, device=device)
            keep(each, "none", {**line(model, chosen(train)), "acc": None, "asr": None})
            continue
        folder = cached_attack(each.cell.attack, train, test, victim=each.cell.victim, device=device)
        model = load_model(folder / MODEL).model
        triggered = read_triggered(folder / TRIGGERED, size=train.image_size, num_classes=train.num_classes)
        for defense in wanted:
            if defense == "none":
                record = read_json(folder / RECORD)
                keep(each, defense, {**line(model, chosen(train)), "acc": record["acc"], "asr": record["asr"]})
                continue
            method = make_defense(defense, scale=None if defense == "npd" else "laptop", profile=each.data)
            network = method.repair(model, chosen(train), seed=0).model
            rates = evaluate(network, test, triggered)
            keep(each, defense, {**line(network, chosen(train)), "acc": rates.acc, "asr": rates.asr})
    report(lines, asked.out)


if __name__ == "__main__":
    main()
