"""The normalisation that a file of weights holds, in front of the network or beside it."""

from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import saved
from loading_cases import ONE, load, network, same

from neural_polarizer.model_files.checkpoints.normalisation import normalisation_inside
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.definition import Definition, definition_of, network_named
from neural_polarizer.models.normalize import Normalized, bare
from run_files import states_equal
from toys import made, tiny_model


def test_a_normalisation_in_front_is_taken(tmp_path: Path) -> None:
    net = network()
    inside = {"0.mean": torch.tensor([0.5, 0.25, 0.1]).view(1, 3, 1, 1), "0.std": torch.tensor([0.5])}
    state = inside | {f"1.{name}": value for name, value in net.state_dict().items()}
    path = saved(tmp_path / "m.pt", state)
    loaded = load(path, profile=None)
    assert (loaded.record.mean, loaded.record.std) == ((0.5, 0.25, 0.1), (0.5, 0.5, 0.5))
    assert any("the normalisation in the file was taken" in remark for remark in loaded.findings)
    assert not any("left out" in remark for remark in loaded.findings)
    assert load(path, profile="0.1/0.2").record.mean == (0.1, 0.1, 0.1)


@pytest.mark.parametrize("whole", [False, True])
def test_what_normalized_saves_is_read_with_its_statistics(tmp_path: Path, whole: bool) -> None:
    model = Normalized(network(), (0.5, 0.25, 0.1), (0.5, 0.3, 0.2)).eval()
    loaded = load(saved(tmp_path / "m.pt", model if whole else model.state_dict()), profile=None)
    assert same(loaded, model)
    assert (loaded.record.mean, loaded.record.std) == ((0.5, 0.25, 0.1), (0.5, 0.3, 0.2))


@torch.no_grad()
def test_the_normalisation_of_the_module_that_is_given_is_that_of_the_weights(tmp_path: Path) -> None:
    model, pixels = tiny_model(), torch.rand(2, 3, 8, 8)
    path, given = saved(tmp_path / "m.pt", bare(model).state_dict()), definition_of(model)
    loaded = load_model(path, architecture=given)
    assert torch.equal(loaded.model(pixels), model(pixels))
    assert any("that of the module that you gave was taken" in remark for remark in loaded.findings)
    assert load_model(path, architecture=given, profile="0.1/0.2").record.mean == (0.1, 0.1, 0.1)
    one = definition_of(Normalized(bare(model), (0.3,), (0.2,)))
    assert load_model(path, architecture=one).record.mean == pytest.approx((0.3, 0.3, 0.3))


def test_a_module_that_keeps_what_it_computed_can_be_given(tmp_path: Path) -> None:
    model = tiny_model()
    path = saved(tmp_path / "m.pt", bare(model).state_dict())
    model.__dict__["kept"] = deque([model(torch.rand(2, 3, 8, 8))])
    assert states_equal(
        bare(load_model(path, architecture=definition_of(model)).model).state_dict(), bare(model).state_dict()
    )


NORMALISED = """
from torch import nn
from neural_polarizer import Normalized

def given(num_classes):
    return Normalized(nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes)), (0.5, 0.25, 0.1), (0.5, 0.3, 0.2))

class Given(Normalized):
    def __init__(self):
        whole = given(3)
        super().__init__(whole.network, whole.mean.flatten().tolist(), whole.std.flatten().tolist())
"""


@torch.no_grad()
@pytest.mark.parametrize("name", ["given", "Given"])
@pytest.mark.parametrize("alone", [True, False])
def test_code_that_gives_a_normalized_network_keeps_its_normalisation(tmp_path: Path, name: str, alone: bool) -> None:
    (tmp_path / "nets.py").write_text(NORMALISED)
    code = network_named(f"{tmp_path / 'nets.py'}:{name}")
    assert isinstance(code, Definition)
    model = made(code.make(**({"num_classes": 3} if name == "given" else {})))
    path = saved(tmp_path / "m.pt", (bare(model) if alone else model).state_dict())
    loaded, pixels = load_model(path, architecture=code), torch.rand(2, 3, 4, 4)
    assert torch.equal(loaded.model(pixels), model(pixels))
    assert any("that of the module that you gave was taken" in each for each in loaded.findings) == alone
    save_model(tmp_path / "ours.safetensors", loaded.model, loaded.record)
    assert torch.equal(load_model(tmp_path / "ours.safetensors", architecture=code).model(pixels), model(pixels))


@pytest.mark.parametrize("std", [torch.zeros(3), torch.full((3,), float("nan")), torch.ones(4), torch.ones(3).long()])
def test_a_normalisation_that_is_none_is_not_taken(std: torch.Tensor) -> None:
    assert normalisation_inside({"0.mean": torch.zeros(3), "0.std": std}, ()) is None
    assert normalisation_inside({"mean": torch.zeros(3), "std": torch.ones(3)}, ("mean", "std")) is None


@pytest.mark.parametrize(
    "names",
    [
        *[("mean", "std"), ("mu", "sigma"), ("norm._mean", "norm._std"), ("normalizer.new_mean", "normalizer.new_std")],
        *[("MEAN", "STD"), ("mean", "sigma"), ("mu", "std"), ("0.mean", "0.stdev"), ("rgb_mean", "rgb_stddev")],
        *[("pixel_mean", "pixel_std"), ("0.means", "0.stds"), ("pre.mean_tensor", "pre.std_tensor")],
    ],
)
def test_a_normalisation_goes_by_several_names_and_units(names: tuple[str, str]) -> None:
    mean, std = torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1), torch.tensor([0.5])
    for scale in (1, 255):
        found = normalisation_inside({names[0]: scale * mean, names[1]: scale * std, "w": ONE}, ("w",))
        assert found is not None
        assert (found.mean, found.std, found.names) == ((0.5, 0.25, 0.125), (0.5, 0.5, 0.5), frozenset(names))
    twice = {names[0]: mean, names[1]: std, f"a.{names[0]}": mean, f"a.{names[1]}": std}
    assert normalisation_inside(twice, ()) is not None
    assert normalisation_inside({**twice, f"a.{names[1]}": 2 * std}, ()) is None


@pytest.mark.parametrize("mean", [[0.5, 0.25, 0.125], (0.5, 0.25, 0.125)])
def test_a_normalisation_beside_the_weights_is_proposed(tmp_path: Path, mean: Any) -> None:
    path = saved(tmp_path / "m.pt", {"state_dict": network().state_dict(), "mean": mean, "std": [0.5]})
    remarks = load_model(path, architecture="preactresnet18").findings
    assert any("has another beside its weights: --profile 0.5,0.25,0.125/0.5,0.5,0.5" in each for each in remarks)
    odd = saved(tmp_path / "n.pt", {"state_dict": network().state_dict(), "mean": "0\n", "std": [0.5, "x"]})
    assert not any("beside its weights" in each for each in load_model(odd, architecture="preactresnet18").findings)
