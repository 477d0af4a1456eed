"""Networks of torchvision, timm and transformers: options, sizes, pre-processing, folders; nothing is ever fetched."""

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer.artifacts import KEY, LoadedModel, ModelRecord, check_takes, load_model, save_model
from neural_polarizer.data.parquet import write_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.foreign import architecture_in
from neural_polarizer.models import build as builder
from neural_polarizer.models.architecture import Architecture
from neural_polarizer.models.build import build, sizes_in, skeleton
from neural_polarizer.models.hub_folder import read_folder
from neural_polarizer.models.hugging_face import file_names
from neural_polarizer.models.normalize import PROFILES, Normalized, normalisation_named
from neural_polarizer.models.preprocessing import own_preprocessing
from neural_polarizer.rng import global_rng
from run_files import coloured, run, states_equal
from toys import made

VIT = "timm:vit_tiny_patch16_224?depth=2&embed_dim=24&img_size=16&patch_size=4"
IMAGENET = PROFILES["imagenet"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- names and options ---


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


def test_a_network_without_end_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224?depth=40&embed_dim=3"
    assert count(skeleton(name, 5)) > 0
    monkeypatch.setattr(builder, "MAX_CALLS", 2_000)
    with pytest.raises(BadInputError, match="would have far too many layers"):
        skeleton(name, 5)


def test_tables_that_no_file_holds_count_as_well(tmp_path: Path) -> None:
    """For 18 numbers in a file, a Swin would make itself masks and tables of indices.

    With windows of 65,536 tokens: four masks and four tables of 65,536 squared, six tables of 16,384 squared and two of
    4,096 squared, which are 36,003,905,536 numbers, beside its 38 million weights.
    """
    pytest.importorskip("timm")
    save_file({"head.fc.weight": torch.ones(2, 8), "head.fc.bias": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(BadInputError, match=r"they are 18 numbers, but a timm:swin_tiny.* of 2 classes has 36,0\d{2},"):
        load_model(tmp_path / "a", architecture="timm:swin_tiny_patch4_window7_224?img_size=2048&window_size=256")


@pytest.mark.parametrize(
    "name",
    ["torchvision:squeezenet1_0", "torchvision:regnet_y_400mf", "torchvision:googlenet", "timm:mobilenetv3_small_050"],
)
def test_every_kind_of_head_tells_the_number_of_classes(name: str) -> None:
    """SqueezeNet's is a convolution; the widths of a RegNet are computed while it is built."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    assert sizes_in(name, skeleton(name, 11).state_dict()) == (11, None)


# --- pre-processing ---


def test_the_libraries_say_how_images_are_prepared() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for name, (mean, std), size in (
        ("timm:resnet18", IMAGENET, None),
        ("timm:vit_tiny_patch16_224", half, (224, 224)),
        ("timm:vit_tiny_patch16_224?img_size=32&patch_size=4", half, (32, 32)),
        ("timm:vit_tiny_patch16_224?resize=224", half, None),
        ("timm:swin_tiny_patch4_window7_224?img_size=56", IMAGENET, (56, 56)),
        ("torchvision:mobilenet_v3_small", IMAGENET, None),
        ("torchvision:efficientnet_v2_l", half, None),
        ("torchvision:vit_b_16", IMAGENET, (224, 224)),
        ("torchvision:vit_b_16?image_size=32", IMAGENET, (32, 32)),
        ("torchvision:vit_b_16?resize=224", IMAGENET, None),
    ):
        own = own_preprocessing(name)
        assert own is not None
        assert (own.mean, own.std, own.image_size) == (mean, std, size), name
    assert own_preprocessing("preactresnet18") is None
    assert own_preprocessing("vgg19_bn") is None


def test_a_normalisation_can_be_given_in_numbers() -> None:
    assert normalisation_named("cifar10") == PROFILES["cifar10"]
    assert normalisation_named("0.5/0.25") == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert normalisation_named("0,0.1,0.2/1,2,3") == ((0.0, 0.1, 0.2), (1.0, 2.0, 3.0))
    for wrong in ("", "0.5", "/", "0.5/0", "0.5/-1", "0.5/nan", "inf/1", "1,2/1", "a/b", "0.5/0.5/0.5"):
        with pytest.raises(BadInputError, match=r"unknown profile .*, or give MEAN/STD such as"):
            normalisation_named(wrong)


def written(folder: Path, network: nn.Module) -> Path:
    path = folder / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


def inner(loaded: LoadedModel) -> nn.Module:
    assert isinstance(loaded.model, Normalized)
    return loaded.model.network


def test_what_was_assumed_of_the_images_is_told(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    path = written(tmp_path, made(build(VIT, 5)))
    loaded = load_model(path, architecture=VIT)
    assert (loaded.record.mean, loaded.record.std, loaded.record.image_size) == ((0.5,) * 3, (0.5,) * 3, (16, 16))
    assert loaded.findings == (
        "no normalisation was given, so that of timm's configuration of vit_tiny_patch16_224 was taken "
        "(mean 0.5 0.5 0.5, std 0.5 0.5 0.5); --profile says another",
        "without --size, images become 16x16 pixels, whole and by bilinear interpolation (timm's configuration of "
        "vit_tiny_patch16_224 resizes by bicubic interpolation and cuts off the border)",
    )
    given = load_model(path, architecture=VIT, profile="0.1,0.2,0.3/1,2,3")
    assert (given.record.mean, given.record.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert [finding.partition(",")[0] for finding in given.findings] == ["without --size"]
    save_model(tmp_path / "model.safetensors", given.model, given.record)
    ours = load_model(tmp_path / "model.safetensors")
    assert (ours.record, ours.findings) == (given.record, ())
    assert load_model(tmp_path / "model.safetensors", architecture=VIT.replace("depth=2&", "") + "&depth=2").record


def test_a_network_without_a_configuration_gets_its_pixels_as_they_are(tmp_path: Path) -> None:
    loaded = load_model(written(tmp_path, made(build("preactresnet18", 3, width=2))), architecture="preactresnet18")
    assert (loaded.record.mean, loaded.record.std, loaded.record.image_size) == (*PROFILES["none"], None)
    assert loaded.findings == (
        "no normalisation was given, so pixels in [0, 1] enter the network as they are; --profile says another",
    )


# --- another form of the same network ---


def test_the_tensors_of_another_form_of_the_network_name_it(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    path = written(tmp_path, build(VIT, 5))
    with pytest.raises(BadInputError) as caught:
        load_model(path, architecture="timm:vit_tiny_patch16_224")
    assert str(caught.value).endswith(f"of another form of this network: --arch '{VIT}'")
    assert load_model(path, architecture=VIT).record.num_classes == 5


def test_another_form_is_proposed_only_where_the_tensors_tell_it() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    plain = "torchvision:vit_b_16"
    wanted = skeleton(plain, 2).state_dict()
    assert (
        architecture_in(plain, wanted, skeleton(f"{plain}?image_size=32", 7).state_dict()) == f"{plain}?image_size=32"
    )
    assert architecture_in(plain, wanted, skeleton(plain, 7).state_dict()) is None
    assert architecture_in(plain, wanted, skeleton("torchvision:vit_b_32", 7).state_dict()) is None
    assert architecture_in(plain, wanted, {}) is None
    odd = {**wanted, "encoder.pos_embedding": torch.empty(1, 20, 768, device="meta")}
    assert architecture_in(plain, wanted, odd) is None
    huge = {**wanted, "encoder.pos_embedding": torch.empty(1, 1 + 400**2, 768, device="meta")}
    assert architecture_in(plain, wanted, huge) is None
    assert architecture_in("preactresnet18", {}, {}) is None


def test_an_image_of_a_size_that_the_network_does_not_take_is_told(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    loaded = load_model(written(tmp_path, made(build(VIT, 5))), architecture=VIT)
    check_takes(loaded, (16, 16))
    with pytest.raises(BadInputError, match=r"cannot take images of 32x16 pixels \(.*\); give --size") as caught:
        check_takes(loaded, (32, 16))
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInputError, match="gives no 6 logits"):
        check_takes(replace(loaded, record=replace(loaded.record, num_classes=6)), (16, 16))


# --- folders of transformers ---


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="extra hf is not installed")


SMALL_VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}
SMALL: dict[str, dict[str, Any]] = {
    "ViT": SMALL_VIT,
    "DeiT": SMALL_VIT,
    "Swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": 16,
        "patch_size": 2,
        "window_size": 4,
    },
    "ConvNext": {"hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2},
    "ResNet": {"embedding_size": 4, "hidden_sizes": [6, 8], "depths": [1, 2], "layer_type": "basic"},
    "Segformer": {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "sr_ratios": [1] * 4},
}
PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def classifier(transformers: Any, kind: str, **more: Any) -> Any:
    labels = {index: f"kind {index}" for index in range(3)}
    config = getattr(transformers, f"{kind}Config")(**{**SMALL[kind], "num_labels": 3, "id2label": labels, **more})
    return made(getattr(transformers, f"{kind}ForImageClassification")(config))


@contextmanager
def no_bars() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def stored(folder: Path, model: Any, **processor: Any) -> Path:
    """What ``save_pretrained`` writes."""
    folder.mkdir(exist_ok=True)
    with no_bars():
        model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(PIXELS)


PLAIN = {"do_normalize": False, "do_resize": False}


@pytest.mark.parametrize("kind", SMALL)
def test_a_folder_gives_the_logits_of_its_own_library(tmp_path: Path, transformers: Any, kind: str) -> None:
    model = classifier(transformers, kind)
    folder = stored(tmp_path / "hub", model, **PLAIN)
    loaded = load_model(folder)
    with torch.no_grad():
        assert torch.equal(logits(loaded.model), model(pixel_values=PIXELS).logits)
    assert loaded.record.architecture == f"transformers:{kind}ForImageClassification"
    assert (loaded.record.num_classes, loaded.record.classes) == (3, ("kind 0", "kind 1", "kind 2"))
    assert torch.equal(logits(load_model(f"transformers:{folder}").model), logits(loaded.model))


def test_weights_of_an_older_folder_are_read_without_unpickling(tmp_path: Path, transformers: Any) -> None:
    model = classifier(transformers, "ViT")
    folder = stored(tmp_path, model, **PLAIN)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    loaded = load_model(changed(folder, id2label={"0": "only"}))
    assert loaded.path.name == "pytorch_model.bin"
    assert states_equal(inner(loaded).state_dict(), model.state_dict())
    assert (loaded.record.num_classes, loaded.record.classes) == (3, None)  # one name for three logits is none


@pytest.mark.parametrize("kind", ["ViT", "Swin", "ResNet"])
def test_our_file_loads_again_and_keeps_the_names_of_the_folder(tmp_path: Path, transformers: Any, kind: str) -> None:
    """ViT and Swin have other names in memory than in files since version 5."""
    folder = stored(tmp_path / "hub", classifier(transformers, kind), **PLAIN)
    loaded = load_model(folder)
    ours = tmp_path / "ours.safetensors"
    save_model(ours, loaded.model, loaded.record)
    assert states_equal(load_file(ours), load_file(folder / "model.safetensors"))
    again = load_model(ours)
    assert again.record == loaded.record
    assert torch.equal(logits(again.model), logits(loaded.model))


def test_our_file_in_the_folder_is_loaded_by_the_library_itself(tmp_path: Path, transformers: Any) -> None:
    folder = stored(tmp_path / "hub", classifier(transformers, "ViT"), **PLAIN)
    loaded = load_model(folder)
    with torch.no_grad():
        inner(loaded).get_parameter("classifier.bias").add_(1.0)
    save_model(folder / "model.safetensors", loaded.model, loaded.record)
    with no_bars():
        theirs = transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        assert torch.equal(theirs(pixel_values=PIXELS).logits, logits(loaded.model))


@pytest.mark.parametrize(
    ("processor", "settings"),
    [
        (
            "ViTImageProcessor",
            {"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3},
        ),
        ("ViTImageProcessor", {"size": {"height": 16, "width": 16}, "do_normalize": False}),
        ("ViTImageProcessor", {"size": {"height": 16, "width": 16}, "do_rescale": False}),
        ("ViTImageProcessor", {"size": {"height": 16, "width": 16}, "rescale_factor": 1 / 127.5}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 16}, "crop_pct": 1.0}),
        ("EfficientNetImageProcessor", {"size": {"height": 16, "width": 16}, "rescale_offset": True}),
    ],
)
def test_the_normalisation_is_that_of_the_librarys_processor(
    tmp_path: Path, transformers: Any, processor: str, settings: dict[str, Any]
) -> None:
    pytest.importorskip("torchvision", reason="the processors of transformers need torchvision")
    made_by = getattr(transformers, processor)(**settings)
    folder = stored(tmp_path, classifier(transformers, "ViT"))
    made_by.save_pretrained(folder)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = made_by(images=list(images), return_tensors="pt")["pixel_values"]
    own = read_folder(folder).preprocessing
    assert own is not None
    assert own.image_size == (16, 16)
    assert_close(Normalized(nn.Identity(), own.mean, own.std)(images / 255), expected)


@pytest.mark.parametrize(
    ("processor", "size", "remark"),
    [
        ({"size": 20, "resample": 2}, (20, 20), "bilinear interpolation"),
        ({"size": {"height": 20, "width": 24}, "resample": 3}, (20, 24), "resizes by bicubic interpolation)"),
        ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 18}, (18, 18), "cuts off the border)"),
        ({"size": {"shortest_edge": 20}, "do_center_crop": False, "crop_size": 18}, (20, 20), "bilinear interpolation"),
        ({"size": 20, "do_resize": False}, None, "--profile says another"),
    ],
)
def test_the_image_size_is_that_of_the_folder(
    tmp_path: Path, transformers: Any, processor: dict[str, Any], size: tuple[int, int] | None, remark: str
) -> None:
    more = {"image_mean": [0.5] * 3, "image_std": 0.25}
    loaded = load_model(stored(tmp_path, classifier(transformers, "ResNet"), **processor, **more))
    assert (loaded.record.image_size, loaded.record.std) == (size, (0.25, 0.25, 0.25))
    assert loaded.findings[-1].endswith(remark)


def test_a_folder_without_a_processor_says_so(tmp_path: Path, transformers: Any) -> None:
    loaded = load_model(stored(tmp_path, classifier(transformers, "ResNet")))
    assert "pixels in [0, 1] enter the network as they are" in loaded.findings[0]
    assert load_model(tmp_path, profile="imagenet").record.mean == IMAGENET[0]
    assert load_model(tmp_path, profile="imagenet").findings == ()


def changed(folder: Path, name: str = "config.json", **entries: Any) -> Path:
    path = folder / name
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, **entries}))
    return folder


def too_long(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["A"], "x": "y" * (9 << 20)}))


REFUSED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "code of its own": ("asks for code of its own", lambda f: changed(f, auto_map={"AutoConfig": "evil--x.Y"})),
    "another task": ("names no image classifier", lambda f: changed(f, architectures=["ViTModel"])),
    "several classes": ("names no image classifier", lambda f: changed(f, architectures=["A", "B"])),
    "unknown class": (
        "has no image classifier 'vit', 'Os",
        lambda f: changed(f, architectures=["OsForImageClassification"]),
    ),
    "unknown type": ("has no image classifier 'evil'", lambda f: changed(f, model_type="evil")),
    "a path as type": ("has no 'model_type'", lambda f: changed(f, model_type="../../evil")),
    "timm": ("is a network of timm", lambda f: changed(f, model_type="timm_wrapper")),
    "nested": (
        "has a configuration within its configuration",
        lambda f: changed(f, model_type="clip", architectures=["CLIPForImageClassification"]),
    ),
    "tokens": (
        "does not take an image as it is",
        lambda f: changed(f, model_type="imagegpt", architectures=["ImageGPTForImageClassification"]),
    ),
    "huge": ("entry 'hidden_size' is no number or word of sensible size", lambda f: changed(f, hidden_size=10**6)),
    "endless": ("would have far too many layers", lambda f: changed(f, num_hidden_layers=99_999)),
    "many numbers": (
        "the weights do not fit this architecture",
        lambda f: changed(f, intermediate_size=99_999, hidden_size=9_996),
    ),
    "wrong kind of value": ("transformers cannot build it", lambda f: changed(f, hidden_size="many")),
    "impossible": ("transformers cannot build it", lambda f: changed(f, patch_size=0)),
    "grey": ("takes images of other than 3 channels", lambda f: changed(f, num_channels=1)),
    "not JSON": ("cannot be read .no strict JSON", lambda f: (f / "config.json").write_text("{")),
    "NaN": ("NaN is not a number", lambda f: (f / "config.json").write_text('{"a": NaN}')),
    "twice": ("a name appears twice", lambda f: (f / "config.json").write_text('{"a": 1, "a": 2}')),
    "a list": ("no JSON object", lambda f: (f / "config.json").write_text("[]")),
    "too long": ("larger than 8 MiB", too_long),
    "no weights": ("holds none of model.safetensors, pytorch_model.bin", lambda f: (f / "model.safetensors").unlink()),
    "other weights": (
        "the weights do not fit this architecture: ",
        lambda f: save_file({"classifier.weight": torch.ones(3, 12)}, f / "model.safetensors"),
    ),
    "swapped channels": (
        "swaps the channels",
        lambda f: changed(f, "preprocessor_config.json", do_flip_channel_order=True),
    ),
    "no deviation": (
        "mean, std, size or scale cannot be used",
        lambda f: changed(f, "preprocessor_config.json", image_std=[0, 1, 1]),
    ),
    "no size": (
        "mean, std, size or scale cannot be used",
        lambda f: changed(f, "preprocessor_config.json", size={"longest_edge": 3}),
    ),
}


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory, transformers: Any) -> Path:
    return stored(
        tmp_path_factory.mktemp("vit"), classifier(transformers, "ViT"), image_mean=0.5, image_std=0.5, size=16
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, vit_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in vit_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    reason, spoil = REFUSED[name]
    spoil(tmp_path)
    monkeypatch.setattr(builder, "MAX_CALLS", 5_000)
    with pytest.raises(BadInputError, match=reason) as caught:
        load_model(f"transformers:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_words_that_could_fetch_code_never_reach_the_library(
    tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    start = transformers.ViTConfig.__init__

    def watched(self: Any, *args: Any, **settings: Any) -> None:
        seen.append(settings)
        start(self, *args, **settings)

    folder = stored(tmp_path, classifier(transformers, "ViT"), **PLAIN)
    names = ("attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config")
    changed(folder, **dict.fromkeys(names, "kernels-community/evil"), use_kernels=True, name_or_path="evil/evil")
    monkeypatch.setattr(transformers.ViTConfig, "__init__", watched)
    loaded = load_model(folder)
    assert seen
    assert "evil" not in repr(seen)
    assert loaded.record.num_classes == 3


def test_a_hostile_record_asks_in_vain(tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "MAX_CALLS", 5_000)
    loaded = load_model(stored(tmp_path / "hub", classifier(transformers, "ViT"), **PLAIN))
    path = tmp_path / "ours.safetensors"
    save_model(path, loaded.model, loaded.record)
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[KEY])
    for config, reason in (
        ({"auto_map": {}}, "asks for code of its own"),
        ({"num_hidden_layers": 99_999}, "far too many layers"),
        ({"model_type": "timm_wrapper"}, "is a network of timm"),
    ):
        text = json.dumps({**json.loads(record["config"]), **config})
        save_file(load_file(path), path, {KEY: json.dumps({**record, "config": text})})
        with pytest.raises(BadInputError, match=reason):
            load_model(path)
    save_file(load_file(path), path, {KEY: json.dumps({**record, "config": None})})
    with pytest.raises(BadInputError, match=r"give the folder with its config\.json instead"):
        load_model(path)


def test_a_folder_of_ours_counts_before_what_transformers_left_in_it(tmp_path: Path, transformers: Any) -> None:
    folder = stored(tmp_path, classifier(transformers, "ViT"), **PLAIN)
    record = ModelRecord(architecture="preactresnet18", num_classes=3, width=2)
    save_model(folder / "purified.safetensors", made(build("preactresnet18", 3, width=2)), record)
    assert load_model(folder).record == record


def test_the_names_in_files_are_all_different(transformers: Any) -> None:
    for kind in SMALL:
        names = file_names(classifier(transformers, kind))
        assert len(set(names.values())) == len(names)


def test_without_the_library_its_extra_is_named(
    tmp_path: Path, vit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInputError, match=r"transformers is not installed: pip install 'neural-polarizer\[hf\]'"):
        load_model(vit_folder)


def purified(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: object) -> None:
    data = out.with_suffix(".parquet")
    write_images(data, coloured(12, 0, (24, 20)))
    words = ("purify", folder, "--clean", data, "--out", out, "--epochs", 1, "--device", "cpu", "--precision", "fp32")
    done = run(capsys, *words, *more)
    assert done.code == 0, done.err
    assert "images become 16x16 pixels" in done.out.replace("\n", " ")


PREPARED = {"image_mean": 0.5, "image_std": 0.25, "size": 16}


def test_a_repaired_model_goes_back_into_its_folder(
    tmp_path: Path, transformers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored(tmp_path / "hub", classifier(transformers, "ViT"), **PREPARED)
    before = logits(load_model(folder).model)
    purified(folder, tmp_path / "out", capsys, "--method", "ft")
    loaded = load_model(tmp_path / "out")
    assert loaded.record.image_size == (16, 16)
    (folder / "model.safetensors").write_bytes(loaded.path.read_bytes())
    with no_bars():
        theirs = transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        assert_close(logits(loaded.model), theirs(pixel_values=(PIXELS - 0.5) / 0.25).logits)
    assert not torch.allclose(logits(loaded.model), before)


def test_a_layer_in_a_model_of_transformers_is_kept(
    tmp_path: Path, transformers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored(tmp_path / "hub", classifier(transformers, "ResNet"), **PREPARED)
    site = "after:resnet.encoder.stages.1.layers.0"
    purified(folder, tmp_path / "out", capsys, "--site", site)
    loaded, original = load_model(tmp_path / "out"), load_file(folder / "model.safetensors")
    assert loaded.record.site == site
    kept = {name: value for name, value in load_file(loaded.path).items() if not name.startswith("polarizer.")}
    assert states_equal(kept, original)
    assert len(load_file(loaded.path)) > len(original)
