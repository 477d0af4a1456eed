"""The layers that only folded networks have."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.models.adapted import BorderConv2d, adapt
from toys import TinyNet, made, quick


@quick
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    size=st.integers(7, 12),
)
def test_a_border_convolution_shifts_what_is_inside_alone(
    kernel: int, stride: int, padding: int, dilation: int, bias: bool, size: int
) -> None:
    plain = made(nn.Conv2d(3, 5, kernel, stride, padding, dilation, bias=bias)).double()
    assert isinstance(plain, nn.Conv2d)
    shift = torch.tensor([0.5, -1.0, 2.0]).double()
    images = torch.rand(2, 3, size, size + 1, generator=torch.Generator().manual_seed(1)).double()
    shifted = F.pad(images + shift[:, None, None], (padding,) * 4)  # zeros around it, as nn.Conv2d has them
    expected = F.conv2d(shifted, plain.weight, plain.bias, stride, 0, dilation)
    ours = BorderConv2d(plain)
    with torch.no_grad():
        ours.border.copy_(torch.einsum("oikl,i->okl", plain.weight, shift))
    assert_close(ours(images), expected)


def test_a_border_convolution_starts_as_the_convolution_it_is_like() -> None:
    plain = nn.Conv2d(3, 5, 3, padding="same").double()
    images = torch.rand(2, 3, 6, 6).double()
    assert_close(BorderConv2d(plain)(images), plain(images), rtol=0.0, atol=0.0)


def test_adapting_gives_the_layers_their_new_tensors() -> None:
    network = TinyNet()
    before = set(network.state_dict())
    adapt(network, "features.0", "bias")
    adapt(network, "features.3", "border")
    adapt(network, "features.4", "pointwise")
    gone = {f"features.4.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(network.state_dict()) == (before - gone) | {"features.0.bias", "features.3.border"}
    assert network.state_dict()["features.4.weight"].shape == (6, 6, 1, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("features.9", "bias"),
        ("features.0", "colour"),
        ("", "bias"),
        ("head", "bias"),
        ("features.1", "border"),
        ("features.0", "pointwise"),
        ("features.2", "bias"),
    ],
)
def test_impossible_changes_are_refused(name: str, kind: str) -> None:
    with pytest.raises(BadInputError, match=rf"no change '{kind}' is possible at '{name}'"):
        adapt(TinyNet(), name, kind)
