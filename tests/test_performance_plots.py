"""The pictures of the performance page."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import script

FIGURES: dict[str, dict[str, Any]] = {
    "plain": {"seconds": {"plain, fp32": [100.0, 102.0, 101.0], "ours, bf16": [20.0, 20.2, 19.0]}},
    "whole": {"seconds": {"plain, fp32, 50 epochs (reckoned)": [900.0], "shipped": [60.0, 61.0]}},
    "ceiling": {"flops_per_second": {"the inner loop": 1e11, "16 to 16, 3x3": 2e11}},
    "scaling": {"seconds": {"250 images": [1.0], "500 images": [2.0]}},
    "memory": {"peak_mib": {"250 images": 100.0, "500 images": 200.0}},
    "inference": {"before:layer4": {name: {"ratio": [0.9, 1.0, 1.1]} for name in ("original", "purified", "folded")}},
}


@pytest.mark.long
def test_each_measurement_gets_its_picture_and_the_same_figures_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots = script("performance_plots")
    assert plots.PLOTS.keys() == FIGURES.keys()
    for name, found in FIGURES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"setting": "the machine", **found}))
    pictures = []
    for folder in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["plots", "--results", str(tmp_path), "--out", str(tmp_path / folder)])
        plots.main()
        pictures.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert pictures[0] == pictures[1]
    assert pictures[0].keys() == {f"{name}.svg" for name in FIGURES}
