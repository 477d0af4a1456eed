"""``purify`` and ``evaluate`` as users call them, with every kind of data they may hand in."""

import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import neural_polarizer
from neural_polarizer import NPD, BadInputError, BadNets, ImageSet, Metrics, Purified, evaluate, purify
from neural_polarizer.data.convert import as_image_set
from neural_polarizer.data.parquet import write_images
from neural_polarizer.defenses.npd.presets import VARIANTS
from toys import assert_same, hooks, snapshot, tiny_images, tiny_model

FAST: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "fp32", "device": "cpu", "force": True}


class Pairs(Dataset[tuple[Any, Any]]):
    """A data set in the plainest sense: ``len`` and ``[i]``."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.pairs[index]


@dataclass
class Sample:
    """A sample of one's own."""

    image: Any
    label: int


CLEAN = tiny_images(16)
FLOATS = CLEAN.images.float() / 255
PICTURES = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in CLEAN.images]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


KINDS: dict[str, Callable[[], Any]] = {
    "ImageSet": lambda: CLEAN,
    "TensorDataset of uint8": lambda: TensorDataset(CLEAN.images, CLEAN.labels),
    "TensorDataset of floats": lambda: TensorDataset(FLOATS, CLEAN.labels),
    "Dataset of tensors and ints": lambda: Pairs(list(zip(CLEAN.images, CLEAN.labels.tolist(), strict=True))),
    "Dataset of pictures": lambda: Pairs(list(zip(PICTURES, CLEAN.labels.tolist(), strict=True))),
    "Dataset of arrays": lambda: Pairs(list(zip(map(np.asarray, PICTURES), CLEAN.labels.numpy(), strict=True))),
    "DataLoader of uint8": lambda: DataLoader(TensorDataset(CLEAN.images, CLEAN.labels), batch_size=5),
    "DataLoader of floats": lambda: DataLoader(TensorDataset(FLOATS, CLEAN.labels), batch_size=5),
    "DataLoader of half": lambda: DataLoader(TensorDataset(FLOATS.double(), CLEAN.labels), batch_size=16),
    "list of pairs": lambda: list(zip(CLEAN.images, CLEAN.labels, strict=True)),
    "dicts as of Hugging Face": lambda: [
        {"image": p, "label": y} for p, y in zip(PICTURES, CLEAN.labels.tolist(), strict=True)
    ],
    "dicts of encoded images": lambda: [
        {"img": {"bytes": _png(p), "path": None}, "fine_label": y}
        for p, y in zip(PICTURES, CLEAN.labels.tolist(), strict=True)
    ],
    "batches of dicts": lambda: [
        {"pixel_values": FLOATS[i : i + 5], "labels": CLEAN.labels[i : i + 5]} for i in (0, 5, 10, 15)
    ],
    "float arrays, channels first": lambda: list(zip(FLOATS.numpy(), CLEAN.labels.numpy(), strict=True)),
    "float arrays, channels last": lambda: list(zip(FLOATS.permute(0, 2, 3, 1).numpy(), CLEAN.labels, strict=True)),
    "tensors, channels last": lambda: list(zip(CLEAN.images.permute(0, 2, 3, 1), CLEAN.labels, strict=True)),
    "RGBA pictures": lambda: [(p.convert("RGBA"), y) for p, y in zip(PICTURES, CLEAN.labels.tolist(), strict=True)],
    "one-hot labels": lambda: TensorDataset(CLEAN.images, torch.eye(4)[CLEAN.labels]),
    "one-hot labels in batches": lambda: DataLoader(
        TensorDataset(CLEAN.images, torch.eye(4)[CLEAN.labels]), batch_size=5
    ),
    "labels as numbers in text": lambda: [(p, str(y)) for p, y in zip(PICTURES, CLEAN.labels.tolist(), strict=True)],
    "whole float labels": lambda: TensorDataset(CLEAN.images, CLEAN.labels.float()),
    "labels as columns": lambda: TensorDataset(CLEAN.images, CLEAN.labels[:, None]),
    "images and labels": lambda: (CLEAN.images, CLEAN.labels),
    "arrays of images and labels": lambda: [CLEAN.images.permute(0, 2, 3, 1).numpy(), CLEAN.labels.numpy()],
    "pictures and labels": lambda: (PICTURES, CLEAN.labels.tolist()),
    "lists of images and of labels": lambda: [list(CLEAN.images), list(CLEAN.labels)],
    "a dictionary of images and labels": lambda: {"image": FLOATS, "label": CLEAN.labels},
    "dataclasses": lambda: [Sample(p, y) for p, y in zip(PICTURES, CLEAN.labels.tolist(), strict=True)],
    "arrays of the other byte order": lambda: list(zip(FLOATS.numpy().astype(">f4"), CLEAN.labels, strict=True)),
    "sparse": lambda: [(FLOATS.to_sparse(), CLEAN.labels.to_sparse())],
    "generator of pairs": lambda: iter(list(zip(FLOATS, CLEAN.labels, strict=True))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_images(kind: str) -> None:
    found = as_image_set(KINDS[kind]())
    assert found.sha256() == CLEAN.sha256()
    assert found.num_classes == 4


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ImageSet", "Dataset of pictures", "DataLoader of uint8", "DataLoader of floats"])
def test_purify_takes_every_kind_of_data_and_gives_the_same_model(kind: str) -> None:
    expected = NPD(epochs=1, batch_size=8).repair(tiny_model(), CLEAN, seed=3)
    found = purify(tiny_model(), KINDS[kind](), "npd", seed=3, **FAST)
    assert isinstance(found, Purified)
    assert_same(found.model.state_dict(), expected.model.state_dict())


@pytest.mark.long
def test_evaluate_takes_every_kind_of_data() -> None:
    found = {kind: evaluate(tiny_model(), KINDS[kind](), device="cpu") for kind in KINDS}
    assert len(set(found.values())) == 1
    assert found["ImageSet"].n_test == 16


def test_evaluate_reads_triggered_sets_from_memory_and_file(tmp_path: Path) -> None:
    triggered = BadNets(target=2, size=2).triggered(CLEAN)
    path = tmp_path / "triggered.parquet"
    write_images(path, triggered.images, true_label=triggered.true_labels)
    found = [evaluate(tiny_model(), CLEAN, source, device="cpu") for source in (triggered, path, str(path))]
    assert found[0] == found[1] == found[2]
    assert isinstance(found[0], Metrics)
    assert found[0].n_triggered == 12
    assert found[0].asr is not None


def test_a_triggered_file_counts_as_the_test_set_and_the_model_do(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    test = ImageSet(CLEAN.images, CLEAN.labels, names)
    triggered = BadNets(target=2, size=2).triggered(test)
    turned = ImageSet(triggered.images.images, 3 - triggered.images.labels, names[::-1])
    write_images(tmp_path / "x.parquet", turned, true_label=3 - triggered.true_labels)
    found = evaluate(tiny_model(), test, tmp_path / "x.parquet", device="cpu")
    assert found == evaluate(tiny_model(), test, triggered, device="cpu")
    few = TensorDataset(CLEAN.images[CLEAN.labels < 2], CLEAN.labels[CLEAN.labels < 2])  # classes 2 and 3 are not there
    write_images(tmp_path / "x.parquet", triggered.images, true_label=triggered.true_labels)
    assert evaluate(tiny_model(), few, tmp_path / "x.parquet", device="cpu").asr == found.asr


@pytest.mark.parametrize("triggered", [CLEAN, TensorDataset(CLEAN.images, CLEAN.labels), 5])
def test_what_is_no_triggered_set_is_refused(triggered: Any) -> None:
    with pytest.raises(BadInputError, match=r"triggered: expected the path of .* got"):
        evaluate(tiny_model(), CLEAN, triggered, device="cpu")


def _pairs(image: Any, label: Any = 0) -> list[tuple[Any, Any]]:
    return [(image, label)]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (TensorDataset((FLOATS - 0.5) / 0.25, CLEAN.labels), r"lie in \[0, 1\].*neural_polarizer.Normalized\(model"),
        (
            DataLoader(TensorDataset(FLOATS * 255, CLEAN.labels)),
            r"DataLoader: float images must lie in \[0, 1\].*looks like 8-bit pixels; divide them by 255",
        ),
        (_pairs(torch.full((3, 2, 2), float("nan"))), r"must lie in \[0, 1\]"),
        (_pairs(torch.zeros(3, 2, 2, dtype=torch.int64)), "images must be uint8 or float, got torch.int64"),
        (_pairs(torch.rand(5)), r"images must be uint8 of shape \(n, c, h, w\)"),
        ([*_pairs(torch.rand(3, 2, 2)), *_pairs(torch.rand(3, 2, 2), -1)], r"labels must lie in 0..0, found -1..0"),
        ([*_pairs(torch.rand(3, 2, 2)), *_pairs(torch.rand(3, 4, 4))], r"images of several shapes .* resize them"),
        ([torch.rand(3, 2, 2)[0, 0, 0]], r"list: expected \(image, label\) pairs, got Tensor"),
        (_pairs(torch.rand(3, 2, 2), "cat"), "its labels are names \\(cat\\).*classes="),
        (_pairs(torch.rand(3, 2, 2), 1.7), "label 1.7 is no whole number"),
        (_pairs(torch.rand(3, 2, 2), torch.tensor([0.4, 0.6])), "is not one-hot"),
        (_pairs(torch.rand(3, 2, 2), [[1], [2, 3]]), "labels must be one class an image, got lists of several lengths"),
        (_pairs(torch.rand(3, 2, 2), None), "labels must be whole numbers, class names or one-hot rows, got NoneType"),
        (_pairs("a.png"), "images must be pictures, arrays or tensors, got str"),
        (_pairs(b"junk"), "list: cannot be used as an image"),
        (_pairs(Image.new("F", (2, 2))), "list: cannot be used as an image .*no agreed range"),
        (_pairs(np.zeros((2, 2, 3), dtype=np.uint16)), "images must be uint8 or float, got torch.uint16"),
        ([{"picture": 1, "label": 0}], r"samples have the keys \['picture', 'label'\], none of which is an image"),
        ([{"image": 1, "kind": 0}], r"samples have the keys \['image', 'kind'\], none of which is a label"),
        ([5], r"expected \(image, label\) pairs, got int"),
        ([(1, 2, 3)], r"pairs, got tuple of 3 parts; give two of them, as \[\(item\[0\], item\[1\]\) for"),
        ([], "list: the data set is empty; a generator or zip gives its images only once"),
        (_pairs(torch.rand(3, 2, 2, device="meta")), "images must be uint8 or float, got Tensors of torch.float32"),
        (_pairs({"path": "a.png", "bytes": None}), "images must be pictures, arrays or tensors, got dict"),
        (FLOATS, "Tensor: expected a data set of"),
        (5, "int: expected an ImageSet, a data set or a loader"),
        ([(FLOATS[:0], torch.tensor([]))], "list: the data set is empty"),
        ([(FLOATS[:2], [0]), (FLOATS[:1], [0, 1])], "a batch has 2 images, but 1 labels"),
        ("digits:test", "str: expected images, not where they are; neural_polarizer.read_images reads them"),
        ({"train": []}, r"dict: expected one data set of .*, got \['train'\]; give a split of it"),
    ],
    ids=[
        "normalised",
        "0 to 255",
        "nan",
        "int64",
        "flat",
        "negative label",
        "sizes",
        "scalar",
        "text label",
        "1.7",
        "soft label",
        "ragged label",
        "no label",
        "file name",
        "junk",
        "float picture",
        "uint16",
        "no image key",
        "no label key",
        "int",
        "3",
        "empty",
        "meta",
        "path in a row",
        "tensor",
        "5",
        "empty batch",
        "batches that do not fit",
        "data spec",
        "splits",
    ],
)
def test_data_that_cannot_be_used_is_refused(data: Any, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        purify(tiny_model(), data, "npd", **FAST)


def test_nothing_is_printed_and_the_model_stays(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model().train()
    before = snapshot(model)
    result = purify(model, CLEAN, "npd", **FAST)
    after = snapshot(model)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]
    assert hooks(result.model) == []
    assert capfd.readouterr() == ("", "")


def test_site_target_and_settings_reach_the_method() -> None:
    result = purify(tiny_model(), CLEAN, "npd-tp", site="before:features.3", target=1, **{**FAST, "epochs": 3})
    assert (result.site, len(result.history)) == ("before:features.3", 3)
    expected = NPD(target=1, radii=(5.0,), steps=4, epochs=3, batch_size=8, site="before:features.3").repair(
        tiny_model(), CLEAN, seed=0
    )
    assert_same(result.model.state_dict(), expected.model.state_dict())


def test_the_presets_name_and_profile_reach_the_method() -> None:
    with pytest.raises(BadInputError, match=r"'before:layer4.1.conv1': no such module"):
        purify(tiny_model(), CLEAN, "npd", preset="paper", **FAST)
    told: list[tuple[str, int, int]] = []
    purify(
        tiny_model(),
        CLEAN,
        "npd",
        preset="reference",
        profile="tiny_imagenet",
        site="after:features",
        progress=lambda *step: told.append(step),
        **FAST,
    )
    assert {phase for phase, _, _ in told} == {"evaluate", "optimise"}  # no warm-up on Tiny ImageNet


@pytest.mark.long
@pytest.mark.parametrize("method", ["npd", "npd-tp", "npd-tu", "npd-up", "npd-uu"])
def test_every_method_by_name(method: str) -> None:
    target = 1 if method in ("npd-tp", "npd-tu") else None
    result = purify(tiny_model(), CLEAN, method, target=target, **FAST)
    expected = {**VARIANTS[method], "target": target}
    assert {name: result.settings[name] for name in expected} == expected
    with torch.no_grad():
        assert not torch.allclose(result.model(FLOATS), tiny_model()(FLOATS), atol=1e-4)  # it has learned something


def test_settings_that_do_not_exist_are_refused_by_name() -> None:
    with pytest.raises(BadInputError, match="a setting of LeastStandIns cannot be 'epoch'"):
        purify(tiny_model(), CLEAN, epoch=3)
    with pytest.raises(BadInputError, match="device 'nonsense' cannot be used here"):
        purify(tiny_model(), CLEAN, device="nonsense")


def test_a_model_for_other_classes_is_refused() -> None:
    with pytest.raises(BadInputError, match="has label 4, but the model knows 4 classes"):
        purify(tiny_model(), tiny_images(10, num_classes=5), "npd", **FAST)
    with pytest.raises(BadInputError, match="has label 4, but the model's output is"):
        evaluate(tiny_model(), tiny_images(10, num_classes=5), device="cpu")


def test_every_public_name_is_documented() -> None:
    for name in dir(neural_polarizer):
        value: Any = getattr(neural_polarizer, name)
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            assert inspect.getdoc(value), name


def test_pictures_follow_the_rules_of_files(tmp_path: Path) -> None:
    palette = Image.new("RGB", (4, 4), (250, 10, 60)).quantize(8)
    turned = Image.new("RGB", (4, 2), (1, 2, 3))
    turned.putpixel((0, 0), (200, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    forms = {
        "palette": palette,
        "grey": Image.new("L", (4, 4), 77),
        "clear": Image.new("RGBA", (4, 4), (200, 100, 0, 128)),
        "cmyk": Image.new("CMYK", (4, 4), (0, 200, 100, 30)),
        "deep": Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)),
        "one bit": Image.new("1", (4, 4), 1),
        "turned": Image.open(io.BytesIO(buffer.getvalue())),
    }
    for name, image in forms.items():
        folder = tmp_path / name / "class"
        folder.mkdir(parents=True)
        if name == "turned":
            (folder / "0.png").write_bytes(buffer.getvalue())
        else:
            image.save(folder / ("0.tif" if name in ("cmyk", "deep") else "0.png"))
        expected = neural_polarizer.read_images(str(tmp_path / name))
        found = as_image_set([(image, 0)])
        assert torch.equal(found.images, expected.images), name
    assert as_image_set([(forms["turned"], 0)]).image_size == (4, 2)
    assert as_image_set([(palette, 0)]).images[0, :, 0, 0].tolist() == [250, 10, 60]


def test_names_of_classes_come_from_the_data_set_and_from_the_caller() -> None:
    class Named(Pairs):
        classes = ("d", "c", "b", "a")

    pairs = Named(list(zip(CLEAN.images, CLEAN.labels.tolist(), strict=True)))
    assert as_image_set(pairs).classes == ("d", "c", "b", "a")
    assert as_image_set(DataLoader(pairs, batch_size=4)).classes == ("d", "c", "b", "a")
    mapped = as_image_set(pairs, classes=["a", "b", "c", "d"])
    assert mapped.labels.tolist() == (3 - CLEAN.labels).tolist()
    words = [(image, "abcd"[label]) for image, label in zip(CLEAN.images, CLEAN.labels.tolist(), strict=True)]
    assert as_image_set(words, classes={"b": 1, "a": 0, "c": 2, "d": 3}).labels.tolist() == CLEAN.labels.tolist()
    own = ImageSet(CLEAN.images, CLEAN.labels, ("d", "c", "b", "a"))
    assert as_image_set(own, classes=["a", "b", "c", "d"]).labels.tolist() == (3 - CLEAN.labels).tolist()
    with pytest.raises(BadInputError, match="cannot be found among those of classes"):
        as_image_set(words, classes=["a", "b"])
