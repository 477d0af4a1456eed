"""Which number a class of the data has in the model: names on both sides, and the files that give an order."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from folder_cases import folder
from image_bytes import png

from neural_polarizer.data.class_files import read_class_names
from neural_polarizer.data.classes import ClassNames, class_names, numbered
from neural_polarizer.data.labels import class_labels
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError

ANIMALS = ClassNames(("zebra", "ant", "moose"))


def number(names: tuple[str, ...] | None, known: ClassNames | None, labels: Any = None, **form: Any) -> Any:
    given = np.arange(len(names or ())) if labels is None else np.array(labels)
    form = {"in_order_of_names": True, "num_classes": None, "source": "data", **form}
    return numbered(given, names, known=known, **form)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("zebra", "ant", "moose"), [0, 1, 2]),
        (("ant", "moose", "zebra"), [1, 2, 0]),
        (("moose",), [2]),
        (("Ant", "MOOSE", "zebra"), [1, 2, 0]),
        (("\u0661", "\u0662", "\u0660"), [1, 2, 0]),
        (("0", "1", "2"), [0, 1, 2]),
        (("2",), [2]),
    ],
)
def test_names_on_both_sides_are_mapped_by_name(names: tuple[str, ...], expected: list[int]) -> None:
    found = number(names, ANIMALS, num_classes=3)
    assert found.labels.tolist() == expected
    assert found.classes == ANIMALS.names


def test_a_mapping_that_changes_something_is_told() -> None:
    assert number(("zebra", "ant", "moose"), ANIMALS).notes == ()
    (note,) = number(("ant", "moose"), ANIMALS).notes
    assert note == (
        "classes were matched by name with those of the model: ant is class 1 there, not 0; the data have 2 of its 3 "
        "classes"
    )


def test_letters_that_a_file_system_takes_apart_are_the_same() -> None:
    said = class_names(["zébra", "élan"], said_by="classes.txt")
    apart = tuple(unicodedata.normalize("NFD", name) for name in ("élan", "zébra"))
    assert number(apart, said).labels.tolist() == [1, 0]


def test_spelling_that_would_make_two_names_one_is_not_ignored() -> None:
    with pytest.raises(BadInputError, match="its class B cannot be found"):
        number(("a", "B"), ClassNames(("A_1", "a", "a 1")), num_classes=3)


def test_names_that_have_nothing_in_common_go_by_their_order_with_a_word() -> None:
    found = number(("x", "y", "z"), ANIMALS)
    assert found.labels.tolist() == [0, 1, 2]
    assert "(x, y, z) are not the model's (zebra, ant, moose)" in found.notes[0]


def test_names_of_which_only_some_are_the_models_are_refused() -> None:
    with pytest.raises(
        BadInputError, match=r"its class horse cannot be found among those of the model \(zebra, ant, m"
    ):
        number(("ant", "horse", "zebra"), ANIMALS)
    with pytest.raises(BadInputError, match=r"has 2 classes, but 3 are expected: it has x, y"):
        number(("x", "y"), ANIMALS)


@pytest.mark.parametrize("names", [("0", "1", "2"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("00000", "00001", "00002")])
def test_names_that_are_only_numbers_in_order_say_nothing(names: tuple[str, ...]) -> None:
    found = number(("ant", "bee", "cat"), ClassNames(names), num_classes=3)
    assert (found.labels.tolist(), found.notes, found.classes) == ([0, 1, 2], (), ("ant", "bee", "cat"))


def test_a_model_that_learned_folders_in_the_order_of_text_keeps_it() -> None:
    found = number(("0", "1", "10", "2"), ClassNames(("0", "1", "10", "2")), num_classes=4)
    assert found.labels.tolist() == [0, 1, 2, 3]


def test_numbers_that_a_data_set_counts_in_the_order_of_text_are_told_of() -> None:
    found = number(("0", "1", "10", "2"), None, in_order_of_names=False)  # as torchvision's ImageFolder does
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert "count in the order of text, which puts 10 before 2" in found.notes[0]
    assert number(("0", "1", "2", "10"), None, in_order_of_names=False).notes == ()


def test_labels_in_words_need_the_models_names() -> None:
    assert number(None, ANIMALS, ["moose", "zebra", "moose"]).labels.tolist() == [2, 0, 2]
    with pytest.raises(BadInputError, match="its class horse cannot be found"):
        number(None, ANIMALS, ["horse", "zebra"])
    with pytest.raises(BadInputError, match="its classes a, b cannot be found"):
        number(None, ANIMALS, ["a", "b"])
    with pytest.raises(BadInputError, match=r"labels are names.*--classes FILE"):
        number(None, None, ["a", "b"])


@pytest.mark.parametrize("known", [None, ANIMALS, ClassNames(("0", "1", "2"))])
def test_labels_in_words_that_have_numbers_go_by_these_as_folders_do(known: ClassNames | None) -> None:
    assert number(None, known, ["class_2", "class_0"], num_classes=3).labels.tolist() == [2, 0]
    assert number(None, known, ["2: cat", "3: dog", "1: ant"], num_classes=3).labels.tolist() == [1, 2, 0]
    many = [f"class_{i}" for i in (2, 10, 0)]
    assert "ordered by value" in number(None, known, many, num_classes=12).notes[0]


def test_a_few_words_with_numbers_do_not_tell_that_they_are_counted_from_one() -> None:
    assert number(None, None, ["class_1", "class_1"]).labels.tolist() == [1, 1]
    assert number(None, None, ["class_3", "class_1", "class_2"]).labels.tolist() == [3, 1, 2]


def test_what_the_user_says_binds() -> None:
    said = class_names(["moose", "zebra", "ant"], said_by="order.txt")
    assert number(("ant", "moose", "zebra"), said).labels.tolist() == [2, 0, 1]
    with pytest.raises(BadInputError, match=r"its classes x, y, z cannot be found among those of order\.txt"):
        number(("x", "y", "z"), said)
    with pytest.raises(
        BadInputError, match=r"order\.txt: names 3 classes \(moose, zebra, ant\), but the model has 2; "
    ):
        number(("ant", "zebra"), said, num_classes=2)
    with pytest.raises(BadInputError, match=r"names 3 classes \(a, b\), but the model has 2; .*; numbers count from 0"):
        number(("a", "b"), class_names({1: "a", 2: "b"}, said_by="order.txt"), num_classes=2)


@pytest.mark.parametrize("names", [("ant", "zebra"), ("0", "1"), None])
def test_a_file_that_names_too_few_classes_is_refused(names: tuple[str, ...] | None) -> None:
    with pytest.raises(BadInputError, match=r"names 2 classes \(ant, zebra\), but the model has 3; name all"):
        number(names, class_names(["ant", "zebra"], said_by="order.txt"), [0, 1], num_classes=3)
    some = class_names({"ant": 0, "zebra": 1}, said_by="order.json")
    assert number(names, some, [0, 1], num_classes=3).classes == ("ant", "zebra", "2")
    with pytest.raises(BadInputError, match=r"order\.txt: names 2 classes, but data has the label 2; name all classes"):
        number(None, class_names(["ant", "zebra"], said_by="order.txt"), [0, 1, 2])
    assert number(("zebra",), class_names({2: "zebra"}, said_by="order.txt"), num_classes=4).labels.tolist() == [2]


@pytest.mark.parametrize(
    "text",
    [
        "zebra\n ant \r\nmoose\n\n",
        '["zebra", "ant", "moose"]',
        '{"zebra": 0, "moose": 2, "ant": 1}',
        '{"0": "zebra", "2": "moose", "1": "ant"}',
        '{"0": ["zebra", "Equus"], "1": ["ant", "x"], "2": ["moose", "x"]}',
        "\ufeffzebra\nant\nmoose",
        "1,ant\n0,zebra\n2,moose",
        "1: zebra\n2: ant\n3: moose",
        "zebra 0\nmoose\t2\nant;1",
    ],
)
def test_every_form_of_a_file_of_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / "names").names == ("zebra", "ant", "moose")


@pytest.mark.parametrize(
    "text", ["{} tench, Tinca tinca\n{} goldfish", "{}\tx\n{}\tx", '{{"0": ["{}", "x"], "1": ["{}", "x"]}}']
)
def test_the_lists_of_imagenet_name_folders_by_their_id(tmp_path: Path, text: str) -> None:
    (tmp_path / "names").write_text(text.format("n01443537", "n01440764"))
    assert read_class_names(tmp_path / "names").names == ("n01443537", "n01440764")


@pytest.mark.parametrize("text", ["class 0\nclass 1", "1 a\n3 b", "20 km\n30 km", "x 0\ny"])
def test_numbers_in_names_of_classes_stay_in_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "names").write_text(text)
    assert read_class_names(tmp_path / "names").names == tuple(text.split("\n"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_to_idx.json", '{"zebra": 0, "ant": 1, "moose": 2}'),
        ("class_indices.json", '{"0": "zebra", "1": "ant", "2": "moose"}'),
        ("classes.txt", "zebra\nant\nmoose\n"),
    ],
)
def test_a_file_beside_class_folders_numbers_them(tmp_path: Path, name: str, text: str) -> None:
    (folder(tmp_path, ant=1, moose=1, zebra=1) / name).write_text(text)
    got = read_images(str(tmp_path))
    assert (got.classes, got.labels.tolist()) == (("zebra", "ant", "moose"), [1, 2, 0])
    assert got.notes == (f"classes were matched by name with those of {tmp_path / name}: ant is class 1 there, not 0",)
    other = class_names(["moose", "ant", "zebra"], said_by="the user")
    assert read_images(str(tmp_path), classes=other).labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("text", "told"), [("x\ny\nz", "names other classes, so it was not used"), ("{", "damaged JSON")]
)
def test_a_file_beside_class_folders_that_does_not_fit_is_told_of(tmp_path: Path, text: str, told: str) -> None:
    (folder(tmp_path, ant=1, moose=1, zebra=1) / "classes.txt").write_text(text)
    got = read_images(str(tmp_path), num_classes=3)
    assert got.classes == ("ant", "moose", "zebra")
    assert any(told in note and "classes.txt" in note for note in got.notes)


def test_a_file_of_names_may_be_what_powershell_writes(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("zebra\r\nant\r\nmoose\r\n", encoding="utf-16")
    assert read_class_names(tmp_path / "names").names == ("zebra", "ant", "moose")
    (tmp_path / "names").write_bytes("k\xe4fer\nant".encode("latin-1"))
    with pytest.raises(BadInputError, match=r"cannot be read as text .*; save it as UTF-8"):
        read_class_names(tmp_path / "names")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected one name a line"),
        ("a\nb\na", "the name 'a' is there twice"),
        ('{"a": 0, "b": 0}', "the number 0 is there twice"),
        ('{"a": -1}', "expected one name a line"),
        ('{"a": 1e99}', "expected one name a line"),
        ("[1, 2]", "expected one name a line"),
        ('["a"', "damaged JSON"),
        ("[" * 100_000, "damaged JSON"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(BadInputError, match=reason):
        read_class_names(tmp_path / "names")
    with pytest.raises(BadInputError, match="no such file"):
        read_class_names(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0], [2, 0]),
        (torch.tensor([2.0, 0.0], dtype=torch.bfloat16), [2, 0]),
        (np.array([[0, 0, 1], [1, 0, 0]]), [2, 0]),
        (["2", " 0 "], [2, 0]),
        (np.array([2, 0], dtype=np.float16), [2, 0]),
        ([np.int64(2), np.int64(0)], [2, 0]),
        ([True, False], [1, 0]),
    ],
)
def test_labels_that_are_numbers_in_some_form(labels: Any, expected: list[int]) -> None:
    assert class_labels(labels, "here").tolist() == expected


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([1.7], "label 1.7 is no whole number"),
        ([float("inf")], "label inf is no whole number"),
        ([None, None], "got NoneType"),
        ([[0, 1], [0]], "lists of several lengths"),
        ([[0.9, 0.1]], "is not one-hot"),
        ([[0, 0]], "is not one-hot"),
        (np.array([2**64 - 1], dtype=np.uint64), "is no class number"),
        ([["a", "b"]], "got 2 texts an image"),
        (["3", "a", " ", ""], "the label of image 2 is empty"),
        (["a", "b" * 1001], "texts of up to 1,001 letters, too long for class names"),
    ],
)
def test_labels_that_are_none_are_refused(labels: Any, reason: str) -> None:
    with pytest.raises(BadInputError, match=f"here: .*{reason}"):
        class_labels(labels, "here")


def saved(folder: Path, rows: int = 4, **columns: Any) -> Path:
    """A data set as ``save_to_disk`` leaves it, in two files."""
    folder.mkdir(parents=True)
    shards = [{"filename": f"data-0000{shard}-of-00002.arrow"} for shard in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": shards}))
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    for shard in range(2):
        data = {
            "image": pa.array([{"bytes": png((i + shard, 0, 0)), "path": None} for i in range(rows)]),
            "label": pa.array([(i + shard) % 2 for i in range(rows)]),
            **columns,
        }
        table = pa.table(data).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path = str(folder / f"data-0000{shard}-of-00002.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return folder


def test_a_data_set_that_was_saved_to_disk_is_read(tmp_path: Path) -> None:
    got = read_images(str(saved(tmp_path / "set")))
    assert got.classes == ("cat", "dog")
    assert got.labels.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
    assert got.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert read_images(f"hf:{tmp_path / 'set'}").sha256() == got.sha256()


def test_splits_that_were_saved_to_disk_are_explained(tmp_path: Path) -> None:
    for split in ("train", "test"):
        saved(tmp_path / split)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"holds splits of a data set; name one of them: .*test or .*train"):
        read_images(str(tmp_path))


def test_labels_beyond_counting_in_an_arrow_file_are_refused(tmp_path: Path) -> None:
    root = saved(tmp_path / "set", label=pa.array([2**63] * 4, pa.uint64()))
    with pytest.raises(BadInputError, match=r"arrow: column 'label' cannot be read"):
        read_images(str(root))


def test_damaged_arrow_files_are_refused(tmp_path: Path) -> None:
    root = saved(tmp_path / "set")
    shard = root / "data-00001-of-00002.arrow"
    content = shard.read_bytes()
    for damaged in (b"", b"junk" * 9, content[: len(content) // 2]):
        shard.write_bytes(damaged)
        with pytest.raises(BadInputError, match=r"set"):
            read_images(str(root))
    shard.unlink()
    with pytest.raises(BadInputError, match=r"data-00001-of-00002\.arrow: missing"):
        read_images(str(root))
    shard.symlink_to("/etc/hostname")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_images(str(root))


def test_caches_beside_a_saved_data_set_are_no_data(tmp_path: Path) -> None:
    expected = read_images(str(saved(tmp_path / "set"))).sha256()
    (tmp_path / "set" / "cache-1234.arrow").write_bytes((tmp_path / "set" / "data-00000-of-00002.arrow").read_bytes())
    assert read_images(str(tmp_path / "set")).sha256() == expected
    for damaged in ("{}", "[]", '{"_data_files": []}', '{"_data_files": [{"filename": 3}]}', "{"):
        (tmp_path / "set" / "state.json").write_text(damaged)
        with pytest.raises(BadInputError, match=r"state\.json: .*save the data set again"):
            read_images(str(tmp_path / "set"))


def test_an_order_of_numbers_renumbers_labels_that_are_numbers() -> None:
    """A model whose folders 0, 1, 10, 2 were sorted as text calls class 10 its third."""
    labels, order = np.array([0, 1, 2, 3]), ClassNames(("0", "3", "1", "2"), "classes", binding=True)
    found = numbered(labels, None, known=order, num_classes=4, source="here")
    assert found.labels.tolist() == [0, 2, 3, 1]
    assert found.classes == order.names
    for others in (("1", "2", "3", "4"), ("0", "3", "1", "b")):
        named = numbered(labels, None, known=ClassNames(others, "x", binding=True), num_classes=4, source="here")
        assert named.labels.tolist() == [0, 1, 2, 3]  # names of classes, and no order
    said_by_the_model = numbered(labels, None, known=ClassNames(order.names), num_classes=4, source="here")
    assert said_by_the_model.labels.tolist() == [0, 1, 2, 3]


def test_a_repository_of_a_data_set_is_read_from_its_data_folder(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("x")
    pq.write_table(pa.table({"image": [png()], "label": [0]}), tmp_path / "data" / "train-0.parquet")
    assert len(read_images(str(tmp_path))) == 1
    pq.write_table(pa.table({"image": [png()], "label": [0]}), tmp_path / "data" / "test-0.parquet")
    with pytest.raises(
        BadInputError, match=r"would mix training and test data; name one file of: .*data/test-0\.parquet"
    ):
        read_images(str(tmp_path))
