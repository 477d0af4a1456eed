"""Audit a model without any trigger, and read the verdict as a CI job would.

python examples/audit_without_trigger.py
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import neural_polarizer as npz
from neural_polarizer.train.fit import fit


def network() -> nn.Module:
    """Your own architecture: the command line finds it by file and name."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.BatchNorm2d(32)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def main(train: npz.ImageSet, out: Path, *, epochs: int = 3, clean: str = "digits:test") -> dict[str, Any]:
    """Train a model, save it as others would, audit it with 50 clean images, and return its verdict."""
    torch.manual_seed(0)
    model = network()
    schedule = npz.Schedule(epochs=epochs, batch_size=32, lr=0.05, policy="one-cycle", crop_padding=0, flip=False)
    fit(model, train, schedule, seed=0, device="cpu")
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out / "model.pt")
    command = [sys.executable, "-c", "from neural_polarizer.cli.main import main; main()", "audit", out / "model.pt"]
    options = {"--arch": f"{__file__}:network", "--clean": clean, "--n-clean": 50, "--profile": "none"}
    words = [
        *command,
        "--num-classes",
        10,
        *(each for pair in options.items() for each in pair),
        "--out",
        out / "audit",
    ]
    subprocess.run([str(word) for word in words], check=True)
    verdict: dict[str, Any] = json.loads((out / "audit" / "verdict.json").read_text(encoding="utf-8"))
    print(verdict["verdict"], "->", " ".join(verdict["what_now"]))
    return verdict


if __name__ == "__main__":
    main(npz.read_images("digits:train"), Path("runs/audit_example"))
