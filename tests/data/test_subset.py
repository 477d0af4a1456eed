import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_polarizer.data.images import ImageSet, class_counts
from neural_polarizer.data.subset import clean_subset, read_index, write_index
from neural_polarizer.errors import BadInputError


def tiny(counts: list[int], fill: int = 0) -> ImageSet:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.full((len(labels), 3, 1, 1), fill, dtype=torch.uint8)
    return ImageSet(images, labels, tuple(map(str, range(len(counts)))), "tiny")


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_a_subset_is_balanced_free_of_duplicates_and_repeatable(counts: list[int], share: float, seed: int) -> None:
    images = tiny(counts)
    n = max(1, round(share * len(images)))
    indices = clean_subset(images, n, seed=seed)
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert len(indices) == n
    taken = class_counts(images.select(indices)).tolist()
    most = max(taken)
    assert all(got == count or got >= most - 1 for got, count in zip(taken, counts, strict=True))
    assert torch.equal(indices, clean_subset(images, n, seed=seed))


def test_a_divisible_subset_has_equally_many_of_each_class() -> None:
    images = tiny([20, 30, 25])
    assert class_counts(images.select(clean_subset(images, 15, seed=0))).tolist() == [5, 5, 5]


def test_a_short_class_is_filled_up_from_the_others_in_turn() -> None:
    images = tiny([2, 30, 25])
    assert class_counts(images.select(clean_subset(images, 15, seed=0))).tolist() == [2, 7, 6]


def test_another_seed_chooses_other_images() -> None:
    images = tiny([50, 50])
    assert not torch.equal(clean_subset(images, 10, seed=0), clean_subset(images, 10, seed=1))


@pytest.mark.parametrize("n", [-1, 0, 6])
def test_an_impossible_number_is_refused(n: int) -> None:
    with pytest.raises(BadInputError, match=rf"tiny: a clean subset must hold 1\.\.5 images, got {n}"):
        clean_subset(tiny([3, 2]), n, seed=0)


def test_an_index_file_gives_the_same_indices_back(tmp_path: Path) -> None:
    images = tiny([5, 5])
    indices = clean_subset(images, 4, seed=3)
    write_index(tmp_path / "clean.json", indices, images, 3)
    assert torch.equal(read_index(tmp_path / "clean.json", images), indices)
    assert json.loads((tmp_path / "clean.json").read_text())["seed"] == 3


def test_an_index_of_other_images_is_refused(tmp_path: Path) -> None:
    images = tiny([5, 5])
    write_index(tmp_path / "clean.json", torch.tensor([1, 2]), images, 0)
    with pytest.raises(BadInputError, match="was made from other images"):
        read_index(tmp_path / "clean.json", tiny([5, 5], fill=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "not an index file"),
        ({"indices": [1, 10]}, r"whole numbers in 0\.\.9"),
        ({"indices": [True]}, r"whole numbers in 0\.\.9"),
        ({"indices": [-1]}, r"whole numbers in 0\.\.9"),
        ({"indices": "12"}, r"whole numbers in 0\.\.9"),
        ({"indices": []}, "must be present"),
        ({"indices": [3, 3]}, "must not repeat"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    images, path = tiny([5, 5]), tmp_path / "clean.json"
    write_index(path, torch.tensor([1, 2]), images, 0)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInputError, match=reason):
        read_index(path, images)
