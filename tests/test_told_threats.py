"""What a model file would run elsewhere is told by every command that reads one, and in Python."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import neural_polarizer as npz
from run_files import make_runs, run


class Call:
    """Pickled as a call."""

    def __reduce__(self) -> Any:
        return os.getcwd, ()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


@pytest.mark.long
@pytest.mark.parametrize("command", ["evaluate", "export", "sites", "audit", "attack"])
def test_what_a_file_would_run_is_a_warning(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    model = tmp_path / "a.pt"
    torch.save({"model": load_file(runs / "attack" / "model.safetensors"), "data": Call()}, model)
    train, out = runs / "train.parquet", tmp_path / "out"
    quick = ("--epochs", 1, "--batch-size", 16, "--precision", "fp32")
    words: dict[str, tuple[object, ...]] = {
        "evaluate": (model, "--test", train),
        "export": (model, "--to", "state-dict", "--out", tmp_path / "b.pt", "--images", train),
        "sites": (model, "--size", 16),
        "audit": (model, "--clean", train, "--out", out, "--n-clean", 12),
        "attack": ("badnets", "--init", model, "--data", train, "--test", train, "--out", out, *quick),
    }
    done = run(capsys, command, *words[command], "--arch", "preactresnet18")
    assert (done.code, done.err) == (0, "")
    assert "warning: this file tries to run posix.getcwd" in " ".join(done.out.split())


def test_load_warns_of_what_a_file_would_run(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 3).state_dict(), "data": Call()}, tmp_path / "a.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        npz.load(tmp_path / "a.pt", arch=nn.Linear(2, 3))
    told = [each for each in caught if issubclass(each.category, npz.NeuralPolarizerWarning)]
    assert [each.filename for each in told] == [__file__]
    assert "this file tries to run posix.getcwd" in str(told[0].message)
