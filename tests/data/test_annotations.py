"""Tables of files and labels beside the images, and by themselves."""

from pathlib import Path

import pytest
from folder_cases import folder
from image_bytes import png

from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError

METADATA = {
    "metadata.csv": 'file_name,label,note\n1.png,0,"a, b"\nsub/0.png,1,\n',
    "metadata.jsonl": '{"file_name": "1.png", "label": 0}\n\n{"file_name": "sub/0.png", "label": 1, "x": [1]}\n',
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_beside_the_images_name_their_classes(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path, **{".": 2, "sub": 1})
    (root / name).write_text(METADATA[name])
    got = read_images(str(root), num_classes=2)
    assert got.labels.tolist() == [0, 1]
    assert got.notes == (f"{root}: left out 1 images that {name} does not name",)
    words = METADATA[name].replace(",1,", ",dog,").replace(",0,", ",cat,")
    words = words.replace('"label": 1', '"label": "dog"').replace('"label": 0', '"label": "cat"')
    (root / name).write_text(words)
    with pytest.raises(BadInputError, match=r"labels are names \(cat, dog\).*--classes FILE"):
        read_images(str(root))
    assert read_images(str(root), classes=ClassNames(("dog", "cat"))).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("picture,label\n0.png,1\n", "needs the columns file_name and label or .*; found \\['picture', 'label'\\]"),
        ("file_name,kind\n0.png,1\n", "needs the columns file_name and label"),
        ("file_name,label\n7.png,1\n", "names .*7.png, which is no file here"),
        ("file_name,label\n../x/0.png,1\n", r"metadata\.csv: row 1: .*'../x/0.png' names no file below"),
        ("file_name,label\n/etc/passwd,1\n", "names no file below this folder"),
        ("file_name,label\nlink.png,1\n", "a symbolic link that leaves the folder"),
        ("file_name,label\n0.png\n", r"metadata\.csv: row 1 has no file_name or no label"),
        ("file_name,label\n0.png,1\n,\n", r"metadata\.csv: row 2 has no file_name or no label"),
        ("file_name,label,label\n0.png,1,2\n", "names a column twice"),
        ("file_name,label\n0.png,1.5\n", "label"),
        ("file_name,label\n0.png,cat, tabby\n", "a row has more cells than the header; put texts with commas in"),
        ("file_name,label\n0.png,1\n./0.png,2\n", "names '?.*0.png'? twice, with different labels"),
        ("file_name,label,split\n0.png,1,train\n0.png,1,Test\n", "would mix training and test data, .* column split"),
        ("file_name,label,is_valid\n0.png,1,False\n0.png,1,True\n", "would mix training .* column is_valid"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    root = folder(tmp_path / "root", **{".": 1})
    (tmp_path / "0.png").write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "0.png")
    (root / "metadata.csv").write_text(text)
    with pytest.raises(BadInputError, match=reason) as caught:
        read_images(str(root))
    assert str(caught.value).isprintable()


def test_a_web_dataset_is_read_as_it_is_unpacked(tmp_path: Path) -> None:
    root = folder(tmp_path, **{".": 3})
    for i in range(3):
        (root / f"{i}.cls").write_text(f"{2 - i}\n")
    got = read_images(str(root), num_classes=3)
    assert (got.labels.tolist(), got.images[:, 0, 0, 0].tolist()) == ([2, 1, 0], [0, 1, 2])
    (root / "1.cls").unlink()
    with pytest.raises(BadInputError, match=r"has files \*\.cls, but none for 1\.png"):
        read_images(str(root))


def test_a_table_beside_a_folder_of_images_is_proposed(tmp_path: Path) -> None:
    root = folder(tmp_path, images=1)
    (root / "labels.csv").write_text("file_name,label\nimages/0.png,1\n")
    with pytest.raises(BadInputError, match=r"names no class; did you mean .*labels\.csv\?"):
        read_images(str(root))
    assert read_images(str(root / "labels.csv")).labels.tolist() == [1]


TABLES = {
    "semicolons.csv": "Filename;Width;ClassId\r\n1.png;4;0\r\nsub/0.png;4;1\r\n",  # as GTSRB's
    "tabs.tsv": "Path\tLabel\n1.png\t0\nsub\\0.png\t1\n",
    "paths.csv": "image_path,class_name\n1.png,class_0\nsub/0.png,class_1\n",
    "trailing.csv": "file_name,label\n1.png,0,\nsub/0.png,1,,\n",
    "blanks.CSV": 'image, class\n"1.png", "0"\nsub/0.png, 1\n',
    "whole.csv": "file_name,label\n{root}/1.png,0\n{root}/sub/0.png,1\n",
    "lines.jsonl": '{{"file_name": "1.png", "label": "class_0"}}\n{{"file_name": "sub/0.png", "label": "class_1"}}\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_any_form_may_be_named_itself(tmp_path: Path, name: str, encoding: str) -> None:
    root = folder(tmp_path, **{".": 2, "sub": 1})
    (root / name).write_bytes(TABLES[name].format(root=root).encode(encoding))
    got = read_images(str(root / name), num_classes=2)
    assert (got.labels.tolist(), got.images[:, 0, 0, 0].tolist()) == ([0, 1], [1, 0])
    assert got.notes == (f"{root}: left out 1 images that {name} does not name",)
    (root / name).write_text("file_name\n1.png\n" if "json" not in name else '{"file_name": "1.png"}')
    with pytest.raises(BadInputError, match="needs the columns file_name and label"):
        read_images(str(root / name))


def test_damaged_metadata_are_refused_and_those_without_labels_leave_class_folders_alone(tmp_path: Path) -> None:
    root = folder(tmp_path, cat=1, dog=1)
    (root / "metadata.csv").write_text("file_name,caption\ncat/0.png,a cat\n")
    assert read_images(str(root)).classes == ("cat", "dog")
    (root / "metadata.csv").write_text("file_name,label\n\u00fc.png,0\n", encoding="latin-1")
    with pytest.raises(BadInputError, match=r"can't decode byte 0xfc .*; save it as UTF-8$"):
        read_images(str(root))
    for name, text in (("metadata.csv", b"\xff"), ("metadata.jsonl", b"{"), ("metadata.jsonl", b"[" * 100_000)):
        (root / "metadata.csv").unlink(missing_ok=True)
        (root / name).write_bytes(text)
        with pytest.raises(BadInputError, match="cannot be read"):
            read_images(str(root))


def test_splits_that_are_annotated_are_named(tmp_path: Path) -> None:
    for name in ("train", "test"):
        folder(tmp_path / name, **{".": 1})
        (tmp_path / name / "metadata.csv").write_text("file_name,label\n0.png,0\n")
    with pytest.raises(BadInputError, match=r"did you mean .*test or .*train\?"):
        read_images(str(tmp_path))
