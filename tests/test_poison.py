"""Which images an attack changes: counts, labels, seeds."""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neural_polarizer.attacks import BadNets
from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.parquet import write_images
from neural_polarizer.data.poison import LabelRule, attacked_labels, poison, read_triggered, triggered_test
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError
from toys import quick, tiny_images


@dataclass
class White:
    """Paints everything white and labels it ``target``; remembers how often it was asked."""

    target: int = 0
    calls: list[int] = field(default_factory=list)

    def stamp(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return torch.full_like(images, 255)

    def relabel(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.full_like(labels, self.target)


def _labelled(n: int, num_classes: int) -> ImageSet:
    images = torch.zeros(n, 3, 1, 1, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % num_classes, tuple(map(str, range(num_classes))), "labelled")


@quick
@given(n=st.integers(1, 60), rate=st.floats(0.0, 1.0), seed=st.integers(0, 2**16))
def test_as_many_images_are_poisoned_as_the_rate_says_and_no_other_changes(n: int, rate: float, seed: int) -> None:
    train = tiny_images(n, size=2)
    poisoned, chosen, covers = poison(train, White(target=2), rate=rate, seed=seed)
    assert len(covers) == 0
    assert len(chosen) == round(rate * n)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    rest = torch.ones(n, dtype=torch.bool)
    rest[chosen] = False
    assert bool((poisoned.images[chosen] == 255).all())
    assert poisoned.labels[chosen].tolist() == [2] * len(chosen)
    assert torch.equal(poisoned.images[rest], train.images[rest])
    assert torch.equal(poisoned.labels[rest], train.labels[rest])


def test_the_training_set_itself_stays_clean() -> None:
    train = tiny_images(20)
    before = train.sha256()
    poisoned, _, _ = poison(train, White(), rate=1.0, seed=0)
    assert train.sha256() == before
    assert (poisoned.classes, poisoned.source) == (train.classes, train.source)


def test_images_of_all_classes_are_chosen_the_targets_included() -> None:
    """10 % of 10000 images of 10 classes: 1000, about 100 of each (four standard deviations: 38)."""
    train = _labelled(10_000, 10)
    _, chosen, _ = poison(train, White(target=0), rate=0.1, seed=0)
    counts = torch.bincount(train.labels[chosen], minlength=10)
    assert int(counts.sum()) == 1000
    assert int((counts - 100).abs().max()) < 38


def test_same_seed_same_images_other_seed_other_images() -> None:
    train = tiny_images(50, size=2)
    runs = [poison(train, White(), rate=0.4, seed=seed)[1].tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("all-to-one", [2, 2, 2, 2]), ("all-to-all", [1, 2, 3, 0])],
    ids=["all-to-one", "all-to-all wraps around"],
)
def test_attacked_labels_by_hand(rule: LabelRule, expected: list[int]) -> None:
    assert attacked_labels(torch.arange(4), 4, rule, 2).tolist() == expected


def test_a_test_set_like_cifar10s_has_9000_triggered_images_all_to_one_and_10000_all_to_all() -> None:
    test = _labelled(10_000, 10)
    to_one = triggered_test(test, BadNets(target=0))
    assert len(to_one) == 9000
    assert set(to_one.true_labels.tolist()) == set(range(1, 10))
    assert set(to_one.images.labels.tolist()) == {0}
    to_all = triggered_test(test, BadNets(label_rule="all-to-all"))
    assert len(to_all) == 10_000
    assert torch.equal(to_all.images.labels, (to_all.true_labels + 1) % 10)


def test_triggered_images_keep_their_order_and_are_all_stamped() -> None:
    test, white = tiny_images(9), White(target=1)
    before = test.sha256()
    triggered = triggered_test(test, white)
    assert triggered.true_labels.tolist() == [0, 2, 3, 0, 2, 3, 0]
    assert white.calls == [7]
    assert bool((triggered.images.images == 255).all())
    assert test.sha256() == before


def test_a_triggered_set_comes_back_from_its_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    triggered = BadNets(target=1, size=2).triggered(tiny_images(9))
    path = tmp_path_factory.mktemp("sets") / "triggered.parquet"
    write_images(path, triggered.images, true_label=triggered.true_labels)
    again = read_triggered(path, size=None, num_classes=4)
    for label in (0, "next"):  # the column label has the attacker's already
        with pytest.raises(BadInputError, match="beside true_label; leave --poison-label out"):
            read_triggered(path, size=None, num_classes=4, poison_label=label)
    assert again.images.notes == ()
    (note,) = read_images(str(path)).notes
    assert note.endswith("images with a trigger, under the attacker's labels; --triggered is for these")
    assert torch.equal(again.true_labels, triggered.true_labels)
    assert again.images.sha256() == triggered.images.sha256()
    write_images(path, triggered.images, true_label=triggered.true_labels + 3)
    with pytest.raises(BadInputError, match=r"triggered.parquet: column true_label: labels must lie in 0..3"):
        read_triggered(path, size=None, num_classes=4)


def test_both_labels_of_a_triggered_set_count_as_the_model_counts(tmp_path: Path) -> None:
    images = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0]), ("dog", "cat", "ant"))
    write_images(tmp_path / "names.parquet", images, true_label=torch.tensor([1, 2]))
    model = ClassNames(("ant", "cat", "dog"))
    found = read_triggered(tmp_path / "names.parquet", size=None, num_classes=3, classes=model)
    assert (found.images.labels.tolist(), found.true_labels.tolist()) == ([2, 2], [1, 0])
    table = pq.read_table(tmp_path / "names.parquet").drop_columns("true_label")
    for true in (["cat", "ant"], [1.0, 0.0], ["1", "0"], [[0, 1, 0], [1, 0, 0]]):
        pq.write_table(table.append_column("true_label", [true]).replace_schema_metadata(), tmp_path / "x.parquet")
        again = read_triggered(tmp_path / "x.parquet", size=None, num_classes=3, classes=model)
        assert again.true_labels.tolist() == [1, 0]
