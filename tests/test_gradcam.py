"""Grad-CAM before and after a defense: maps known on paper, a slow reference, and what must hold for all maps."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, tensor
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.analysis.gradcam import compare_cams, energy_shares, grad_cam, overlay, trigger_mask
from neural_polarizer.analysis.inputs import check_pairs, last_convolution, name_in
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import Site, insert
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.report.pictures import contact_sheet
from toys import TinyNet, hooks, polarizers, quick, snapshot, tiny_images, tiny_model

pytest.importorskip("captum")

FALLING = tensor([1.0, 0.75, 0.25, 0.0])
"""A cell of 1 before a cell of 0, enlarged from 2 to 4 pixels."""


class Quadrants(nn.Module):
    """``conv`` averages red and green over the quadrants of a 4 x 4 image; the head is given."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, kernel_size=2, stride=2, bias=False)
        self.head = head
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0] = self.conv.weight[1, 1] = 0.25

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.conv(pixels))


def _means(features: Tensor) -> Tensor:
    return features.mean(dim=(2, 3))


def _red_against_green(features: Tensor) -> Tensor:
    difference = features[:, 0] - features[:, 1]
    return torch.stack([difference.mean(dim=(1, 2)), torch.full((len(features),), -9.0)], dim=1)


def _first_red_place(features: Tensor) -> Tensor:
    return torch.stack([features[:, 0, 0, 0], torch.zeros(len(features))], dim=1)


def _image(*, red: tuple[int, int] = (0, 0), green: tuple[int, int] = (0, 0)) -> Tensor:
    """Red and green in the upper left and in the lower right quadrant."""
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    for channel, values in enumerate((red, green)):
        image[0, channel, :2, :2], image[0, channel, 2:, 2:] = values
    return image


def _slow_cam(model: nn.Module, pixels: Tensor, layer: nn.Module) -> Tensor:
    """The definition, with a gradient an image."""
    maps = []
    for pixel in pixels:
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output))
        logits = model(pixel[None].requires_grad_())
        handle.remove()
        (gradient,) = torch.autograd.grad(logits.max(), seen[0])
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        cells = (weights * seen[0]).sum(dim=1, keepdim=True).relu()
        cam = F.interpolate(cells, pixel.shape[1:], mode="bilinear")[0, 0].detach()
        maps.append((cam - cam.min()) / (cam.max() - cam.min()) if cam.max() > cam.min() else 0 * cam)
    return torch.stack(maps)


def test_the_map_of_the_predicted_class_by_hand() -> None:
    images = torch.cat([_image(red=(255, 0), green=(0, 100)), _image(red=(100, 0), green=(0, 255))])
    found = grad_cam(Quadrants(_means), images, "conv")
    assert found.classes.tolist() == [0, 1]
    assert found.grid == (2, 2)
    rising = FALLING.flip(0)
    assert_close(found.maps, torch.stack([torch.outer(FALLING, FALLING), torch.outer(rising, rising)]))


def test_a_channels_weight_is_the_mean_of_its_gradient() -> None:
    """Only one place has a gradient, but all places of its channel are shown; gradient times value would hide them."""
    found = grad_cam(Quadrants(_first_red_place), _image(red=(255, 51)), "conv")
    assert_close(found.maps[0, [0, 3, 0], [0, 3, 3]], tensor([1.0, 0.2, 0.0]))


def test_what_speaks_against_the_class_is_not_shown() -> None:
    """Without the ReLU, the places without any colour would be half way between green and red."""
    found = grad_cam(Quadrants(_red_against_green), _image(red=(255, 0), green=(0, 255)), "conv")
    assert_close(found.maps[0], torch.outer(FALLING, FALLING))


@pytest.mark.parametrize("image", [_image(green=(255, 0)), _image()], ids=["against", "black"])
def test_a_map_without_any_place_for_the_class_is_zero(image: Tensor) -> None:
    assert grad_cam(Quadrants(_red_against_green), image, "conv").maps.abs().max() == 0


@pytest.mark.parametrize("layer", ["features.0", "features.3", "features"])
def test_maps_are_those_of_the_definition(layer: str) -> None:
    model, images = tiny_model(), tiny_images(6).images
    expected = _slow_cam(model, to_pixels(images), model.get_submodule(f"network.{layer}"))
    assert_close(grad_cam(model, images, layer, batch_size=4).maps, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("site", ["before:features.3", "after:features.3", "after:features.0", "before:features"])
def test_maps_of_a_purified_network_are_of_the_network_with_its_polarizer(site: str) -> None:
    model, images, place = tiny_model(), tiny_images(6).images, Site.parse(site)
    purified = insert(model, place, polarizers(1, 3 if site == "before:features" else 6))
    found = grad_cam(purified, images, "features.3").maps
    layer = purified.get_submodule(name_in(purified, "features.3"))
    assert_close(found, _slow_cam(purified, to_pixels(images), layer), rtol=0, atol=1e-5)
    assert (found - grad_cam(model, images, "features.3").maps).abs().max() > 0.05


@pytest.mark.parametrize("site", ["before:features.3", "after:features.3"])
def test_a_polarizer_that_does_nothing_changes_no_map(site: str) -> None:
    model, images = tiny_model(), tiny_images(6).images
    fresh = insert(model, Site.parse(site), Polarizer(6).eval())
    assert_close(
        grad_cam(fresh, images, "features.3").maps, grad_cam(model, images, "features.3").maps, atol=1e-3, rtol=0
    )


def test_the_default_layer_is_the_last_convolution() -> None:
    network = PreActResNet18(4, width=2)
    assert last_convolution(network) == "layer4.1.conv2"
    assert last_convolution(Normalized(network, (0.0,) * 3, (1.0,) * 3)) == "layer4.1.conv2"
    assert last_convolution(TinyNet()) == "features.3"
    with pytest.raises(BadInputError, match="no convolution; name the layer"):
        last_convolution(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("before:layer4.1", "network.layer4.1.module.conv2"),
        ("after:layer4", "network.layer4.module.1.conv2"),
        ("before:layer4.1.conv2", "network.layer4.1.conv2"),
        ("after:layer4.1.conv2", "network.layer4.1.conv2"),
        ("after:layer3", "network.layer4.1.conv2"),
    ],
)
def test_a_layer_is_found_behind_the_polarizer(site: str, expected: str) -> None:
    model = Normalized(PreActResNet18(4, width=2), (0.0,) * 3, (1.0,) * 3)
    purified = insert(model, Site.parse(site), Polarizer(16))
    assert name_in(purified, "layer4.1.conv2") == expected
    assert name_in(model, "layer4.1.conv2") == "network.layer4.1.conv2"
    purified.get_submodule(expected)


def test_the_network_is_left_as_it_was_and_its_mode_does_not_matter() -> None:
    model, images = tiny_model(), tiny_images(6).images
    calm = grad_cam(model, images, "features.3")
    model.train()
    before = snapshot(model)
    found = grad_cam(model, images, "features.3")
    after = snapshot(model)
    assert_close(found.maps, calm.maps, rtol=0, atol=0)
    assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]


def test_no_hook_stays_when_a_network_raises() -> None:
    def fail(features: Tensor) -> Tensor:
        raise ArithmeticError("on purpose")

    model = Quadrants(fail)
    with pytest.raises(ArithmeticError, match="on purpose"):
        grad_cam(model, _image(), "conv")
    assert hooks(model) == []


def test_shares_of_known_maps() -> None:
    maps = tensor([[[3.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    mask = tensor([[True, False], [False, True]]).expand(3, 2, 2)
    assert energy_shares(maps, mask) == (0.75, 0.5, None)


def test_a_trigger_fills_the_cells_that_it_touches() -> None:
    clean = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    triggered = clean.clone()
    triggered[0, 2, 7, 7] = triggered[1, 0, 3, 4] = triggered[1, 1, 4, 4] = 1
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected[0, 4:, 4:] = expected[1, :, 4:] = True
    assert_close(trigger_mask(clean, triggered, (2, 2)), expected)


@quick
@given(
    height=st.integers(2, 17),
    width=st.integers(2, 17),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_no_pixel_of_a_trigger_is_left_out_whatever_the_sizes(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    clean = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    triggered = (torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed)) < 0.02).to(torch.uint8)
    mask = trigger_mask(clean, triggered, (min(rows, height), min(columns, width)))
    assert bool(mask[(triggered > 0).any(dim=1)].all())


def test_the_share_of_a_map_that_is_one_corner_cell() -> None:
    """As the docstring of ``trigger_mask`` has it, for the paper's setting: 32 x 32 pixels, layer4 of 4 x 4 cells."""
    cells = torch.zeros(1, 1, 4, 4)
    cells[..., 3, 3] = 1
    clean = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    triggered = clean.clone()
    triggered[..., 29:, 29:] = 255
    mask = trigger_mask(clean, triggered, (4, 4))
    assert mask.sum() == 64
    assert energy_shares(F.interpolate(cells, (32, 32), mode="bilinear")[:, 0], mask) == pytest.approx((49 / 64,))


def test_a_comparison_by_hand() -> None:
    """Red is the trigger, upper left. The backdoored network looks at red, the purified one at green, lower right."""

    def only(channel: int) -> nn.Module:
        return Quadrants(
            lambda features: torch.stack([features[:, channel].mean(dim=(1, 2)), torch.zeros(len(features))], 1)
        )

    clean, triggered = _image(green=(0, 255)), _image(red=(255, 0), green=(0, 255))
    found = compare_cams(only(0), only(1), clean, triggered)
    assert found.layer == "conv"
    assert found.areas == (0.25,)
    assert found.before.shares == pytest.approx((49 / 64,))
    assert found.after.shares == pytest.approx((1 / 64,))
    rising = FALLING.flip(0)
    assert_close(found.rows[0], clean)
    assert_close(found.rows[1], triggered)
    assert_close(found.rows[2], overlay(triggered, torch.outer(FALLING, FALLING)[None]))
    assert_close(found.rows[3], overlay(triggered, torch.outer(rising, rising)[None]))


def test_maps_without_energy_are_left_out_of_the_mean() -> None:
    clean = torch.cat([_image(), _image(), _image()])
    triggered = torch.cat([_image(red=(255, 0)), _image(green=(255, 0)), _image(red=(0, 255))])
    model = Quadrants(_red_against_green)
    found = compare_cams(model, Quadrants(lambda features: 0 * _means(features)), clean, triggered)
    first, none, last = found.before.shares
    assert none is None
    assert [first, last, found.before.mean] == pytest.approx([49 / 64] * 3)
    assert found.after.mean is None
    assert json.loads(json.dumps(asdict(found.before), allow_nan=False))["shares"][1] is None


def test_batches_and_the_number_of_pictures_change_no_number() -> None:
    model, images = tiny_model(), tiny_images(7)
    purified = insert(model, Site.parse("before:features.3"), polarizers(1, 6))
    triggered = images.images.clone()
    triggered[:, :, 6:, 6:] = 255
    many = compare_cams(model, purified, images.images, triggered)
    few = compare_cams(model, purified, images.images, triggered, shown=2, batch_size=3)
    assert few.before.shares == pytest.approx(many.before.shares, abs=1e-5)
    assert few.after.shares == pytest.approx(many.after.shares, abs=1e-5)
    assert [len(row) for row in few.rows] == [2] * 4
    assert [len(row) for row in many.rows] == [7] * 4
    assert contact_sheet(few.rows, scale=2).startswith(b"\x89PNG")
    assert 0 < min(many.areas) <= max(many.areas) == 4 / 64


def test_colours_by_hand() -> None:
    images = torch.zeros(1, 3, 1, 3, dtype=torch.uint8)
    images[..., 2] = 255
    found = overlay(images, tensor([[[0.0, 0.5, 1.0]]]))
    assert found[0, :, 0].T.tolist() == [[0, 0, 2], [94, 28, 42], [254, 255, 210]]


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.ReLU()
        self.never = nn.Conv2d(4, 4, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.pool(self.twice(self.twice(self.conv(pixels)))).flatten(1))


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        ("cnov", r"layer 'cnov': no such module; the nearest names are conv"),
        ("conv.inner", "no such module"),
        ("head", r"layer 'head': must give one feature map .* gave \[\(1, 2\)\]"),
        ("pool", r"more than one place, gave \[\(1, 4, 1, 1\)\]; .* further in front"),
        ("never", r"gave \[\]"),
        ("twice", r"gave \[\(1, 4, 4, 4\), \(1, 4, 4, 4\)\]"),
    ],
)
def test_unusable_layers_are_refused(layer: str, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        grad_cam(_Odd(), _image(), layer)


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(BadInputError, match=r"pip install 'neural-polarizer\[explain\]'"):
        grad_cam(Quadrants(_means), _image(), "conv")


@pytest.mark.parametrize(
    ("clean", "triggered", "match"),
    [
        (torch.zeros(1, 3, 4, 4), _image(), r"clean images must be uint8 .*, got torch.float32 \(1, 3, 4, 4\)"),
        (_image(), _image()[0], r"triggered images must be uint8 of shape .* got torch.uint8 \(3, 4, 4\)"),
        (_image()[:0], _image()[:0], "with n > 0"),
        (_image()[:, :1], _image()[:, :1], r"\(n, 3, h, w\)"),
        (_image(), torch.cat([_image(), _image()]), "the same ones in the same order"),
        (_image(), _image(), "equal the clean ones; stamp them first"),
    ],
    ids=["float", "one image", "none", "grey", "other number", "no trigger"],
)
def test_images_that_are_no_pairs_are_refused(clean: Tensor, triggered: Tensor, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        check_pairs(clean, triggered)
    with pytest.raises(BadInputError, match=match):
        compare_cams(Quadrants(_means), Quadrants(_means), clean, triggered)
