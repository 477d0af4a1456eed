"""How images are prepared for networks of the hubs, and which form of one a file holds; nothing is ever fetched."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_files import IMAGENET, VIT, written

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.foreign import architecture_in
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.build import build, skeleton
from neural_polarizer.models.normalize import PROFILES, normalisation_named
from neural_polarizer.models.preprocessing import own_preprocessing
from toys import made

pytestmark = pytest.mark.usefixtures("no_network")


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
    with pytest.raises(BadInputError, match=r"pixels from 0 to 255, .* divide by 255: 0\.5,0\.4,0\.3/0\.2,0\.2,0\.2"):
        normalisation_named("127.5,102,76.5/51")
    assert normalisation_named("0,0.1,0.2/1,2,3") == ((0.0, 0.1, 0.2), (1.0, 2.0, 3.0))
    for wrong in ("", "0.5", "/", "0.5/0", "0.5/-1", "0.5/nan", "inf/1", "1,2/1", "a/b", "0.5/0.5/0.5"):
        with pytest.raises(BadInputError, match=r"unknown profile .*, or give MEAN/STD such as"):
            normalisation_named(wrong)


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


@pytest.mark.long
def test_a_resnet_with_the_other_stem_names_it(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    plain, small = "torchvision:resnet18", "torchvision:resnet18?stem=3"
    for mine, asked in ((plain, small), (small, plain)):
        state = {f"model.{name}": value for name, value in build(mine, 4).state_dict().items()}
        path = tmp_path / "m.pt"
        torch.save({"state_dict": state}, path)
        with pytest.raises(BadInputError, match=f"another form of this network: --arch '{re.escape(mine)}'$"):
            load_model(path, architecture=asked)
        with pytest.raises(BadInputError, match="the weights are not those of a torchvision:resnet34"):
            load_model(path, architecture=asked.replace("18", "34"))


def test_an_image_of_a_size_that_the_network_does_not_take_is_told(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    loaded = load_model(written(tmp_path, made(build(VIT, 5))), architecture=VIT)
    check_takes(loaded, (16, 16))
    with pytest.raises(BadInputError, match=r"cannot take images of 32x16 pixels \(.*\); give --size") as caught:
        check_takes(loaded, (32, 16))
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInputError, match="gives no 6 logits"):
        check_takes(replace(loaded, record=replace(loaded.record, num_classes=6)), (16, 16))
