"""Parquet files that are parts of one data set, by the numbers in their names."""

from pathlib import Path

import pytest
from folder_cases import folder

from neural_polarizer.data.parquet import write_images
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["train-00001-of-00002"], "train-00000-of-00002"),
        (["train-00000-of-00003", "train-00002-of-00003"], "train-00001-of-00003"),
        (["train-00000-of-00002-abc", "other-train-00000-of-00001"], "train-00001-of-00002"),
        (["a_1_of_3", "a_3_of_3"], "a_2_of_3"),
        (["part-00000-of-999999999"], "part-00001-of-999999999"),
    ],
)
def test_numbered_files_of_which_one_is_missing_are_refused(tmp_path: Path, names: list[str], missing: str) -> None:
    images = read_images(str(folder(tmp_path / "images", cat=1, dog=1)))
    (tmp_path / "data").mkdir()
    for name in names:
        write_images(tmp_path / "data" / f"{name}.parquet", images)
    with pytest.raises(BadInputError, match=rf"{missing}\*: missing, of \d+ numbered files only \d are there; fetch"):
        read_images(str(tmp_path / "data"))
    if names[0].startswith("train"):
        pytest.importorskip("datasets")
        with pytest.raises(BadInputError, match=rf"{missing}\*: missing"):
            read_images(f"hf:{tmp_path / 'data'}")
    assert len(read_images(str(tmp_path / "data" / f"{names[0]}.parquet"))) == 2


def test_numbered_files_of_two_uploads_are_not_mixed(tmp_path: Path) -> None:
    images = read_images(str(folder(tmp_path / "images", cat=1, dog=1)))
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        write_images(tmp_path / "data" / f"{name}.parquet", images)
    with pytest.raises(BadInputError, match=r"train-\*: files of several numberings, of 1 and 2; keep one"):
        read_images(str(tmp_path / "data"))


@pytest.mark.parametrize("names", [["a-00001-of-00002", "a-00002-of-00002"], ["a-0-of-2-x", "a-1-of-2-y"], ["a-of-2"]])
def test_numbered_files_that_are_all_there_are_read(tmp_path: Path, names: list[str]) -> None:
    images = read_images(str(folder(tmp_path / "images", cat=1, dog=1)))
    (tmp_path / "data").mkdir()
    for name in names:
        write_images(tmp_path / "data" / f"{name}.parquet", images)
    assert len(read_images(str(tmp_path / "data"))) == 2 * len(names)
