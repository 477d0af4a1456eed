"""The layer: the identity when new, the exact identity when calibrated, and otherwise what its formula says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.polarizer import Polarizer, shifted
from toys import hooks, polarizers, quick


def _features(seed: int = 0, channels: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(7, channels, 2, 3, generator=generator, dtype=dtype) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_new_polarizer_is_the_identity_up_to_the_norms_eps(dtype: torch.dtype) -> None:
    features = _features(dtype=dtype)
    layer = Polarizer(5).to(dtype).eval()
    assert_close(layer(features), features / (1 + layer.norm.eps) ** 0.5)
    assert_close(layer(features), features, rtol=1e-3, atol=0.0)
    assert layer(features).dtype == dtype


def test_in_training_mode_it_standardises_each_channel() -> None:
    out = Polarizer(5).train()(_features())
    assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(5), rtol=0.0, atol=1e-5)
    assert_close(out.var(dim=(0, 2, 3), unbiased=False), torch.ones(5), rtol=1e-4, atol=1e-4)


def test_size_is_that_of_the_paper() -> None:
    """C = 512: a matrix and two vectors, 263168 parameters; by hand."""
    layer = Polarizer(512)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 512 * 512 + 2 * 512 == 263168
    assert layer.mix.bias is None
    assert (layer.norm.eps, layer.norm.momentum) == (1e-5, 0.1)


def test_evaluation_mode_is_the_affine_map_written_out() -> None:
    layer, features = polarizers(3, 5), _features()
    norm = layer.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mixed = torch.einsum("dc,nchw->ndhw", layer.mix.weight[:, :, 0, 0], features)
    standard = (mixed - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
    assert_close(layer(features), standard * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))


@quick
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
def test_a_calibrated_polarizer_is_the_exact_identity_whatever_the_statistics(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, var = scale * torch.randn(5, generator=generator), scale * torch.rand(5, generator=generator)
    layer, features = Polarizer(5).eval(), _features(seed)
    layer.calibrate(mean, var)
    assert_close(layer(features), features, rtol=1e-4, atol=1e-4 * max(1.0, scale))
    assert layer.norm.running_mean is not None
    assert layer.norm.running_var is not None
    assert_close(layer.norm.running_mean, mean)
    assert_close(layer.norm.running_var, var)
    assert all(parameter.requires_grad for parameter in layer.parameters())


def test_calibration_takes_float64_statistics_and_works_on_float64_layers() -> None:
    mean, var = torch.rand(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        layer, features = Polarizer(3).to(dtype).eval(), _features(channels=3, dtype=dtype)
        layer.calibrate(mean, var)
        assert_close(layer(features), features, rtol=1e-5, atol=1e-5)
        assert all(parameter.dtype == dtype for parameter in layer.parameters())


def test_a_trained_convolution_cannot_be_calibrated() -> None:
    layer = Polarizer(3)
    with torch.no_grad():
        layer.mix.weight[0, 1] = 1e-3
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(BadInputError, match="still the identity can be calibrated"):
        layer.calibrate(torch.zeros(3), torch.ones(3))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_its_state_has_the_names_that_saved_files_carry() -> None:
    assert set(Polarizer(2).state_dict()) == {
        "mix.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    assert isinstance(Polarizer(2).mix, nn.Conv2d)


@pytest.mark.parametrize("count", [1, 7])
def test_a_shift_is_added_to_the_layers_input_and_ends_with_its_block(count: int) -> None:
    layer, features = Polarizer(5).eval(), _features()
    shift = _features(seed=1)[:count]
    plain = layer(features)
    with shifted(layer, shift):
        found = layer(features)
    assert_close(found, layer(features + shift))
    with pytest.raises(ZeroDivisionError), shifted(layer, shift):
        _ = 1 / 0
    assert torch.equal(layer(features), plain)
    assert hooks(layer) == []
