"""Stand-ins in features: where they are made, and what they make of the layer's input."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.stand_ins.early import EarlyMap
from neural_polarizer.defenses.stand_ins.seen import engine_at
from neural_polarizer.defenses.stand_ins.settings import Bank, Settings
from neural_polarizer.layer.sites import on_the_way
from toys import Untraceable, made, tiny_images, tiny_model

ROWS = torch.tensor([3, 1, 4])


def early_of(network: nn.Module, site: str, depth: float = 2 / 3) -> EarlyMap:
    settings, clean = Settings(batch_size=8, bank=Bank(depth=depth)), tiny_images(12)
    net, _ = engine_at(settings, network, clean, site, seed=0, device="cpu")
    return EarlyMap(settings, net, clean, seed=0, device="cpu")


@pytest.mark.parametrize("build", [tiny_model, lambda: made(Untraceable())])
def test_the_layer_moved_by_the_moves_answers_as_the_network_with_the_stand_ins(build: Callable[[], nn.Module]) -> None:
    """The map is whole, and nothing leads around the layer, so its input is all that can tell of a stand-in."""
    clean, network = tiny_images(12), build()
    net, _ = engine_at(Settings(), network, clean, "after:features", seed=0, device="cpu")
    early = EarlyMap(Settings(), net, clean, seed=0, device="cpu")
    deltas = torch.randn(3, *early._net.features.shape, generator=torch.Generator().manual_seed(0))
    moves = early.moves(ROWS, deltas)
    moved = net.logits(tuple(value[ROWS] for value in net.values), moves)
    expected = early._net.logits(tuple(value[ROWS] for value in early._net.values), deltas)
    assert torch.allclose(moved, expected, atol=1e-5)
    assert not torch.allclose(moved, network(to_pixels(clean.images[ROWS])), atol=1e-3)
    assert float(early.moves(ROWS, torch.zeros_like(deltas)).abs().max()) == 0


def test_where_nothing_lies_before_the_layer_the_moves_are_the_stand_ins() -> None:
    deltas = torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(early_of(tiny_model(), "after:features.0").moves(ROWS, deltas), deltas)


def test_the_network_and_its_layer_stay_as_they_are() -> None:
    clean, settings = tiny_images(12), Settings(batch_size=8)
    net, _ = engine_at(settings, tiny_model(), clean, "after:features", seed=0, device="cpu")
    before = copy.deepcopy(net.model.state_dict())
    early = EarlyMap(settings, net, clean, seed=0, device="cpu")
    aims = torch.tensor([0, 1, 2, 3])
    found = early.stand_ins(aims, 0.5, torch.Generator().manual_seed(0), lambda *_: None, "some")
    assert len(found) <= 4
    assert found.deltas.shape[1:] == early._net.features.shape
    early.moves(ROWS, torch.ones(3, *early._net.features.shape))
    assert all(torch.equal(value, before[name]) for name, value in net.model.state_dict().items())
    assert not net.polarizer._forward_pre_hooks


def test_a_deeper_share_of_the_way_is_a_later_place() -> None:
    """Of four equal convolutions in front of the layer, a quarter of the way is behind the first."""
    convolutions = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(5)]
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pixels = torch.rand(2, 3, 8, 8)
    places = [on_the_way(network, network[4], pixels, share) for share in (0.25, 0.5, 0.75, 1.0)]
    assert [str(each) for each in places] == ["before:1", "before:2", "before:3", "before:3"]
    assert on_the_way(network, network[1], pixels, 0.5) is None
