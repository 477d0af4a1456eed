"""Folding, compared with the purified network itself; every polarizer here is far from the identity."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.features import Features
from neural_polarizer.layer.folding.fold import Folded, fold_polarizer
from neural_polarizer.layer.polarizer import Structure
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.structures import make_polarizer
from neural_polarizer.layer.surgery import PolarizedModule, Site, insert
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from toys import TinyNet, Untraceable, made, polarizers, quick, snapshot, tiny_model

RELATIVE = {torch.float32: 1e-4, torch.float64: 1e-9}


def pixels_of(size: tuple[int, int] = (16, 16), n: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(5)).to(dtype)


def purified(network: nn.Module, site: str, pixels: Tensor, seed: int = 3) -> nn.Module:
    place = Site.parse(site)
    return insert(network, place, polarizers(seed, features_at(network, place, pixels).channels).to(pixels.dtype))


def preact() -> nn.Module:
    return PreActResNet18(4, width=2)


def resnet() -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18(weights=None, num_classes=4)


def vgg() -> nn.Module:
    """What torchvision makes of vgg19_bn, with fewer layers and a small head: the maps before the head are 7x7."""
    models = pytest.importorskip("torchvision").models.vgg
    network: nn.Module = models.VGG(models.make_layers([4, "M", 6, "M"], batch_norm=True), 4, init_weights=False)
    network.classifier = nn.Sequential(nn.Linear(6 * 49, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 4))
    return network


Case = tuple[Callable[[], nn.Module], str, str, dict[str, str]]
KEPT: dict[str, Case] = {
    "mean, linear": (preact, "after:layer4", "into linear", {}),
    "stem": (
        *(preact, "after:conv1", "into conv1 and its constant into layer1.0.bn1, layer1.1.bn1, layer2.0.bn1"),
        {},
    ),
    "batch norm behind takes the bias": (preact, "before:layer4.0.bn2", "into layer4.0.conv1", {}),
    "one summand": (
        *(preact, "after:layer4.0.shortcut", "into layer4.0.shortcut.0 and its constant into layer4.1.bn1, linear"),
        {},
    ),
    "pooling, linear": (resnet, "after:layer4", "into fc", {}),
    "batch norm in front": (resnet, "after:layer4.0.bn2", "into layer4.0.conv2 and layer4.0.bn2", {}),
    "batch norm between": (resnet, "after:conv1", "into conv1", {}),
    "convolution with bias": (vgg, "after:features.0", "into features.0", {}),
    "49 pixels a channel": (vgg, "after:features", "into classifier.0", {}),
    "conv, bn": (vgg, "after:features.5", "into features.4 and features.5", {}),
}
PADDING = "with a term for its zero padding"
CHANGED: dict[str, Case] = {
    "shipped site": (
        *(preact, "before:layer4", "with layer4.0.bn1 into one 1x1 convolution"),
        {"layer4.0.bn1": "pointwise"},
    ),
    "paper's site": (
        *(preact, "before:layer4.1.conv1", f"into layer4.1.conv1 {PADDING}"),
        {"layer4.1.conv1": "border"},
    ),
    "behind a ReLU": (
        *(resnet, "after:layer3", f"into layer4.0.conv1 {PADDING} and into layer4.0.downsample.0"),
        {"layer4.0.conv1": "border"},
    ),
    "before a pooling": (vgg, "after:features.2", "into one 1x1 convolution at its own site", {}),
    "behind a pooling": (vgg, "after:features.3", f"into features.4 {PADDING}", {"features.4": "border"}),
}


@torch.no_grad()
def check(network: nn.Module, site: str, pixels: Tensor, seed: int = 3) -> Folded:
    """Fold and compare with the purified network, which in turn must differ from the network itself."""
    model = purified(network, site, pixels, seed)
    folded = fold_polarizer(model, pixels)
    expected, scale = model(pixels), float(model(pixels).abs().max())
    missed = float((network(pixels) - expected).abs().max())
    assert missed > 5 * RELATIVE[pixels.dtype] * scale, "the polarizer would not be missed"
    gap = float((folded.model(pixels) - expected).abs().max())
    assert gap <= RELATIVE[pixels.dtype] * scale
    assert folded.deviation == pytest.approx(gap)
    assert folded.largest_logit == pytest.approx(scale)
    assert folded.exact
    assert not any(isinstance(module, PolarizedModule) for module in folded.model.modules()) or folded.site_kept
    return folded


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
@pytest.mark.parametrize("name", [*KEPT, *CHANGED])
def test_a_folded_network_is_the_purified_one_as_a_function(name: str, dtype: torch.dtype) -> None:
    maker, site, how, changes = {**KEPT, **CHANGED}[name]
    network = made(maker()).to(dtype)
    folded = check(network, site, pixels_of(dtype=dtype))
    assert folded.how == f"folded {how}"
    assert folded.changes == changes
    assert folded.architecture_kept == (name in KEPT)
    assert folded.site_kept == ("own site" in how)
    if name in KEPT:
        names = network.state_dict().keys() | {f"{layer}.bias" for layer in changes}
        assert folded.model.state_dict().keys() == names


@pytest.mark.long
@pytest.mark.parametrize("site", ["after:layer4", "before:layer4", "before:layer4.1.conv1", "after:conv1"])
@quick
@given(seed=st.integers(0, 2**16), height=st.integers(8, 19), width=st.integers(8, 19))
def test_any_polarizer_folds_at_any_image_size(site: str, seed: int, height: int, width: int) -> None:
    check(made(preact(), seed).double(), site, pixels_of((height, width), dtype=torch.float64), seed)


@pytest.mark.long
@pytest.mark.parametrize("site", ["after:layer4", "before:layer4", "before:layer4.1.conv1"])
def test_a_network_behind_a_normalisation_folds_alike(site: str) -> None:
    network = made(Normalized(preact(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    folded, bare = check(network, site, pixels_of()), check(made(preact()), site, pixels_of())
    assert (folded.how, folded.changes, folded.obstacles) == (bare.how, bare.changes, bare.obstacles)


def test_a_singular_polarizer_folds_before_a_padded_convolution() -> None:
    """Padding with the pixel that becomes zero would need the inverse of the matrix."""
    network, pixels = made(preact()), pixels_of()
    model = purified(network, "before:layer4.1.conv1", pixels)
    layer = model.get_submodule("layer4.1.conv1.polarizer.norm")
    assert isinstance(layer, nn.BatchNorm2d)
    with torch.no_grad():
        layer.weight[:3] = 0.0
    folded = fold_polarizer(model, pixels)
    assert_close(folded.model(pixels), model(pixels), rtol=1e-4, atol=1e-4)
    assert folded.changes == {"layer4.1.conv1": "border"}


@pytest.mark.parametrize("structure", [name for name in get_args(Structure) if name not in ("conv-bn", "by-class")])
def test_a_layer_of_another_structure_is_refused_in_one_line(structure: Structure) -> None:
    layer = make_polarizer(structure, Features((16, 2, 2), "NCHW"), torch.Generator())
    model = insert(made(preact()), Site.parse("after:layer4"), layer)
    with pytest.raises(BadInputError, match=f"a layer of structure {structure} cannot be folded, only conv-bn") as seen:
        fold_polarizer(model, pixels_of())
    assert "\n" not in str(seen.value)


def test_without_the_border_the_interior_is_exact_and_the_architecture_kept() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU())
    network.append(nn.Flatten()).append(nn.Linear(5 * 14 * 14, 3))
    made(network)
    pixels = pixels_of()
    model = purified(network, "after:1", pixels)
    folded = fold_polarizer(model, pixels, border="ignored")
    assert (folded.exact, folded.architecture_kept) == (False, True)
    assert folded.how == "folded into 2, exact in the interior only"
    assert isinstance(model, nn.Sequential)
    assert isinstance(folded.model, nn.Sequential)
    with torch.no_grad():
        ours, theirs = folded.model[:3](pixels), model[:3](pixels)
        gap = float((folded.model(pixels) - model(pixels)).abs().max())
    assert_close(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)
    assert not torch.isclose(ours[..., 0, :], theirs[..., 0, :], atol=1e-2).all()
    assert folded.deviation == pytest.approx(gap)
    assert folded.deviation > 1e-2


@pytest.mark.parametrize("site", ["after:layer4", "before:layer4", "before:layer4.1.conv1", "after:conv1"])
def test_the_purified_model_and_the_random_state_stay_as_they_are(site: str) -> None:
    pixels = pixels_of()
    model = purified(made(preact()), site, pixels).train()
    before, state = snapshot(model), torch.get_rng_state()
    folded = fold_polarizer(model, pixels)
    after = snapshot(model)
    assert_close(after[0], before[0], rtol=0.0, atol=0.0)
    assert after[1:] == before[1:]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in folded.model.modules())
    with torch.no_grad():
        for tensor in folded.model.state_dict().values():
            tensor.zero_()
    assert_close(model.state_dict(), before[0], rtol=0.0, atol=0.0)


def test_the_network_that_cannot_be_traced_keeps_one_convolution_at_the_site() -> None:
    folded = check(made(Untraceable()), "after:features", pixels_of())
    assert (folded.site_kept, folded.architecture_kept, folded.changes) == (True, False, {})
    (reason,) = folded.obstacles
    assert reason.startswith("the network cannot be traced: TraceError")
    assert "\n" not in folded.remark
    assert f"but not of the original architecture, as {reason}; logits deviate by at most" in folded.remark


def test_the_shipped_site_says_why_nothing_better_is_open() -> None:
    folded = check(made(preact()), "before:layer4", pixels_of())
    assert folded.obstacles == (
        "what the layer reads, or a summand of it, is also read by layer3.1.bn1",
        "the layer's output is read by layer4.0.bn1, which cannot take it over",
    )


@pytest.mark.parametrize("wrong", [2.0, float("nan")])
def test_a_fold_that_gives_other_logits_is_passed_over(wrong: float) -> None:
    """The network reads a weight in plain Python, which no graph shows."""

    class Entangled(TinyNet):
        seen: float | None = None

        def forward(self, images: Tensor) -> Tensor:
            now = float(next(self.features[3].parameters()).detach().sum())
            self.seen = now if self.seen is None else self.seen
            return super().forward(images) * (1.0 if now == self.seen else wrong)

    folded = check(made(Entangled()), "before:features.4", pixels_of())
    assert folded.changes == {"features.4": "pointwise"}
    assert any("folded into features.3 gives other logits (by " in reason for reason in folded.obstacles)


def test_what_cannot_be_folded_at_all_is_refused() -> None:
    with pytest.raises(BadInputError, match="needs a model with exactly one polarizer; this one has 0"):
        fold_polarizer(tiny_model(), pixels_of())
    model = purified(tiny_model(), "after:features.0", pixels_of())
    with pytest.raises(BadInputError, match="this one has 2"):
        fold_polarizer(insert(model, Site("after", "pool"), polarizers(1, 6)), pixels_of())
    with pytest.raises(BadInputError, match="needs at least one image"):
        fold_polarizer(model, pixels_of(n=0))
