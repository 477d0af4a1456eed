"""The other layers: their size, where they begin, what they compute, and what a file tells of them."""

import copy
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.features import Features
from neural_polarizer.layer.polarizer import Polarizer, Structure, batch_statistics
from neural_polarizer.layer.structures import (
    DualAttentionDenoiser,
    SelfAttentionDenoiser,
    make_polarizer,
    polarizer_for,
)
from toys import assert_same, made

STRUCTURES: tuple[Structure, ...] = tuple(name for name in get_args(Structure) if name != "by-class")
IDENTITIES = [structure for structure in STRUCTURES if structure != "osdn"]
SHAPE = (32, 2, 3)


def new(structure: Structure, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Polarizer:
    return make_polarizer(structure, Features(tuple(shape), "NCHW"), torch.Generator().manual_seed(seed)).eval()


def features(n: int = 5) -> Tensor:
    """As behind a ReLU: not negative, a third of them zero."""
    return (3 * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1)) + 1).relu()


@pytest.mark.parametrize(
    ("structure", "count"),
    [
        ("conv-bn", 263168),
        ("linear", 16384),
        ("linear-light", 1024),
        ("conv", 262144),
        ("conv-bn-x2", 526336),
        ("mlp", 32768),
        ("osad", 526592),
        ("osdn", 296580),
    ],
)
def test_sizes_are_those_of_the_specification(structure: Structure, count: int) -> None:
    """C = 512 on 4x4 maps."""
    layer = new(structure, shape=(512, 4, 4))
    assert sum(parameter.numel() for parameter in layer.parameters()) == count
    assert layer.structure == structure


@pytest.mark.parametrize("structure", ["conv-bn", "conv-bn-x2", "linear", "linear-light", "conv", "mlp"])
def test_parameters_in_the_unit_of_the_features_grow_with_them(structure: Structure) -> None:
    """Three times as large features, statistics and these parameters give three times as large an output."""
    layer = made(new(structure))
    larger = copy.deepcopy(layer)
    assert isinstance(larger, Polarizer)
    with torch.no_grad():
        for parameter in larger.in_feature_units:
            parameter.mul_(3)
        for module in larger.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.mul_(3)
                module.running_var.mul_(9)
        assert_close(larger(3 * features()), 3 * layer(features()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_shape_stays_and_so_does_torchs_global_generator(structure: Structure) -> None:
    before = torch.get_rng_state()
    assert new(structure)(features()).shape == features().shape
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("structure", IDENTITIES)
def test_a_new_layer_is_the_identity_and_the_exact_one_once_it_is_calibrated(structure: Structure) -> None:
    layer, x = new(structure), features()
    assert_close(layer(x), x, rtol=1e-3, atol=0.0)
    layer.calibrate(x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3)))
    assert_close(layer(x), x, rtol=1e-5, atol=1e-5)


def test_both_norms_of_two_stacked_polarizers_have_the_statistics_of_the_features() -> None:
    layer, x = new("conv-bn-x2"), features()
    mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3))
    layer.calibrate(mean, var)
    norms = [module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2
    for norm in norms:
        assert_close(norm.running_mean, mean)
        assert_close(norm.running_var, var)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_reach_all_parameters(structure: Structure) -> None:
    layer = made(new(structure), 2)
    directions = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(3))
    (layer(features()) * directions).sum().backward()
    reached = {name for name, parameter in layer.named_parameters() if parameter.grad is not None}
    moved = {name for name, parameter in layer.named_parameters() if name in reached and parameter.grad.any()}  # type: ignore[union-attr]
    everything = {name for name, _ in layer.named_parameters()}
    assert reached == everything
    # A bias of phi adds the same to the scores of all positions, which the softmax takes out again.
    assert everything - moved <= {"phi.bias"}


@pytest.mark.parametrize("structure", ["osad", "osdn"])
def test_first_weights_follow_the_generator(structure: Structure) -> None:
    first, again, other = (new(structure, seed).state_dict() for seed in (7, 7, 8))
    assert_same(first, again)
    drawn = {name for name, value in first.items() if not torch.equal(value, other[name])}
    expected = {
        "osad": {"theta.weight", "phi.weight", "value.weight", "value.bias", "out.weight", "out.bias"},
        "osdn": {"mix.weight", "squeeze.weight", "squeeze.bias", "expand.weight", "expand.bias", "spatial.weight"},
    }
    assert drawn == expected[structure]


def test_the_weights_of_scores_have_a_deviation_of_a_hundredth() -> None:
    layer = new("osad", shape=(128, 1, 1))
    assert isinstance(layer, SelfAttentionDenoiser)
    for scores in (layer.theta, layer.phi):
        assert float(scores.weight.detach().std()) == pytest.approx(0.01, rel=0.05)


# --- What they compute ------------------------------------------------------------------------------------------------


def test_affine_layers_and_the_mlp_are_their_formulas() -> None:
    x = features()
    for structure in ("linear", "linear-light", "mlp"):
        layer = made(new(structure), 4)
        values = dict(layer.named_parameters())
        expected = x * values["scale"] + values["shift"]
        if structure == "mlp":
            expected = expected.clamp_min(0) * values["second.scale"] + values["second.shift"]
        assert_close(layer(x), expected)


def _pointwise(conv: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    mixed = torch.einsum("dc,nchw->ndhw", conv.weight[:, :, 0, 0], x)
    return mixed if conv.bias is None else mixed + conv.bias.view(-1, 1, 1)


def test_self_attention_looks_from_each_position_at_all_others() -> None:
    layer, x = made(new("osad"), 5), features()
    assert isinstance(layer, SelfAttentionDenoiser)
    theta, phi, value = (_pointwise(conv, x) for conv in (layer.theta, layer.phi, layer.value))
    places = [(row, column) for row in range(SHAPE[1]) for column in range(SHAPE[2])]
    seen = torch.zeros_like(value)
    for image in range(len(x)):
        for row, column in places:
            scores = torch.stack([theta[image, :, row, column] @ phi[image, :, i, j] for i, j in places])
            shares = scores.exp() / scores.exp().sum()
            seen[image, :, row, column] = sum(
                share * value[image, :, i, j] for share, (i, j) in zip(shares, places, strict=True)
            )
    expected = x + layer.norm(_pointwise(layer.out, seen))
    assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(layer(x), x, atol=0.1)


def test_dual_attention_gates_channels_then_positions() -> None:
    layer, x = made(new("osdn"), 6), features() - 1
    assert isinstance(layer, DualAttentionDenoiser)
    update = layer.norm(_pointwise(layer.mix, x)).clamp_min(0)
    gate = torch.zeros(len(x), SHAPE[0])
    for pooled in (update.flatten(2).mean(dim=2), update.flatten(2).max(dim=2).values):
        hidden = (pooled @ layer.squeeze.weight[:, :, 0, 0].T + layer.squeeze.bias).clamp_min(0)
        gate = gate + hidden @ layer.expand.weight[:, :, 0, 0].T + layer.expand.bias
    update = update / (1 + (-gate).exp())[:, :, None, None]
    seen = torch.stack([update.max(dim=1).values, update.mean(dim=1)], dim=1)
    gate = layer.spatial_norm(F.conv2d(F.pad(seen, (3, 3, 3, 3)), layer.spatial.weight))
    update = update / (1 + (-gate).exp())
    assert_close(layer(x), (update + x).clamp_min(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", ["linear", "mlp"])
def test_a_layer_for_each_value_refuses_other_sizes(structure: Structure) -> None:
    reason = rf"structure {structure} is made for feature maps \(32, 2, 3\), got \(32, 2, 2\)"
    with pytest.raises(BadInputError, match=reason):
        new(structure)(features()[:, :, :, :2])


# --- Batch statistics -------------------------------------------------------------------------------------------------


def statistics(layer: nn.Module) -> Iterator[Tensor]:
    return (value.clone() for name, value in layer.named_buffers() if "running" in name)


@pytest.mark.parametrize("structure", ["conv-bn", "conv-bn-x2", "osad", "osdn"])
def test_batch_statistics_reach_all_norms_and_end_with_their_block(structure: Structure) -> None:
    layer, x = new(structure), features()
    made(layer, 7)
    norms = [module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    before = list(statistics(layer))
    with batch_statistics(layer, follow=False):
        own = layer(x)
    assert all(torch.equal(one, other) for one, other in zip(before, statistics(layer), strict=True))
    assert not torch.allclose(own, layer(x))
    with batch_statistics(layer, follow=True):
        assert_close(layer(x), own)
    assert not any(torch.equal(one, other) for one, other in zip(before, statistics(layer), strict=True))
    with pytest.raises(ZeroDivisionError), batch_statistics(layer, follow=False):
        _ = 1 / 0
    assert {(norm.training, norm.momentum) for norm in norms} == {(False, 0.1)}


# --- From a file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_weights_tell_the_size(structure: Structure) -> None:
    for shape in (SHAPE, (3, 1, 4), (1, 1, 1)):
        saved = new(structure, shape=shape).state_dict()
        found = polarizer_for(structure, saved)
        assert found is not None
        assert {name: value.shape for name, value in found.state_dict().items()} == {
            name: value.shape for name, value in saved.items()
        }


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_small_file_makes_no_huge_layer(structure: Structure) -> None:
    names = ("mix.weight", "first.mix.weight", "scale", "out.weight")
    for shape in ((10**6, 1, 1, 1), (2**40, 0, 1, 1), (2**40, 0, 1), (0, 1, 1, 1), (7,)):
        assert polarizer_for(structure, {name: torch.zeros(shape) for name in names}) is None
    assert polarizer_for(structure, {}) is None
