"""Quick runs of the baselines from the command line."""

import json
from pathlib import Path
from typing import Any

from run_files import purify_words

SHORT = ("--set", "schedule.epochs=1", "--set", "schedule.batch_size=6")
QUICK: dict[str, tuple[object, ...]] = {
    "ft": SHORT,
    "fp": (*SHORT, "--set", "step=0.2"),
    "nad": ("--epochs", 1, "--batch-size", 6, "--set", "teacher.epochs=1"),
    "nc": ("--epochs", 1, "--set", "epochs=2", "--set", "success=0.0", "--set", "threshold=0.0"),
    "anp": ("--set", "iterations=2", "--set", "threshold=1.0", "--batch-size", 6),
    "i-bau": ("--set", "rounds=1", "--set", "iterations=1", "--batch-size", 6),
    "ep": ("--batch-size", 6, "--set", "deviations=0.5"),
    "ft-sam": SHORT,
    "fst": SHORT,
    "clp": ("--set", "deviations=0.5"),
    "rnp": ("--set", "unlearn.epochs=1", "--set", "recover.epochs=1", "--set", "recover.lr=30.0", "--batch-size", 6),
    "sau": ("--set", "rounds=1", "--set", "steps=1", "--batch-size", 6),
}
BASELINES = tuple(QUICK)


def words(method: str, runs: Path, out: Path, *more: object) -> tuple[object, ...]:
    """A quick purification of the attacked model with a baseline."""
    base = purify_words(runs / "attack", runs, out, "--method", method, *QUICK[method], *more)
    drop = ("--epochs", 2, "--device", "cpu", "--precision", "fp32")
    start = base.index("--epochs")
    assert base[start : start + len(drop)] == drop
    return (*base[:start], "--device", "cpu", *base[start + len(drop) :])


def record_in(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())
