import os
from pathlib import Path

import pytest
from image_bytes import png

from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError


def folder(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(png((i, 0, 0)))
    return root


def test_a_class_folder_layout_sorts_classes_and_keeps_an_empty_one(tmp_path: Path) -> None:
    root = folder(tmp_path, dog=2, cat=1, empty=0)
    (root / ".hidden").mkdir()
    (root / "dog" / ".hidden.png").write_bytes(b"x")
    (root / "dog" / "notes.csv").write_text("x")
    (root / "readme.txt").write_text("x")
    (root / "dog" / "9.png").symlink_to(root / "cat" / "0.png")
    got = read_images(str(root))
    assert got.classes == ("cat", "dog", "empty")
    assert got.labels.tolist() == [0, 1, 1, 1]
    assert got.images[:, 0, 0, 0].tolist() == [0, 0, 1, 0]


def test_a_hundred_thousand_files_are_no_burden_where_a_few_are_wanted(tmp_path: Path) -> None:
    root = folder(tmp_path, cat=1, dog=1)
    for name in ("cat", "dog"):
        for number in range(50_000):
            (root / name / f"{number:05}.png").hardlink_to(root / name / "0.png")
    (root / "dog" / "1.png").write_bytes(b"no image")  # beyond the limit, so never opened
    assert read_images(str(root), limit=10).labels.tolist() == [0] * 10


def test_class_names_that_are_not_text_are_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff\n")).mkdir()
    (tmp_path / os.fsdecode(b"a\xff\n") / "0.png").write_bytes(png())
    assert read_images(str(tmp_path)).classes == (r"a\udcff\n",)


def test_links_that_leave_the_folder_or_go_in_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(png())
    root = folder(tmp_path / "root", cat=1)
    link = root / "cat" / "x.png"
    for target in (tmp_path / "outside.png", link, tmp_path / "nowhere.png"):
        link.symlink_to(target)
        with pytest.raises(BadInputError, match=r"x\.png: a symbolic link that leaves"):
            read_images(str(root))
        link.unlink()
    (root / "dog").symlink_to(tmp_path)
    with pytest.raises(BadInputError, match="dog: a symbolic link that leaves"):
        read_images(str(root))


def test_folders_of_another_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no parquet file and no class folder"):
        read_images(str(tmp_path))
    folder(tmp_path / "empty", cat=0)
    with pytest.raises(BadInputError, match=r"no images in its class folders \['cat'\]"):
        read_images(str(tmp_path / "empty"))
    folder(tmp_path / "split" / "train", cat=1)
    with pytest.raises(BadInputError, match=r"a folder in a class folder; did you mean .*train\?"):
        read_images(str(tmp_path / "split"))
    os.mkfifo(folder(tmp_path / "pipe", cat=1) / "cat" / "pipe.png")
    with pytest.raises(BadInputError, match=r"pipe\.png: not a regular file"):
        read_images(str(tmp_path / "pipe"))
