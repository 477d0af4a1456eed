"""Tiny data sets and runs for the tests of training, files and the command line."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neural_polarizer.cli.main import main
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.parquet import write_images

CLASSES = ("red", "green", "blue")
PURIFIED = ("--method", "npd", "--epochs", 12, "--batch-size", 4, "--set", "lr=0.2")
"""The options of the run ``purified``, whose steps are long enough to move ACC, ASR and RA."""


def coloured(count: int, seed: int, size: tuple[int, int] = (16, 16)) -> ImageSet:
    """Noisy images, each with one bright channel: its class."""
    labels = torch.arange(count) % 3
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(120, (count, 3, *size), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), labels] += 120
    return ImageSet(images, labels, CLASSES, "coloured")


def states_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Equal names and bits."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def stirred(network: nn.Module, seed: int = 0) -> nn.Module:
    """``network`` with random weights and statistics, so that no two tensors are alike; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Outcome:
    """Run the command line in this process."""
    capsys.readouterr()
    code: int | str | None = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert isinstance(code, int)
    return Outcome(code, printed.out, printed.err)


def write_data(folder: Path) -> None:
    """``train.parquet`` and ``test.parquet`` in ``folder``."""
    write_images(folder / "train.parquet", coloured(48, 0))
    write_images(folder / "test.parquet", coloured(21, 1))


def attack_words(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    """A quick attack on the data in ``folder``; later options win over earlier ones."""
    return (
        *("attack", "badnets", "--data", folder / "train.parquet", "--test", folder / "test.parquet", "--out", out),
        *("--width", 2, "--epochs", 2, "--batch-size", 16, "--poison-rate", 0.2),
        *("--device", "cpu", "--precision", "fp32", *more),
    )


def purify_words(model: Path, folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    """A quick purification of ``model`` with the data in ``folder``."""
    return (
        *("purify", model, "--clean", folder / "train.parquet", "--test", folder / "test.parquet", "--out", out),
        # the victims of these tests have learned next to nothing
        *(
            "--method",
            "npd",
            "--n-clean",
            12,
            "--epochs",
            2,
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--force",
            *more,
        ),
    )


def make_runs(factory: pytest.TempPathFactory) -> Path:
    """A folder with data, the run ``attack`` and the run ``purified``, made once; read it, and write elsewhere."""
    return _runs_below(factory.getbasetemp())


@cache
def _runs_below(base: Path) -> Path:
    folder = base / "runs"
    folder.mkdir()
    write_data(folder)
    main_quietly(*attack_words(folder, folder / "attack"))
    main_quietly(*purify_words(folder / "attack", folder, folder / "purified", *PURIFIED))
    return folder


def main_quietly(*words: object) -> None:
    """Run a command that must succeed, without output."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in (*words, "--quiet")])
    assert stop.value.code == 0
