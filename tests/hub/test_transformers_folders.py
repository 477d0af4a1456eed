"""Image classifiers in folders of transformers: read, repaired, written back; nothing is ever fetched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hub_files import IMAGENET, PIXELS, PLAIN, SMALL, changed, classifier, inner, logits, no_bars, stored
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from neural_polarizer.data.parquet import write_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.build import build
from neural_polarizer.models.hub_folder import read_folder
from neural_polarizer.models.hugging_face import file_names
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.runs.verify import Given, verify_run
from neural_polarizer.runs.verify_checks import Check
from run_files import coloured, run, states_equal
from toys import made
from verify_cases import MEASURING, by_name

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.long
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


def test_files_as_other_programs_leave_them(tmp_path: Path, transformers: Any) -> None:
    folder = stored(tmp_path, classifier(transformers, "ViT"), **PLAIN)
    usual = load_model(folder)
    config, processor = folder / "config.json", folder / "preprocessor_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())  # as editors on Windows do
    (folder / "processor_config.json").write_text(f'{{"image_processor": {processor.read_text()}}}')
    processor.unlink()
    loaded = load_model(folder)
    assert loaded.record == usual.record
    assert any("of its processor_config.json was taken" in each for each in loaded.findings)
    with pytest.raises(BadInputError, match=r"name it with --arch .*, or give its folder, whose config\.json does"):
        load_model(folder / "model.safetensors")


@pytest.mark.long
def test_folders_of_a_training_are_proposed_and_those_of_other_tasks_told(tmp_path: Path, transformers: Any) -> None:
    folder = stored(tmp_path / "checkpoint-5", classifier(transformers, "ViT"), **PLAIN)
    with pytest.raises(BadInputError, match=r"name the checkpoint itself, as \S*checkpoint-5$"):
        load_model(tmp_path)
    changed(folder, id2label=None, label2id={"zebra": 1, "ant": 0, "moose": "2"})
    assert load_model(folder).record.classes == ("ant", "zebra", "moose")
    changed(folder, architectures=["DetrForObjectDetection"])
    with pytest.raises(BadInputError, match=r"config\.json names no image classifier \(architectures: \.\.\.ForIm"):
        load_model(folder)


def test_weights_of_an_older_folder_are_read_without_unpickling(tmp_path: Path, transformers: Any) -> None:
    model = classifier(transformers, "ViT")
    folder = stored(tmp_path, model, **PLAIN)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    loaded = load_model(changed(folder, id2label={"0": "only"}))
    assert loaded.path.name == "pytorch_model.bin"
    assert states_equal(inner(loaded).state_dict(), model.state_dict())
    assert (loaded.record.num_classes, loaded.record.classes) == (3, None)  # one name for three logits is none


def in_several_files(folder: Path, model: Any) -> Path:
    (folder / "model.safetensors").unlink()
    with no_bars():
        model.save_pretrained(folder, max_shard_size="4KB")
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize("pickled", [False, True])
def test_weights_in_several_files_are_read(tmp_path: Path, transformers: Any, pickled: bool) -> None:
    model = classifier(transformers, "ViT")
    folder = stored(tmp_path, model, **PLAIN)
    index, files = in_several_files(folder, model), sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 1
    if pickled:
        for file in files:
            torch.save(load_file(file), file.with_suffix(".bin"))
            file.unlink()
        index = index.rename(folder / "pytorch_model.bin.index.json")
        index.write_text(index.read_text().replace(".safetensors", ".bin"))
    loaded = load_model(folder)
    assert loaded.path == index
    assert states_equal(inner(loaded).state_dict(), model.state_dict())


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


@pytest.mark.parametrize("labels", [None, {}])
def test_a_folder_without_labels_has_no_names_of_classes(
    tmp_path: Path, transformers: Any, labels: dict[str, str] | None
) -> None:
    folder = stored(tmp_path, classifier(transformers, "ResNet"), **PLAIN)
    changed(folder, id2label=labels, label2id=labels)
    assert read_folder(folder).classes is None


def test_a_folder_without_a_processor_says_so(tmp_path: Path, transformers: Any) -> None:
    loaded = load_model(stored(tmp_path, classifier(transformers, "ResNet")))
    assert "pixels in [0, 1] enter the network as they are" in loaded.findings[0]
    assert load_model(tmp_path, profile="imagenet").record.mean == IMAGENET[0]
    assert load_model(tmp_path, profile="imagenet").findings == ()


def test_a_folder_of_ours_counts_before_what_transformers_left_in_it(tmp_path: Path, transformers: Any) -> None:
    folder = stored(tmp_path, classifier(transformers, "ViT"), **PLAIN)
    record = ModelRecord(architecture="preactresnet18", num_classes=3, width=2)
    save_model(folder / "purified.safetensors", made(build("preactresnet18", 3, width=2)), record)
    assert load_model(folder).record == record


def test_the_names_in_files_are_all_different(transformers: Any) -> None:
    for kind in SMALL:
        names = file_names(classifier(transformers, kind))
        assert len(set(names.values())) == len(names)


def purified(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: object) -> None:
    data = out.with_suffix(".parquet")
    write_images(data, coloured(12, 0, (24, 20)))
    words = (
        "purify",
        folder,
        "--clean",
        data,
        "--out",
        out,
        "--method",
        "npd",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--force",
    )
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


@pytest.mark.long
def test_a_run_on_a_model_in_several_files_is_verified(
    tmp_path: Path, transformers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier(transformers, "ViT")
    folder = stored(tmp_path / "hub", model, **PREPARED)
    index = in_several_files(folder, model)
    purified(folder, tmp_path / "out", capsys, "--method", "ft")

    def checked() -> Check:
        return by_name(verify_run(tmp_path / "out", Given(), MEASURING))["original model"]

    assert checked().holds is True
    one = max(folder.glob("model-*.safetensors"))
    before = one.read_bytes()
    one.write_bytes(before[:-1] + b"\7")
    assert (checked().holds, checked().remark) == (False, f"{index} is not the file that was purified")
    one.unlink()
    assert (checked().holds, checked().remark) == (None, f"{index}: lacks its files {one.name}; get them, too")


@pytest.mark.long
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
