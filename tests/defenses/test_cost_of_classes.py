"""What many classes cost is said before it is spent, and it is what is spent."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neural_polarizer as npz
from neural_polarizer.audit import audited
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.parquet import write_images
from neural_polarizer.defenses.base import Run
from neural_polarizer.defenses.neural_cleanse import NeuralCleanse
from neural_polarizer.defenses.stand_ins import looks
from neural_polarizer.defenses.stand_ins.defense import LeastStandIns
from neural_polarizer.defenses.stand_ins.least import Space, least_stand_ins
from neural_polarizer.defenses.stand_ins.looks import cost_of_looks
from neural_polarizer.defenses.stand_ins.settings import Looks, Search, Settings
from neural_polarizer.models.preact_resnet import PreActResNet18
from run_files import run
from toys import TinyNet, made, tiny_images

FEW = Settings(
    looks=Looks(classes=2, pixels=8, images=3, program_steps=2),
    in_pixels=Search(steps=2, images=3),
    in_features=Search(steps=3, images=2),
)


def told(text: str | None) -> int:
    """The images forwards and backwards that a sentence names."""
    assert text is not None
    found = re.search(r"([\d,]+) images forwards and backwards", text)
    assert found is not None
    return int(found[1].replace(",", ""))


class Counting(nn.Module):
    """Counts the images that are differentiated through it."""

    seen: list[int]

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        object.__setattr__(self, "seen", [])

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            self.seen.append(len(images))
        return self.network(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Counting":
        return self  # the method's copy counts for us


def test_nc_says_how_many_images_its_classes_cost_and_what_makes_it_less() -> None:
    clean, model = tiny_images(24, num_classes=20), Counting(made(TinyNet(20)))
    nc = NeuralCleanse(images=10, epochs=3, batch_size=4)
    said = nc.cost_of_classes(len(clean), 20)
    nc.invert(model, clean, Run(seed=0))
    assert sum(model.seen) == told(said) == 20 * 3 * 10
    assert said is not None
    assert "each of 20 classes" in said
    assert "--set images=2 or --set epochs=1 makes it less" in said
    assert nc.cost_of_classes(24, 19) is None
    assert NeuralCleanse(epochs=1).cost_of_classes(24, 1000) != nc.cost_of_classes(24, 1000)


@pytest.mark.parametrize(("in_pixels", "line"), [(10, "4 of them in pixels"), (1, "2 of them in pixels")])
def test_the_looks_say_how_many_of_many_classes_they_look_at(
    in_pixels: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []
    search: Callable[..., Any] = least_stand_ins

    def counted(space: Space, *rest: Any, **more: Any) -> Any:
        def noted(rows: Tensor, deltas: Tensor) -> Tensor:
            spent.append(len(rows))
            return space.forward(rows, deltas)

        return search(replace(space, forward=noted), *rest, **more)

    monkeypatch.setattr(looks, "least_stand_ins", counted)
    few = replace(FEW, looks=replace(FEW.looks, pixel_classes=in_pixels))
    audited(made(TinyNet(9)), tiny_images(18, num_classes=9), seed=0, settings=few)
    said = cost_of_looks(few, 9)
    assert sum(spent) == told(said)
    assert said is not None
    assert said.startswith(f"of 9 classes the 2 nearest and 2 others are looked at, {line}, with")
    assert said.endswith("--set looks.pixel_classes=1 looks at fewer")
    assert cost_of_looks(few, 4) is None
    assert LeastStandIns().cost_of_classes(100, 1000) == cost_of_looks(Settings(), 1000)
    assert told(cost_of_looks(Settings(), 1000)) == told(cost_of_looks(Settings(), 100))


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network of 100 classes and images of some."""
    folder = tmp_path_factory.mktemp("hundred")
    torch.save(made(PreActResNet18(100, 2)).state_dict(), folder / "model.pt")
    images = tiny_images(12, num_classes=12, size=16)
    write_images(folder / "clean.parquet", replace(images, classes=tuple(map(str, range(100)))))
    return folder / "model.pt", folder / "clean.parquet"


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            ("purify", "--method", "nc"),
            "note: NC inverts a trigger for each of 100 classes, with 80 passes over 12 images",
        ),
        (("purify",), "note: of 100 classes the 32 nearest and 32 others are looked at"),
        (("purify", "--method", "npd-tu", "--target", "auto"), "note: of 100 classes the 32 nearest and 32 others"),
        (("audit",), "note: of 100 classes the 32 nearest and 32 others are looked at"),
        (("audit", "--set", "looks.classes=8"), "note: of 100 classes the 8 nearest and 8 others are looked at"),
    ],
)
def test_the_line_comes_before_the_work(
    hundred: tuple[Path, Path],
    command: tuple[str, ...],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*_given: Any, **_more: Any) -> None:
        raise npz.BadInputError("here the work would begin")

    for name in ("purify.run_purify", "purify.admitted", "audit.run_audit"):
        monkeypatch.setattr(f"neural_polarizer.cli.{name}", work)
    words = ("--arch", "preactresnet18", "--profile", "none", "--clean", hundred[1], "--out", tmp_path / "o")
    done = run(capsys, command[0], hundred[0], *command[1:], *words, "--device", "cpu")
    assert "here the work would begin" in done.err
    assert line in " ".join(done.out.split())
    assert done.out.count("note:") == 1
    silent = run(capsys, command[0], hundred[0], *command[1:], *words, "--device", "cpu", "--quiet")
    assert silent.out == ""


def test_python_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    model, images = made(TinyNet(20)), tiny_images(40, num_classes=20)
    answers = model(images.images / 255).argmax(dim=1)
    clean = ImageSet(images.images, answers, images.classes)
    few = NeuralCleanse(images=2, epochs=1, batch_size=2)
    with caplog.at_level(logging.INFO, "neural_polarizer"), pytest.raises(npz.BadInputError):
        npz.purify(model, clean, few, device="cpu", force=True)  # NC refuses classes without images, later
    assert any("each of 20 classes" in each.message for each in caplog.records)
