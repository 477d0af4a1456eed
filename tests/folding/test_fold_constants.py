"""Where the polarizer's constant goes when no convolution in front of it has a bias, and what needs no graph."""

import pytest
import torch
from torch import Tensor, nn

from neural_polarizer.layer.folding.fold import Folded, fold_polarizer
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.structures import make_polarizer
from neural_polarizer.layer.surgery import Site, insert
from toys import TinyNet, Untraceable, made

PIXELS = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(5)).double()


@torch.no_grad()
def folded_at(network: nn.Module, site: str) -> Folded:
    """Folded and compared; the polarizer is far from the identity and its constant is missed."""
    model, place = made(network).double(), Site.parse(site)
    layer = made(make_polarizer("conv-bn", features_at(model, place, PIXELS), torch.Generator()), 3).double()
    purified = insert(model, place, layer)
    folded = fold_polarizer(purified, PIXELS)
    scale = float(purified(PIXELS).abs().max())
    assert float((folded.model(PIXELS) - purified(PIXELS)).abs().max()) < 1e-10 * scale
    assert float((model(PIXELS) - purified(PIXELS)).abs().max()) > 1e-3 * scale
    return folded


class Branches(nn.Module):
    """What the first convolution gives, by one of several ways to the head.

    Args:
        way: which.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.valid = nn.Conv2d(4, 4, 1)
        self.padded = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.keep = nn.Dropout()
        self.pool = nn.AvgPool2d(2)
        self.unbiased = nn.Linear(4, 4, bias=False)
        self.other = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 3)
        self.wide = nn.Linear(4 * 5 * 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.first(images)
        if self.way == "flat":
            return self.wide(self.pool(seen).flatten(1))
        if self.way == "unbiased":
            return self.unbiased(seen.mean(dim=(2, 3)))
        if self.way == "flat sum":
            return self.head(seen.mean(dim=(2, 3)) + self.other(images).mean(dim=(2, 3)))
        branches = {
            "valid": lambda: seen + self.valid(seen).relu(),
            "norm": lambda: self.keep(seen) + self.norm(seen).relu(),
            "padded": lambda: seen + self.padded(seen).relu(),
            "grouped": lambda: seen + self.grouped(seen).relu(),
            "doubled": lambda: seen + seen,
            "joined": lambda: self.keep(seen) + seen,
            "rectified": lambda: seen + seen.relu(),
        }
        return self.head(branches[self.way]().mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("way", "layers"),
    [("flat", "wide"), ("flat sum", "head"), ("valid", "valid, head"), ("norm", "norm, head")],
)
def test_the_constant_goes_into_layers_that_have_one_anyway(way: str, layers: str) -> None:
    folded = folded_at(Branches(way), "after:first")
    assert (folded.changes, folded.site_kept) == ({}, False)
    told, _, into = folded.how.partition(" and its constant into ")
    assert told == "folded into first"
    assert set(into.split(", ")) == set(layers.split(", "))
    assert folded.model.state_dict().keys() == Branches(way).state_dict().keys()


@pytest.mark.parametrize("way", ["padded", "grouped", "doubled", "joined", "rectified", "unbiased"])
def test_where_it_cannot_go_the_convolution_gets_a_bias(way: str) -> None:
    folded = folded_at(Branches(way), "after:first")
    assert (folded.changes, folded.how) == ({"first": "bias"}, "folded into first")
    assert not any("other logits" in each for each in folded.obstacles)  # known beforehand, not found out by trying


def test_batch_norm_of_another_form_takes_no_constant() -> None:
    network = Branches("norm")
    network.norm = nn.BatchNorm2d(4, affine=False)
    assert folded_at(network, "after:first").changes == {"first": "bias"}


class OverRows(nn.Module):
    """A linear layer of the channels, which lie last, and a batch norm of the rows behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.first(images.permute(0, 2, 3, 1))).mean(dim=(1, 2)))


def test_batch_norm_of_another_axis_takes_no_constant() -> None:
    layer = made(Polarizer(12, channels_last=True), 3)
    purified = insert(made(OverRows()), Site.parse("after:first"), layer).double()
    folded = fold_polarizer(purified, PIXELS)
    assert (folded.changes, folded.how) == ({"first": "bias"}, "folded into first")
    assert folded.obstacles == ()


@pytest.mark.long
@pytest.mark.parametrize(
    ("site", "how", "changes"),
    [
        ("after:features.0", "into features.0", {"features.0": "bias"}),
        ("before:features.3", "into features.3 with a term for its zero padding", {"features.3": "border"}),
        ("before:head", "into head", {}),
    ],
)
def test_a_layer_beside_the_polarizer_takes_it_without_a_graph(site: str, how: str, changes: dict[str, str]) -> None:
    folded = folded_at(Untraceable(), site)
    assert (folded.how, folded.changes, folded.site_kept) == (f"folded {how}", changes, False)
    assert folded.obstacles[0].startswith("the network cannot be traced")


class Tied(Untraceable):
    """The head's weights serve a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(6, 4)
        self.second.weight = self.head.weight

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.second(images.mean(dim=(2, 3)).repeat(1, 2))


def test_shared_or_watched_layers_are_left_alone_without_a_graph() -> None:
    assert folded_at(Tied(), "before:head").site_kept
    watched = Untraceable()
    watched.head.register_forward_pre_hook(lambda _module, inputs: (2.0 * inputs[0],))
    assert folded_at(watched, "before:head").site_kept
    grouped = Untraceable()
    grouped.features[3] = nn.Conv2d(6, 6, 1, groups=2)
    assert folded_at(grouped, "before:features.3").site_kept
    assert isinstance(grouped, TinyNet)
