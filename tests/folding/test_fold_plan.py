"""Which layers may take the polarizer over: networks of a few layers, each with one property that matters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.layer.folding.fold import Folded, fold_polarizer
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import Site, insert
from toys import made, polarizers

Forward = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """A few layers, which a function of this file connects; ``site`` is where the polarizer goes, behind it."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.way = forward
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.other = nn.Conv2d(3, 4, 1, bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.bare = nn.InstanceNorm2d(4)
        self.site = nn.Identity()
        self.next = nn.Conv2d(4, 4, 3, bias=False)
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.window = nn.AvgPool2d(2)
        self.padded_window = nn.AvgPool2d(2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)
        self.second_head = nn.Linear(4, 3)
        self.wide_head = nn.Linear(4 * 64, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.way(self, images)


def ending(net: Layers, features: Tensor) -> Tensor:
    return net.head(features.relu().mean(dim=(2, 3)))


FOLDS: dict[str, tuple[Forward, str]] = {
    "a sum": (lambda m, x: ending(m, m.site(m.stem(x) + m.other(x))), "into stem and into other"),
    "an in-place sum": (lambda m, x: ending(m, m.site(m.other(x).add_(m.stem(x)))), "into other and into stem"),
    "windows": (lambda m, x: ending(m, m.site(m.window(m.stem(x)))), "into stem"),
    "both sides linear": (lambda m, x: ending(m, m.next(m.site(m.stem(x)))), "into stem"),
    "unpadded": (lambda m, x: ending(m, m.next(m.site(m.stem(x).relu()))), "into next"),
    "mirrored": (lambda m, x: ending(m, m.mirrored(m.site(m.stem(x).relu()))), "into mirrored"),
    "two readers": (
        lambda m, x: (lambda s: ending(m, m.next(s)) + m.second_head(m.pool(s).flatten(1)))(m.site(m.stem(x).relu())),
        "into next and into second_head",
    ),
    "mean of a list": (lambda m, x: m.head(torch.mean(m.site(m.stem(x).relu()), [2, 3])), "into head"),
    "mean, negative axes": (lambda m, x: m.head(m.site(m.stem(x).relu()).mean((-1, -2))), "into head"),
    "mean, then flat": (
        lambda m, x: m.head(m.site(m.stem(x).relu()).mean((2, 3), keepdim=True).flatten(1)),
        "into head",
    ),
    "functional, view": (
        lambda m, x: (lambda s: m.head(F.avg_pool2d(s, 8).view(s.size(0), -1)))(m.site(m.stem(x).relu())),
        "into head",
    ),
    "adaptive, reshape": (
        lambda m, x: (lambda s: m.head(F.adaptive_avg_pool2d(s, 1).reshape(s.shape[0], -1)))(m.site(m.stem(x).relu())),
        "into head",
    ),
    "flat alone": (lambda m, x: m.wide_head(torch.flatten(m.site(m.stem(x).relu()), 1)), "into wide_head"),
}
REFUSED: dict[str, tuple[Forward, str]] = {
    "the same summand twice": (
        lambda m, x: (lambda s: ending(m, m.site(s + s)))(m.stem(x)),
        "one convolution gives several of the summands",
    ),
    "a convolution that runs twice": (
        lambda m, x: ending(m, m.site(m.stem(x))) + m.stem(x).mean(),
        "comes from stem, not from a convolution",
    ),
    "weights that are used elsewhere": (
        lambda m, x: ending(m, m.site(m.stem(x))) + m.stem.weight.sum(),
        "comes from stem, not from a convolution",
    ),
    "a value that is read elsewhere": (
        lambda m, x: (lambda s: ending(m, m.site(s)) + s.mean())(m.stem(x)),
        "also read by mean",
    ),
    "a summand that is read elsewhere": (
        lambda m, x: (lambda s: ending(m, m.site(s + m.other(x))) + m.next(s).mean())(m.stem(x)),
        "also read by next",
    ),
    "a sum with a factor": (
        lambda m, x: ending(m, m.site(torch.add(m.stem(x), m.other(x), alpha=2))),
        "comes from add, not",
    ),
    "a constant": (lambda m, x: ending(m, m.site(m.stem(x) + 1)), "comes from add, not"),
    "groups in front": (lambda m, x: ending(m, m.site(m.grouped(m.stem(x)))), "comes from grouped, not"),
    "groups behind": (lambda m, x: ending(m, m.grouped(m.site(m.stem(x).relu()))), "read by grouped, which cannot"),
    "statistics of the image": (lambda m, x: ending(m, m.bare(m.site(m.stem(x).relu()))), "no batch norm alone reads"),
    "padded windows": (
        lambda m, x: m.head(m.pool(m.padded_window(m.site(m.stem(x).relu()))).flatten(1)),
        "read by padded_window, which cannot",
    ),
    "a mean over channels": (
        lambda m, x: m.head(F.pad(m.site(m.stem(x).relu()).mean((1, 2)), (0, -4))),
        "read by mean, which cannot",
    ),
    "a concatenation": (
        lambda m, x: (lambda s: ending(m, torch.cat([s, s], 2)))(m.site(m.stem(x).relu())),
        "read by cat, which cannot",
    ),
    "pixels as channels": (
        lambda m, x: (lambda s: m.head(s[..., :4].mean((1, 2))))(m.site(m.stem(x).relu())),
        "read by getitem, which cannot",
    ),
}


def fold(forward: Forward) -> tuple[nn.Module, Folded, Tensor]:
    network = made(Layers(forward)).double()
    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    model = insert(network, Site("after", "site"), polarizers(4, 4).double())
    return model, fold_polarizer(model, pixels), pixels


@pytest.mark.parametrize("name", FOLDS)
def test_these_layers_take_it_over(name: str) -> None:
    forward, how = FOLDS[name]
    model, folded, pixels = fold(forward)
    assert folded.how == f"folded {how}"
    assert (folded.exact, folded.architecture_kept) == (True, True)
    assert_close(folded.model(pixels), model(pixels), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", REFUSED)
def test_these_cannot_and_say_why(name: str) -> None:
    forward, reason = REFUSED[name]
    model, folded, pixels = fold(forward)
    assert folded.how == "folded into one 1x1 convolution at its own site"
    assert any(reason in obstacle for obstacle in folded.obstacles), folded.obstacles
    assert_close(folded.model(pixels), model(pixels), rtol=1e-9, atol=1e-9)


def test_the_batch_norm_behind_is_merged_only_if_nothing_else_reads_the_layer() -> None:
    model, folded, pixels = fold(lambda m, x: ending(m, m.norm(m.site(m.stem(x).relu()))))
    assert folded.changes == {"norm": "pointwise"}
    assert_close(folded.model(pixels), model(pixels), rtol=1e-9, atol=1e-9)
    _, shared, _ = fold(lambda m, x: (lambda s: ending(m, m.norm(s) + s))(m.site(m.stem(x).relu())))
    assert shared.site_kept


class InsideTorchs(nn.Module):
    """Tokens through a layer of torch's that is traced as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.patch(images).flatten(2).transpose(1, 2)).mean(dim=1))


def test_inside_a_module_of_torchs_it_becomes_one_linear_layer_there() -> None:
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    model = insert(made(InsideTorchs()), Site("after", "layer.norm1"), made(Polarizer(8, channels_last=True), 3))
    expected = model(pixels)
    folded = fold_polarizer(model, pixels)
    assert not folded.architecture_kept
    assert folded.obstacles == ("the layer is inside a module of torch's, which cannot be divided",)
    assert_close(folded.model(pixels), expected, rtol=1e-4, atol=1e-4)
