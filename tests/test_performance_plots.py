"""The pictures of the performance page."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import script

FIGURES: dict[str, dict[str, Any]] = {
    "plain": {"seconds": {"plain, fp32": [100.0, 102.0, 101.0], "ours, bf16": [20.0, 20.2, 19.0]}},
    "fast": {"seconds": {"plain, fp32, 50 epochs (reckoned)": [900.0], "exact": [60.0, 61.0], "fast": [10.0, 9.0]}},
    "ceiling": {"flops_per_second": {"the inner loop": 1e11, "16 to 16, 3x3": 2e11}},
    "scaling": {"seconds": {"250 images": [1.0], "500 images": [2.0]}},
    "memory": {"peak_mib": {"250 images": 100.0, "500 images": 200.0}},
    "inference": {"before:layer4": {name: {"ratio": [0.9, 1.0, 1.1]} for name in ("original", "purified", "folded")}},
}


MODES = """data,model,attack,variant,value,mean,spread
cifar10,preactresnet18,badnets,pixels,der,0.9,
cifar10,preactresnet18,badnets,,der,0.95,0.01
cifar10,preactresnet18,badnets,fast,der,0.92,0.02
cifar10,preactresnet18,badnets,fast,acc,0.8,0.02
cifar10,preactresnet18,wanet,fast,der,,
cifar10,preactresnet18,mean,fast,der,0.9,
gtsrb,preactresnet18,lf,fast,der,0.99,
"""


def test_modes_are_those_of_the_table_in_long_form(tmp_path: Path) -> None:
    (tmp_path / "modes.csv").write_text(MODES)
    assert script("performance_plots").read_modes(tmp_path / "modes.csv")["der"] == {
        "cifar10, badnets": {"pixels": (0.9, 0.0), "": (0.95, 0.01), "fast": (0.92, 0.02)},
        "gtsrb, lf": {"fast": (0.99, 0.0)},
    }


def test_each_measurement_gets_its_picture_and_the_same_figures_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots = script("performance_plots")
    assert plots.PLOTS.keys() == FIGURES.keys() | {"modes"}
    (tmp_path / "modes.csv").write_text(MODES)
    for name, found in FIGURES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"setting": "the machine", **found}))
    pictures = []
    for folder in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["plots", "--results", str(tmp_path), "--out", str(tmp_path / folder)])
        plots.main()
        pictures.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert pictures[0] == pictures[1]
    assert pictures[0].keys() == {f"{name}.svg" for name in (*FIGURES, "modes")}
