import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folder_cases import folder
from image_bytes import png

from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.parquet import write_images
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError


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


@pytest.mark.long
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
    for target, reason in (
        (tmp_path / "outside.png", "leaves"),
        (link, "is broken"),
        (tmp_path / "no.png", "is broken"),
    ):
        link.symlink_to(target)
        with pytest.raises(BadInputError, match=rf"x\.png: a symbolic link that {reason}"):
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
    folder(tmp_path / "split" / "val", cat=1)
    with pytest.raises(BadInputError, match=r"holds splits.*did you mean .*split/train or .*split/val\?"):
        read_images(str(tmp_path / "split"))
    folder(tmp_path / "flat", train=1, test=1)
    with pytest.raises(BadInputError, match=r"\['test', 'train'\] are splits without class folders"):
        read_images(str(tmp_path / "flat"))
    folder(tmp_path / "around" / "photos", cat=1, dog=1)
    with pytest.raises(BadInputError, match=r"in the only class folder; did you mean .*photos\?"):
        read_images(str(tmp_path / "around"))
    with pytest.raises(BadInputError, match=r"its only folder is 'images', which names no class"):
        read_images(str(folder(tmp_path / "loose", images=2)))
    os.mkfifo(folder(tmp_path / "pipe", cat=1) / "cat" / "pipe.png")
    with pytest.raises(BadInputError, match=r"pipe\.png: not a regular file"):
        read_images(str(tmp_path / "pipe"))


def test_folders_in_a_folder_called_images_are_classes_one_level_below(tmp_path: Path) -> None:
    for count in (2, 1):
        folder(tmp_path / str(count) / "Images", **dict.fromkeys(["00000", "00001"][:count], 1))  # GTSRB's
        with pytest.raises(BadInputError, match=r"a folder in the only class folder; did you mean .*Images\?"):
            read_images(str(tmp_path / str(count)))


def test_images_beside_the_class_folders_are_told(tmp_path: Path) -> None:
    root = folder(tmp_path, cat=1, dog=1)
    (root / "0.PNG").write_bytes(png())
    (root / "readme.txt").write_text("x")
    assert read_images(str(root)).notes == (f"{root}: left out 1 images beside the class folders",)


def test_folders_that_are_numbers_are_ordered_by_value(tmp_path: Path) -> None:
    got = read_images(str(folder(tmp_path, **{"0": 1, "1": 1, "2": 1, "10": 1})))
    assert got.classes == ("0", "1", "2", "10")
    assert got.labels.tolist() == [0, 1, 3, 2]  # the files still come in the order of their names
    assert "ordered by value" in got.notes[0]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["3", "11"], [11, 3]),  # of 12: the numbers say which
        (["003", "0011"], [11, 3]),
        ([str(n) for n in range(1, 13)], [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]),  # counted from 1
        ([str(10 * n) for n in range(12)], [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_folders_that_are_numbers_say_which_of_the_models_classes_they_are(
    tmp_path: Path, names: list[str], labels: list[int]
) -> None:
    got = read_images(str(folder(tmp_path, **dict.fromkeys(names, 1))), num_classes=12)
    assert got.labels.tolist() == labels
    assert got.num_classes == 12
    assert ("the classes are not numbered without gaps, so 10 is class 1" in got.notes) == ("110" in names)
    assert ("the classes are numbered from 1, so 1 is class 0" in got.notes) == ("12" in names)


def test_names_behind_the_name_of_a_column_are_those_of_classes(tmp_path: Path) -> None:
    root = str(folder(tmp_path, **{"label=ant": 1, "label=zebra": 1}))
    assert read_images(root).classes == ("ant", "zebra")
    assert read_images(root, classes=ClassNames(("zebra", "ant"))).labels.tolist() == [1, 0]


def test_numbers_that_cannot_be_the_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="has 2 classes, but 12 are expected: it has 3, 12"):
        read_images(str(folder(tmp_path / "a", **{"3": 1, "12": 1})), num_classes=12)
    with pytest.raises(BadInputError, match="two class folders are the same number"):
        read_images(str(folder(tmp_path / "b", **{"1": 1, "01": 1})))


def test_what_operating_systems_and_notebooks_leave_behind_is_left_out_and_told(tmp_path: Path) -> None:
    root = folder(tmp_path, cat=2, dog=1, __MACOSX=1)
    (root / ".ipynb_checkpoints").mkdir()
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "cat" / ".ipynb_checkpoints").mkdir()
    (root / "cat" / "._0.png").write_bytes(b"x")
    (root / "dog" / "Thumbs.db").write_bytes(b"x")
    (root / "dog" / "1.avif").write_bytes(b"x")
    (root / "dog" / "LICENSE").write_bytes(b"x")
    got = read_images(str(root), num_classes=2)
    assert got.labels.tolist() == [0, 0, 1]
    (note,) = got.notes
    assert "2 files that are no images by their ending (.avif: 1, no ending: 1)" in note
    assert "hidden or system entries (._0.png, .ipynb_checkpoints, Thumbs.db, __MACOSX)" in note


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JFIF", ".pjpeg"])
def test_jpegs_of_other_endings_are_read(tmp_path: Path, ending: str) -> None:
    root = folder(tmp_path, cat=1)
    (root / "cat" / "0.png").rename(root / "cat" / f"0{ending}")
    assert len(read_images(str(root))) == 1


def test_tiny_imagenet_is_read_as_it_is_unpacked(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        folder(tmp_path / "train" / name, images=2)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("x")
    got = read_images(str(tmp_path / "train"))
    assert (got.classes, got.labels.tolist()) == (("n01", "n02"), [0, 0, 1, 1])
    folder(tmp_path / "val", images=2)
    with pytest.raises(BadInputError, match=r"names no class.*val_annotations.txt"):
        read_images(str(tmp_path / "val"))
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("0.png\tn02\t0\t0\t1\t1\n1.png\tn01\t0\t0\t1\t1\n")
    got = read_images(str(tmp_path / "val"), num_classes=2)
    assert (got.classes, got.labels.tolist()) == (("n01", "n02"), [1, 0])
    annotations.write_text("0.png\tn02\n")
    with pytest.raises(BadInputError, match=r"does not name the class of 1\.png"):
        read_images(str(tmp_path / "val"))


def test_links_to_folders_and_endless_nesting_in_a_class_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", cat=1, dog=1)
    (root / "cat" / "again").symlink_to(root)
    with pytest.raises(BadInputError, match="again: a link to a folder in a class folder"):
        read_images(str(root))
    (tmp_path / "b" / "dog").mkdir(parents=True)
    (tmp_path / "b" / "cat" / "/".join("x" * 12)).mkdir(parents=True)
    with pytest.raises(BadInputError, match="too many folders in one another"):
        read_images(str(tmp_path / "b"))


def test_links_that_leave_the_folder_are_followed_where_the_user_says_so(tmp_path: Path) -> None:
    outside = folder(tmp_path / "outside", cat=2, dog=1)
    root = folder(tmp_path / "root", cat=0)
    (root / "cat" / "a.png").symlink_to(outside / "cat" / "0.png")
    (root / "dog").symlink_to(outside / "dog")
    with pytest.raises(BadInputError, match=r"leaves the folder; if you trust .* say '.*root\?links=follow'"):
        read_images(str(root))
    got = read_images(f"{root}?links=follow")
    assert (got.classes, got.labels.tolist()) == (("cat", "dog"), [0, 1])
    (root / "cat" / "b.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match=r"b\.png: a symbolic link that is broken"):
        read_images(f"{root}?links=follow")
    (root / "cat" / "b.png").unlink()
    (root / "cat" / "again").symlink_to(root)
    with pytest.raises(BadInputError, match="too many folders in one another"):
        read_images(f"{root}?links=follow")


def test_folders_beside_parquet_files_are_left_out_and_told(tmp_path: Path) -> None:
    write_images(tmp_path / "all.parquet", read_images(str(folder(tmp_path.parent / "images", cat=1, dog=1))))
    assert read_images(str(tmp_path)).notes == ()
    folder(tmp_path, cat=1)
    (note,) = read_images(str(tmp_path)).notes
    assert note.endswith("its parquet files were read, and its folders left out: ['cat']")


def test_parquet_files_that_are_links_are_followed_too(tmp_path: Path) -> None:
    write_images(tmp_path / "blob", read_images(str(folder(tmp_path / "images", cat=1, dog=1))))
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    (tmp_path / "snapshot" / "data" / "train-0.parquet").symlink_to(tmp_path / "blob")
    with pytest.raises(BadInputError, match=r"snapshot\?links=follow"):
        read_images(str(tmp_path / "snapshot"))
    assert len(read_images(f"{tmp_path / 'snapshot'}?links=follow")) == 2


@pytest.mark.parametrize("name", ["data", "plain_text"])
def test_a_repository_of_a_data_set_keeps_its_parquet_files_in_any_one_folder(tmp_path: Path, name: str) -> None:
    images = read_images(str(folder(tmp_path / "images", cat=1, dog=1)))
    (tmp_path / "clone" / name).mkdir(parents=True)
    (tmp_path / "clone" / "README.md").write_text("x")
    write_images(tmp_path / "clone" / name / "train-00000-of-00001.parquet", images)
    assert read_images(str(tmp_path / "clone")).labels.tolist() == [0, 1]
    write_images(tmp_path / "clone" / name / "test-00000-of-00001.parquet", images)
    with pytest.raises(BadInputError, match=r"mix training and test data.*or a split, as hf:.*clone:train"):
        read_images(str(tmp_path / "clone"))
    (tmp_path / "clone" / "other").mkdir()
    write_images(tmp_path / "clone" / "other" / "train.parquet", images)
    with pytest.raises(BadInputError, match="parquet files in several folders; did you mean"):
        read_images(str(tmp_path / "clone"))


def test_parquet_files_in_folders_that_are_called_by_their_label_have_it(tmp_path: Path) -> None:
    for i in range(40):  # more than a repository has
        (tmp_path / f"label={i}").mkdir()
        pq.write_table(pa.table({"image": [png((i, 0, 0))], "row": [i]}), tmp_path / f"label={i}" / "part-0.parquet")
    (tmp_path / "_SUCCESS").touch()
    got = read_images(str(tmp_path), num_classes=40)
    assert got.labels.tolist() == got.images[:, 0, 0, 0].tolist()
    assert sorted(got.labels.tolist()) == list(range(40))
    (tmp_path / "words" / "class=a%20cat").mkdir(parents=True)
    pq.write_table(pa.table({"image": [png()]}), tmp_path / "words" / "class=a%20cat" / "part-0.parquet")
    assert read_images(str(tmp_path / "words"), classes=ClassNames(("dog", "a cat"))).labels.tolist() == [1]


def test_parquet_files_in_folders_that_are_called_by_something_else_are_not_mixed(tmp_path: Path) -> None:
    for split in ("train", "other"):
        (tmp_path / f"split={split}").mkdir()
        pq.write_table(pa.table({"image": [png()], "label": [0]}), tmp_path / f"split={split}" / "part-0.parquet")
    with pytest.raises(BadInputError, match="parquet files in several folders; did you mean"):
        read_images(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([f"class_{n}" for n in range(12)], [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([f"class {n}" for n in range(1, 13)], [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([f"{n}_name{n}" for n in range(12)], [0, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (["c10", "c3", "c7"], [10, 3, 7]),  # of 12: the numbers say which
        ([f"label={n}" for n in range(12)], [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([f"类别{n}" for n in range(12)], [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([f"{n}{chr(122 - n)}" for n in range(12)], [0, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([f"{chr(122 - n)}_{n}" for n in range(12)], list(range(11, -1, -1))),
        ([f"{chr(122 - n)} ({n})" for n in range(1, 13)], list(range(11, -1, -1))),
        ([f"v2 class {n}" for n in range(12)], [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_numbers_within_the_names_of_folders_order_them_too(
    tmp_path: Path, names: list[str], labels: list[int]
) -> None:
    got = read_images(str(folder(tmp_path, **dict.fromkeys(names, 1))), num_classes=12)
    assert got.labels.tolist() == labels
    assert got.notes[0].startswith("the classes are numbered, so they were ordered by value, and not as text")


@pytest.mark.parametrize(
    "names",
    [
        ["a10", "b9", "c1"],
        ["v1x", "v2", "v10"],
        ["n0144", "n02", "n3"],
        ["t1", "t01", "t2"],
        ["z_0", "y_2", "x_3"],
        ["0-9", "10-19", "20-29"],
    ],
)
def test_other_names_stay_in_the_order_of_text(tmp_path: Path, names: list[str]) -> None:
    got = read_images(str(folder(tmp_path, **dict.fromkeys(names, 1))), num_classes=3)
    assert got.classes == tuple(sorted(names))
    assert got.notes == ()


def test_folders_without_images_are_named_where_there_are_too_many(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"3 classes, but 2 are expected: .* \(without images: labels\)"):
        read_images(str(folder(tmp_path, cat=1, dog=1, labels=0)), num_classes=2)


@pytest.mark.parametrize(
    "splits", [("test_images", "train_images"), ("seg_test", "seg_train"), ("test_v2", "train_v2"), ("fold1", "fold2")]
)
def test_splits_go_by_longer_names_too(tmp_path: Path, splits: tuple[str, str]) -> None:
    for split in splits:
        folder(tmp_path / split, cat=1, dog=1)
    with pytest.raises(BadInputError, match=rf"holds splits.*did you mean .*{splits[0]} or .*{splits[1]}\?"):
        read_images(str(tmp_path), num_classes=2)


def test_classes_that_are_called_like_splits_stay_classes(tmp_path: Path) -> None:
    two = folder(tmp_path / "two", bullet_train=1, steam_train=1)
    assert read_images(str(two)).classes == ("bullet_train", "steam_train")
    for name in ("bullet_train", "bus", "steam_train"):
        folder(tmp_path / "three" / name, camera_1=1, camera_2=1)
    assert read_images(str(tmp_path / "three")).classes == ("bullet_train", "bus", "steam_train")


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "$RECYCLE.BIN", "__MACOSX", "lost+found", "System Volume Information"),
        *("RECYCLER", "@Recycle", "Network Trash Folder"),
    ],
)
def test_folders_of_systems_are_no_classes(tmp_path: Path, name: str) -> None:
    assert read_images(str(folder(tmp_path, cat=1, dog=1, **{name: 1}))).classes == ("cat", "dog")


def test_images_in_several_folders_of_a_class_are_taken_and_told(tmp_path: Path) -> None:
    root = folder(tmp_path, **{"a": 0, "b": 0, "a/images": 2, "a/masks": 2, "b/images": 1})
    got = read_images(str(root))
    assert got.labels.tolist() == [0, 0, 0, 0, 1]
    told = f"{root}: a class has images in several folders, which are all taken: "
    assert got.notes == (f"{told}['a/images', 'a/masks']",)
    assert read_images(str(folder(root, a=1))).notes == (f"{told}['a', 'a/images', 'a/masks']",)
    folder(tmp_path / "deep", **{"a/x/images": 1, "a/y/images": 1, "b/images": 1})  # of one name
    assert "'a/x/images', 'a/y/images'" in read_images(str(tmp_path / "deep")).notes[0]
    assert read_images(str(folder(tmp_path / "other", **{"a/images": 2, "b/images": 1}))).notes == ()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data_batch_1", r"label, or torchvision:CIFAR10\?root=.*"),
        ("train.tar", r"holds archives, such as train\.tar; unpack them"),
        (
            "train-images-idx3-ubyte.gz",
            r"raw files; put them, unpacked, into DIR/MNIST/raw and give torchvision:MNIST\?",
        ),
        ("t10k-labels.idx1-ubyte", r"holds MNIST's raw files; put them, unpacked, into DIR/MNIST/raw"),
        ("readme.txt", r"with the columns file_name and label$"),
    ],
)
def test_a_folder_without_pictures_says_what_to_do_with_what_it_holds(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).touch()
    with pytest.raises(BadInputError, match=said):
        read_images(str(tmp_path / "data"))
    (tmp_path / "a.npz").touch()
    with pytest.raises(BadInputError, match=r"arrays; save them as images, or pass \(images, labels\) in Python"):
        read_images(str(tmp_path / "a.npz"))
