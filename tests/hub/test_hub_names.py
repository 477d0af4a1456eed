"""Names, options and sizes of the networks of torchvision and timm, and of the paper; nothing is ever fetched."""

from pathlib import Path

import pytest
import torch
from hub_files import VIT
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models import build as builder
from neural_polarizer.models.architecture import Architecture
from neural_polarizer.models.build import build, sizes_in, skeleton
from neural_polarizer.rng import global_rng
from run_files import states_equal
from toys import made

pytestmark = pytest.mark.usefixtures("no_network")


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_an_architecture_is_read_and_written_with_its_options_in_order() -> None:
    asked = Architecture.parse("timm:vit_tiny_patch16_224?patch_size=4&img_size=32")
    assert asked == Architecture("timm", "vit_tiny_patch16_224", (("img_size", 32), ("patch_size", 4)))
    assert str(asked) == "timm:vit_tiny_patch16_224?img_size=32&patch_size=4"
    for plain in ("preactresnet18", "torchvision:resnet18", "timm:resnet18.a1_in1k"):
        assert str(Architecture.parse(plain)) == plain


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("timm:x?", ""),
        ("timm:x?img_size", "img_size"),
        ("timm:x?img_size=", "img_size="),
        ("timm:x?img_size=0", "img_size=0"),
        ("timm:x?img_size=-1", "img_size=-1"),
        ("timm:x?img_size=2049", "img_size=2049"),
        ("timm:x?img_size=1e3", "img_size=1e3"),
        ("timm:x?img_size=³", "img_size=³"),
        ("timm:x?img_size=1&img_size=2", "img_size=2"),
        ("timm:x?pretrained=1", "pretrained=1"),
        ("timm:x?image_size=1", "image_size=1"),
        ("torchvision:x?img_size=1", "img_size=1"),
        ("preactresnet18?resize=8", "resize=8"),
    ],
)
def test_what_is_no_option_is_refused(text: str, part: str) -> None:
    with pytest.raises(BadInputError, match="is no option; ") as caught:
        Architecture.parse(text)
    assert repr(part) in str(caught.value)


def test_options_shape_a_network_of_timm() -> None:
    pytest.importorskip("timm")
    network = build(VIT, 5)
    assert network.get_parameter("pos_embed").shape == (1, 17, 24)
    assert network.eval()(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    assert "blocks.1.norm1.weight" in network.state_dict()
    assert "blocks.2.norm1.weight" not in network.state_dict()
    with pytest.raises(
        BadInputError, match=r"'timm:resnet18\?img_size=32': cannot be built with these options \(.*img"
    ):
        build("timm:resnet18?img_size=32", 5)


def test_a_name_with_a_tag_is_the_same_network_without_its_weights() -> None:
    pytest.importorskip("timm")
    plain, tagged = skeleton("timm:resnet18", 7), skeleton("timm:resnet18.a1_in1k", 7)
    assert plain.state_dict().keys() == tagged.state_dict().keys()


def test_options_shape_a_network_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    assert skeleton("torchvision:vit_b_16?image_size=32", 5).get_parameter("encoder.pos_embedding").shape == (1, 5, 768)
    small, usual = skeleton("torchvision:resnet18?stem=3", 5), skeleton("torchvision:resnet18", 5)
    assert small.state_dict().keys() == usual.state_dict().keys()
    assert small.get_parameter("conv1.weight").shape == (64, 3, 3, 3)
    shapes = []
    handle = small.get_submodule("layer1").register_forward_hook(lambda _m, _x, out: shapes.append(tuple(out.shape)))
    with torch.device("meta"):
        small(torch.rand(1, 3, 32, 32))
    handle.remove()
    assert shapes == [(1, 64, 32, 32)]
    for wrong in ("torchvision:resnet18?stem=5", "torchvision:mobilenet_v2?stem=3"):
        with pytest.raises(BadInputError, match="stem=3 is the only other stem, and only ResNets have it"):
            skeleton(wrong, 5)
    with pytest.raises(BadInputError, match="torchvision has no image classifier 'maskrcnn_resnet50_fpn'"):
        skeleton("torchvision:maskrcnn_resnet50_fpn", 5)


def test_resize_stands_in_front_of_the_network() -> None:
    torchvision = pytest.importorskip("torchvision")
    network = made(build("torchvision:squeezenet1_1?resize=40", 5))
    assert all(name.startswith("1.") for name in network.state_dict())
    for size in (24, 64):  # larger, and smaller, where pixels are averaged
        images = torch.rand(2, 3, size, size)
        resized = torchvision.transforms.Resize((40, 40), antialias=True)(images)
        assert_close(network(images), network[1](resized))  # type: ignore[index]


def test_the_papers_networks_have_the_sizes_of_the_specification() -> None:
    """Spec section 5."""
    pytest.importorskip("torchvision")
    for name, parameters in (("vgg19", 139_611_210), ("densenet161", 26_494_090), ("inception_v3", 21_806_058)):
        assert count(skeleton(name, 10)) == parameters


def test_inception_keeps_the_resolution_of_small_images() -> None:
    torchvision = pytest.importorskip("torchvision")
    network, maps = skeleton("inception_v3", 10).eval(), dict[str, tuple[int, ...]]()
    layers = (
        "Conv2d_1a_3x3",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "Mixed_5d",
        "Mixed_6a",
        "Mixed_6e",
        "Mixed_7a",
        "Mixed_7c",
    )
    for name in layers:
        network.get_submodule(name).register_forward_hook(
            lambda _m, _x, out, name=name: maps.__setitem__(name, tuple(out.shape[1:]))
        )
    with torch.device("meta"):
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
        usual = torchvision.models.inception_v3(weights=None, num_classes=10, aux_logits=False, init_weights=True)
    assert maps == {
        "Conv2d_1a_3x3": (32, 32, 32),
        "Conv2d_3b_1x1": (80, 32, 32),
        "Conv2d_4a_3x3": (192, 30, 30),
        "Mixed_5d": (288, 30, 30),
        "Mixed_6a": (768, 14, 14),
        "Mixed_6e": (768, 14, 14),
        "Mixed_7a": (1280, 6, 6),
        "Mixed_7c": (2048, 6, 6),
    }
    assert not network.transform_input
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert shapes == {name: value.shape for name, value in usual.state_dict().items()}


def test_inceptions_weights_are_torchvisions_draws_from_the_seed() -> None:
    torchvision = pytest.importorskip("torchvision")
    with global_rng(3, "model"):
        ours = build("inception_v3", 4).state_dict()
    with global_rng(3, "model"):
        theirs = torchvision.models.inception_v3(weights=None, num_classes=4, aux_logits=False, init_weights=True)
    assert states_equal(ours, theirs.state_dict())


@pytest.mark.long
def test_a_network_without_end_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224?depth=40&embed_dim=3"
    assert count(skeleton(name, 5)) > 0
    monkeypatch.setattr(builder, "MAX_CALLS", 2_000)
    with pytest.raises(BadInputError, match="would have far too many layers"):
        skeleton(name, 5)


@pytest.mark.long
def test_tables_that_no_file_holds_count_as_well(tmp_path: Path) -> None:
    """For 18 numbers in a file, a Swin would make itself masks and tables of indices.

    With windows of 65,536 tokens: four masks and four tables of 65,536 squared, six tables of 16,384 squared and two of
    4,096 squared, which are 36,003,905,536 numbers, beside its 38 million weights.
    """
    pytest.importorskip("timm")
    save_file({"head.fc.weight": torch.ones(2, 8), "head.fc.bias": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(BadInputError, match=r"they are 18 numbers, but a timm:swin_tiny.* of 2 classes has 36,0\d{2},"):
        load_model(tmp_path / "a", architecture="timm:swin_tiny_patch4_window7_224?img_size=2048&window_size=256")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["torchvision:squeezenet1_0", "torchvision:regnet_y_400mf", "torchvision:googlenet", "timm:mobilenetv3_small_050"],
)
def test_every_kind_of_head_tells_the_number_of_classes(name: str) -> None:
    """SqueezeNet's is a convolution; the widths of a RegNet are computed while it is built."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    assert sizes_in(name, skeleton(name, 11).state_dict()) == (11, None)
