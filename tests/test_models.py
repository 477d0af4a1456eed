"""Networks by name, their sizes, and the normalisation around them."""

import copy
import inspect
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.models.build import build, sizes_in, skeleton
from neural_polarizer.models.layers import last_linear, watching
from neural_polarizer.models.normalize import PROFILES, Normalized
from neural_polarizer.models.preact_resnet import PreActBlock, PreActResNet18
from toys import TinyNet, hooks, made, tiny_model


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("num_classes", "parameters"), [(10, 11_171_146), (43, 11_188_075), (100, 11_217_316), (200, 11_268_616)]
)
def test_preact_resnet18_has_the_reference_networks_size(num_classes: int, parameters: int) -> None:
    """Spec section 5, counted in the reference code."""
    with torch.device("meta"):
        assert _size(build("preactresnet18", num_classes)) == parameters


@pytest.mark.parametrize("size", [8, 16, 32])
def test_preact_resnet18_halves_its_maps_three_times(size: int) -> None:
    network, shapes = made(PreActResNet18(4, width=2)), dict[str, tuple[int, ...]]()
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda _m, _x, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:]))
        )
    assert network(torch.rand(2, 3, size, size)).shape == (2, 4)
    assert shapes == {
        "conv1": (2, size, size),
        "layer1": (2, size, size),
        "layer2": (4, size // 2, size // 2),
        "layer3": (8, size // 4, size // 4),
        "layer4": (16, size // 8, size // 8),
    }


def test_a_block_is_pre_activated_and_its_shortcut_leaves_where_it_should() -> None:
    """With all convolutions of the main branch at zero, only the shortcut is left."""
    features = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for stride, channels in ((1, 3), (2, 5)):
        block = PreActBlock(3, channels, stride)
        made(block)
        with torch.no_grad():
            block.conv2.weight.zero_()
        if block.shortcut is None:
            assert_close(block(features), features, rtol=0.0, atol=0.0)
        else:
            assert_close(block(features), block.shortcut(F.relu(block.bn1(features))))


_GRADIENTS = """
import torch
from neural_polarizer.models.build import build

torch.manual_seed(0)
network, pixels = build("preactresnet18", 10, width=2), torch.randn(16, 3, 16, 16)

def gradients(layout):
    network.zero_grad()
    network.to(memory_format=layout)(pixels.contiguous(memory_format=layout)).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]

for _ in range(5):
    for one, two in zip(gradients(torch.contiguous_format), gradients(torch.channels_last)):
        assert (one - two).abs().max() < 1e-3 * one.abs().max()
"""


@pytest.mark.process
def test_a_narrow_network_has_the_same_gradients_with_the_channels_last() -> None:
    """oneDNN's own way to do the shortcuts is wrong or crashes on CPUs with AVX2 alone; any other can play one."""
    here = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", _GRADIENTS], env=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_preact_resnet18_has_the_names_of_published_checkpoints() -> None:
    names = set(PreActResNet18(10, width=2).state_dict())
    assert {"conv1.weight", "layer4.1.conv1.weight", "layer2.0.shortcut.0.weight", "linear.bias"} <= names
    assert not any(name.startswith("bn") for name in names)
    assert "layer1.0.shortcut.0.weight" not in names


def test_networks_come_out_in_float64_too() -> None:
    network, pixels = made(Normalized(PreActResNet18(4, width=2), *PROFILES["cifar10"])), torch.rand(2, 3, 16, 16)
    assert_close(copy.deepcopy(network).double()(pixels.double()), network(pixels).double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisation_by_hand(dtype: torch.dtype) -> None:
    model = Normalized(nn.Flatten(), (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)).to(dtype)
    pixels = torch.tensor([1.0, 0.0, 0.5], dtype=dtype).view(1, 3, 1, 1)
    assert_close(model(pixels), torch.tensor([[1.0, -1.0, 0.25]], dtype=dtype))


def test_normalisation_adds_its_statistics_and_a_prefix_to_the_state() -> None:
    network = TinyNet()
    wrapped = Normalized(network, *PROFILES["cifar10"])
    assert set(wrapped.state_dict()) == {"mean", "std", *(f"network.{name}" for name in network.state_dict())}


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5)), ((0.5,), (-1.0,))])
def test_impossible_normalisations_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(BadInputError, match="one mean and one positive std a channel"):
        Normalized(nn.Identity(), mean, std)


@pytest.mark.parametrize("mean", [0.5, torch.tensor(0.5), "0.5"])
def test_a_normalisation_that_is_no_list_is_refused(mean: Any) -> None:
    with pytest.raises(BadInputError, match=r"needs lists, a number for each channel, got .*0\.5"):
        inspect.unwrap(Normalized.__init__)(Normalized.__new__(Normalized), nn.Identity(), mean, mean)


def test_profiles_are_those_of_the_data_sets() -> None:
    """Spec 1.1; GTSRB is fed as it is."""
    assert PROFILES["cifar10"] == ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
    assert PROFILES["cifar100"] == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert PROFILES["tiny_imagenet"] == ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
    assert PROFILES["gtsrb"] == PROFILES["none"] == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("architecture", "num_classes", "width", "match"),
    [
        ("resnet18", 10, None, "unknown architecture 'resnet18': expected preactresnet18, vgg19, vgg19_bn, "),
        ("other:resnet18", 10, None, "unknown architecture 'other:resnet18'"),
        ("", 10, None, "unknown architecture ''"),
        ("preactresnet18", 1, None, "at least 2 classes, got 1"),
        ("preactresnet18", 10, 0, "only preactresnet18, vgg19, vgg19_bn, densenet161, inception_v3 have a width"),
        ("torchvision:vgg19", 10, 8, "width 8 for torchvision:vgg19: only preactresnet18, vgg19"),
        ("densenet161", 10, 5, "width 5 of densenet161: a layer with 96 channels|48 channels cannot have 5/96"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(
    architecture: str, num_classes: int, width: int | None, match: str
) -> None:
    with pytest.raises(BadInputError, match=match):
        build(architecture, num_classes, width=width)


def test_width_sets_the_channels_of_the_first_stage() -> None:
    network = build("preactresnet18", 4, width=2)
    assert sizes_in("preactresnet18", network.state_dict()) == (4, 2)
    assert sizes_in("preactresnet18", {}) == (None, None)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "width", "full"), [("vgg19", 4, 64), ("vgg19_bn", 4, 64), ("densenet161", 6, 96), ("inception_v3", 2, 32)]
)
def test_a_thin_network_has_the_published_one_s_layers_with_a_share_of_their_channels(
    name: str, width: int, full: int
) -> None:
    pytest.importorskip("torchvision")
    thin, published = skeleton(name, 7, width=width), skeleton(name, 7)
    ours, theirs = dict(thin.named_modules()), dict(published.named_modules())
    assert list(ours) == list(theirs)
    head = [key for key, layer in theirs.items() if isinstance(layer, nn.Linear)][-1]
    for key, layer in theirs.items():
        mine = ours[key]
        assert type(mine) is type(layer)
        if isinstance(layer, nn.Conv2d):
            assert isinstance(mine, nn.Conv2d)
            assert mine.out_channels * full == layer.out_channels * width
            assert mine.in_channels in (3, layer.in_channels * width // full)
            for option in ("kernel_size", "stride", "padding", "dilation", "groups"):
                assert getattr(mine, option) == getattr(layer, option)
            assert (mine.bias is None) == (layer.bias is None)
        if isinstance(layer, nn.BatchNorm2d):
            assert isinstance(mine, nn.BatchNorm2d)
            assert (mine.eps, mine.momentum) == (layer.eps, layer.momentum)
        if isinstance(layer, nn.Linear):
            assert isinstance(mine, nn.Linear)
            assert mine.out_features == (7 if key == head else layer.out_features * width // full)


def test_thin_networks_run_and_tell_their_width_and_published_ones_none() -> None:
    pytest.importorskip("torchvision")
    network = build("vgg19_bn", 7, width=2)
    assert not any(value.is_meta for value in network.state_dict().values())
    assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert sizes_in("vgg19_bn", network.state_dict()) == (7, 2)
    assert sizes_in("vgg19_bn", skeleton("vgg19_bn", 7).state_dict()) == (7, None)


def test_a_thin_network_without_batch_norm_keeps_the_scale_of_its_features() -> None:
    """He's initialisation; with torch's own, 16 convolutions leave next to nothing."""
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = build("vgg19", 10, width=16).eval()
    assert 0.03 < float(network(torch.randn(16, 3, 32, 32)).detach().std()) < 30
    inner = network.get_submodule("classifier.0")
    assert isinstance(inner, nn.Linear)
    assert float(inner.weight.detach().std()) == pytest.approx((2 / inner.in_features) ** 0.5, rel=0.02)


def test_torchvision_networks_by_name() -> None:
    pytest.importorskip("torchvision")
    network = build("torchvision:resnet18", 7)
    assert network.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    assert sizes_in("torchvision:resnet18", network.state_dict()) == (7, None)
    with pytest.raises(BadInputError, match="torchvision has no image classifier 'resnet19'"):
        build("torchvision:resnet19", 7)
    with torch.device("meta"):
        assert _size(build("vgg19_bn", 10)) == 139_622_218  # spec section 5


def test_timm_networks_by_name_and_nothing_is_fetched() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        assert _size(build("timm:resnet18", 7)) > 11_000_000
    for name in ("hf-hub:someone/something", "no_such_net"):
        with pytest.raises(BadInputError, match=r"timm has no model|unknown architecture"):
            build(f"timm:{name}", 7)


def test_watching_sees_what_enters_and_leaves_and_its_hooks_go_even_after_an_error() -> None:
    model = tiny_model()
    seen: list[tuple[str, torch.Size, torch.Size]] = []
    with watching(model, ["network.head"], lambda name, x, y: seen.append((name, x[0].shape, y.shape))):
        model(torch.rand(5, 3, 8, 8))
    assert seen == [("network.head", torch.Size([5, 6]), torch.Size([5, 4]))]
    with pytest.raises(AttributeError), watching(model, ["network.head", "network.nowhere"], lambda *_: None):
        pass
    with pytest.raises(RuntimeError), watching(model, ["network.head"], lambda *_: None):
        model(torch.rand(5, 2, 8, 8))
    assert hooks(model) == []


def test_the_head_is_the_last_linear_layer_and_can_be_replaced() -> None:
    model = tiny_model()
    name, head = last_linear(model)
    assert (name, head.out_features) == ("network.head", 4)
    model.set_submodule(name, nn.Linear(6, 2))
    assert model(torch.rand(5, 3, 8, 8)).shape == (5, 2)
    with pytest.raises(BadInputError, match="has no linear layer"):
        last_linear(nn.Conv2d(3, 4, 1))
