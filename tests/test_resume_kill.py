"""Killing ``polarizer attack`` for real, and starting it again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_polarizer.cache import VARIABLE
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.parquet import write_images

pytestmark = pytest.mark.process


def _command(data: Path, out: Path) -> dict[str, Any]:
    options = f"attack badnets --data {data} --test {data} --width 2 --epochs 12 --batch-size 8 --quiet --out {out}"
    main = "from neural_polarizer.cli.main import main; main()"
    # Each folder has a cache of its own, or the second run would have nothing left to do.
    return {
        "args": [sys.executable, "-c", main, *options.split()],
        "env": {**os.environ, VARIABLE: f"{out}-home"},
    }


def test_a_killed_attack_goes_on_and_ends_with_the_same_model(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=generator, dtype=torch.uint8)
    data = tmp_path / "data.parquet"
    write_images(data, ImageSet(images, torch.arange(64) % 4, ("a", "b", "c", "d")))
    subprocess.run(**_command(data, tmp_path / "whole"), check=True)

    victim = subprocess.Popen(**_command(data, tmp_path / "killed"))
    home = tmp_path / "killed-home"
    while not list(home.rglob("training.safetensors")) and victim.poll() is None:
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists(), "it was too fast to be killed half-way"

    subprocess.run(**_command(data, tmp_path / "killed"), check=True)
    for name in ("model.safetensors", "triggered.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
