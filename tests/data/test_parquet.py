import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_bytes import png

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.parquet import write_images
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError

GENERATOR = torch.Generator().manual_seed(0)
SIX = ImageSet(
    torch.randint(256, (6, 3, 5, 4), generator=GENERATOR, dtype=torch.uint8),
    torch.tensor([2, 0, 1, 1, 0, 2]),
    ("cat", "dog", "Füchse"),
)


def table(path: Path, labels: Any, images: Any = None, metadata: Any = None, **names: str) -> str:
    """A parquet file with plain binary images and labels of any arrow type."""
    columns = {
        names.get("image", "image"): [png()] * len(labels) if images is None else images,
        names.get("label", "label"): labels,
    }
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return str(path)


def test_parquet_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "six.parquet"
    true_label = torch.tensor([0, 1, 2, -1, 4, 2**40])
    write_images(path, SIX, true_label=true_label)
    got = read_images(str(path), num_classes=3)
    assert torch.equal(got.images, SIX.images)
    assert torch.equal(got.labels, SIX.labels)
    assert got.classes == SIX.classes
    assert got.source == str(path)
    assert pq.read_table(path)["true_label"].to_pylist() == true_label.tolist()
    assert [item.name for item in tmp_path.iterdir()] == ["six.parquet"]


def test_written_parquet_has_the_hugging_face_layout(tmp_path: Path) -> None:
    write_images(tmp_path / "six.parquet", SIX, extra=SIX.labels)
    schema = pq.read_schema(tmp_path / "six.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(SIX.classes), "_type": "ClassLabel"}
    assert features["image"] == {"_type": "Image"}
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"


def test_a_limit_takes_the_first_rows_and_keeps_the_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "six.parquet", SIX)
    got = read_images(str(tmp_path / "six.parquet"), limit=2)
    assert torch.equal(got.images, SIX.images[:2])
    assert got.num_classes == 3


def test_a_bad_image_beyond_the_limit_does_no_harm(tmp_path: Path) -> None:
    assert len(read_images(table(tmp_path / "a.parquet", [0, 0], [png(), None]), limit=1)) == 1


def test_plain_parquet_without_names_takes_its_class_count_from_the_labels(tmp_path: Path) -> None:
    spec = table(tmp_path / "a.parquet", pa.array([0, 3, 1], pa.uint8()), image="img", label="fine_label")
    assert read_images(spec).classes == ("0", "1", "2", "3")
    assert read_images(spec, num_classes=7).num_classes == 7
    assert read_images(spec, size=(2, 3)).image_size == (2, 3)


@pytest.mark.parametrize(("image", "label"), [("jpg", "cls"), ("png", "category")])
def test_columns_go_by_the_names_of_other_tools(tmp_path: Path, image: str, label: str) -> None:
    spec = table(tmp_path / "a.parquet", pa.array([0, 3, 1]), image=image, label=label)
    assert read_images(spec).labels.tolist() == [0, 3, 1]


def test_a_folder_of_shards_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for shard, label in (("b", 1), ("a", 0)):
        table(tmp_path / f"train-{shard}.parquet", [label], [png((label, 0, 0))])
    got = read_images(str(tmp_path))
    assert got.labels.tolist() == [0, 1]
    assert got.images[:, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(("train", name) for name in ("test", "test-00000-of-00001", "validation", "a_test")),
        *(("clean", name) for name in ("test", "triggered", "rest")),
        ("images", "test"),
    ],
)
def test_a_folder_that_would_mix_training_and_test_data_is_refused(tmp_path: Path, first: str, second: str) -> None:
    second = f"{second}.parquet"
    table(tmp_path / f"{first}.parquet", [0])
    table(tmp_path / second, [0])
    with pytest.raises(BadInputError, match=rf"would mix training and test data; .*{second}"):
        read_images(str(tmp_path))


def test_shards_that_name_different_classes_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", SIX)
    table(tmp_path / "b.parquet", [0])
    with pytest.raises(BadInputError, match="name different classes"):
        read_images(str(tmp_path))


BAD_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "null label": ({"labels": [0, None]}, "column 'label' has 1 empty cells"),
    "negative label": ({"labels": [0, -1]}, r"labels must lie in 0\.\.0, found -1\.\.0"),
    "absurd label": ({"labels": [0, 2**62]}, "labels must lie in"),
    "unsigned overflow": ({"labels": pa.array([2**64 - 1], pa.uint64())}, "cannot be read"),
    "float label": ({"labels": [0.0, 1.7]}, "column 'label': label 1.7 is no whole number"),
    "nan label": ({"labels": [0.0, float("nan")]}, "label nan is no whole number"),
    "soft labels": ({"labels": [[0.5, 0.5], [0.0, 1.0]]}, "that of image 0 is not one-hot"),
    "ragged labels": ({"labels": [[1], [0, 1]]}, "holds list.*, which cannot be labels"),
    "dates": ({"labels": pa.array([0, 1], pa.timestamp("s"))}, "holds timestamp.*, which cannot be labels"),
    "words": ({"labels": ["cat", "dog"]}, r"its labels are names \(cat, dog\), but nothing says which number"),
    "no rows": ({"labels": pa.array([], pa.int64()), "images": pa.array([], pa.binary())}, "holds no images"),
    "no label column": ({"labels": [0], "label": "kind"}, "needs one column label or"),
    "no image column": ({"labels": [0], "image": "picture"}, "needs one column image or img or jpg or png"),
    "text for images": ({"labels": [0], "images": ["a.png"]}, "must hold bytes or a struct"),
    "null image": ({"labels": [0, 0], "images": [png(), None]}, "row 1 has no image bytes"),
    "not an image": ({"labels": [0], "images": [b"x"]}, "row 0: cannot be used as an image"),
    "sizes differ": ({"labels": [0, 0], "images": [png(), png(size=(9, 9))]}, r"5x4 .*, 9x9 .*pass a size"),
    "metadata": ({"labels": [0], "metadata": {"huggingface": "{"}}, "metadata is damaged"),
    "metadata list": ({"labels": [0], "metadata": {"huggingface": "[1]"}}, "metadata is damaged"),
    "names": (
        {
            "labels": [0],
            "metadata": {"huggingface": '{"info": {"features": {"label": {"names": [1]}}}}'},
        },
        "not a list of texts",
    ),
    "more labels than names": (
        {
            "labels": [0, 1],
            "metadata": {"huggingface": '{"info": {"features": {"label": {"names": ["a"]}}}}'},
        },
        r"labels must lie in 0\.\.0, found 0\.\.1",
    ),
}


def test_a_table_of_images_alone_has_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([png()], pa.binary())}), tmp_path / "bad.parquet")
    with pytest.raises(BadInputError, match=r"bad\.parquet: needs one column label or .*; found \['image'\]"):
        read_images(str(tmp_path / "bad.parquet"))


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_parquet_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    options, reason = BAD_TABLES[name]
    spec = table(tmp_path / "bad.parquet", **options)
    with pytest.raises(BadInputError, match=reason) as caught:
        read_images(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        [0.0, 2.0, 1.0],
        pa.array([0.0, 2.0, 1.0], pa.float32()),
        ["0", "2", "1"],
        ["00", "02", "1.0"],
        pa.array(["0", "2", "1"]).dictionary_encode(),
        [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
        pa.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]], pa.list_(pa.float32(), 3)),
        [[True, False, False], [False, False, True], [False, True, False]],
        [[0], [2], [1]],
    ],
    ids=["float", "float32", "text", "text with zeros", "dictionary", "one-hot", "fixed one-hot", "bool rows", "lists"],
)
def test_labels_of_other_types_that_can_mean_one_thing_only_are_taken(tmp_path: Path, labels: Any) -> None:
    assert read_images(table(tmp_path / "a.parquet", labels), num_classes=3).labels.tolist() == [0, 2, 1]


def test_booleans_are_the_classes_0_and_1(tmp_path: Path) -> None:
    assert read_images(table(tmp_path / "a.parquet", [True, False])).labels.tolist() == [1, 0]


def test_a_class_count_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "six.parquet", SIX)
    with pytest.raises(BadInputError, match="has 3 classes, but 10 are expected: it has cat, dog, Füchse"):
        read_images(str(tmp_path / "six.parquet"), num_classes=10)
    with pytest.raises(BadInputError, match=r"labels must lie in 0\.\.1, found 0\.\.5"):
        read_images(table(tmp_path / "b.parquet", [0, 5]), num_classes=2)


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    spec = table(tmp_path / "a.parquet", [0] * 50)
    Path(spec).write_bytes(Path(spec).read_bytes()[:-20])
    with pytest.raises(BadInputError, match="cannot be read as parquet"):
        read_images(spec)


def test_extra_columns_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "six.parquet"
    with pytest.raises(BadInputError, match="extra column 'mask' must be int64"):
        write_images(path, SIX, mask=torch.ones(6))
    with pytest.raises(BadInputError, match="extra column 'image' must be int64"):
        write_images(path, SIX, image=SIX.labels)
    grey = ImageSet(SIX.images[:, :1], SIX.labels, SIX.classes)
    with pytest.raises(BadInputError, match="only images of 3 channels"):
        write_images(path, grey)
    assert not path.exists()
    write_images(path, SIX)
    with pytest.raises(BadInputError, match=r"cannot write .*: its folder is not there; make it first"):
        write_images(tmp_path / "gone" / "six.parquet", SIX)


def test_a_pointer_of_git_lfs_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(BadInputError, match="Git LFS pointer, not the data; run 'git lfs pull'"):
        read_images(tmp_path / "train.parquet")


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refused)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(BadInputError, match="cannot be read as parquet"):
        read_images(tmp_path / "train.parquet")
