"""A normalisation that lies in a file beside the network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import saved
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18

MEAN, STD = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.5, 0.25, 0.75])
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(classes: int = 4) -> PreActResNet18:
    torch.manual_seed(0)
    return PreActResNet18(classes, 2).eval()


def behind(front: dict[str, Any], classes: int = 4) -> dict[str, Any]:
    return front | {f"1.{name}": value for name, value in network(classes).state_dict().items()}


def load(path: Path, **options: Any) -> Any:
    return load_model(path, architecture="preactresnet18", **options)


@torch.no_grad()
def close(loaded: Any, model: nn.Module) -> bool:
    return torch.allclose(loaded.model(PIXELS), model(PIXELS), atol=1e-5)


@pytest.mark.parametrize("names", [("0.mean", "0.var"), ("norm.mean", "norm.variance"), ("pixel_mean", "pixel_var")])
@pytest.mark.parametrize("scale", [1, 255])
def test_a_variance_does_for_the_deviation(tmp_path: Path, names: tuple[str, str], scale: int) -> None:
    state = behind({names[0]: MEAN * scale, names[1]: (STD * scale) ** 2})
    loaded = load(saved(tmp_path / "m.pt", state))
    assert (loaded.record.mean, loaded.record.std) == ((0.5, 0.25, 0.125), (0.5, 0.25, 0.75))


def test_a_batch_norm_in_front_is_worked_out(tmp_path: Path) -> None:
    front = nn.BatchNorm2d(3, affine=False)
    for name, value in front.state_dict().items():
        value.copy_({"running_mean": MEAN, "running_var": STD}.get(name, value))
    model = nn.Sequential(front, network()).eval()
    assert close(load(saved(tmp_path / "m.pt", model.state_dict())), model)
    beside = {f"bn0.{name}": value for name, value in front.state_dict().items()} | model[1].state_dict()
    assert close(load(saved(tmp_path / "beside.pt", beside)), model)


@pytest.mark.long
@pytest.mark.parametrize(
    "front",
    [
        {"0.scale": STD, "0.shift": MEAN},
        {"0.weight": STD, "0.bias": MEAN},
        {"0.weight": STD.view(3, 1, 1, 1), "0.bias": MEAN},
        {"norm.weight": torch.diag(STD).view(3, 3, 1, 1)} | {"norm.bias": MEAN},
        {"mean": MEAN, "inv_std": 1 / STD},
        {"0.mean": MEAN.view(3, 1, 1).expand(3, 16, 16).clone()},
        {"0.mean": MEAN, "0.var": -STD},
        {"0.running_mean": MEAN, "0.running_var": STD, "0.weight": STD, "0.bias": MEAN},
    ],
)
def test_a_normalisation_that_does_not_tell_how_it_works_is_refused(tmp_path: Path, front: dict[str, Tensor]) -> None:
    path = saved(tmp_path / "m.pt", behind(front))
    with pytest.raises(BadInputError, match=rf"m\.pt: it holds {next(iter(front))}.*; .*with --profile MEAN/STD, else"):
        load(path)
    assert load(path, profile="none").record.mean == (0, 0, 0)


@pytest.mark.parametrize("beside", ["ema.linear.bias", "decoder.bias", "critic.bn.running_mean", "train_acc.tp", "n"])
def test_three_numbers_of_something_else_are_left_out(tmp_path: Path, beside: str) -> None:
    more = {"decoder.weight": torch.ones(3, 8, 3, 3)} if beside.startswith("decoder") else {}
    number = torch.tensor(3.0) if beside == "n" else torch.ones(8 if beside.startswith("critic") else 3)
    loaded = load(saved(tmp_path / "m.pt", behind(more | {beside: number}, classes=3)))
    assert close(loaded, network(3))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["attributes", "hidden buffers", "torchvision"])
def test_a_normalisation_in_attributes_of_a_module_is_told(tmp_path: Path, kind: str) -> None:
    front: Any = nn.Identity()
    if kind == "torchvision":
        front = pytest.importorskip("torchvision").transforms.Normalize([0.5], [0.5])
    elif kind == "attributes":
        front.mean, front.std = [0.5], torch.ones(1)
    else:
        front.register_buffer("mean", MEAN, persistent=False)
        front.register_buffer("std", STD, persistent=False)
    loaded = load(saved(tmp_path / "m.pt", nn.Sequential(front, network())))
    assert any("its attributes 0.mean, 0.std are no weights and were not read" in each for each in loaded.findings)
    without = load(saved(tmp_path / "n.pt", Normalized(network(), (0.5,) * 3, (0.5,) * 3)))
    assert not any("attributes" in each for each in without.findings)
