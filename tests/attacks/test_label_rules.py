"""One source class only, several triggers for several targets, cover images, low rates."""

from typing import Any

import pytest
import torch
from quick_attacks import TEST, TRAIN, learned, quick_attack, untrained, workshop

from neural_polarizer.attacks import ATTACKS, Attack, BadNets, Bpp, WaNet
from neural_polarizer.errors import BadInputError
from toys import tiny_images


def grey(n: int) -> torch.Tensor:
    return torch.full((n, 3, 8, 8), 100, dtype=torch.uint8)


def test_of_one_source_class_half_is_relabelled_and_others_keep_their_label_with_the_trigger() -> None:
    attack = BadNets(label_rule="source-specific", target=2, source=1, poison_rate=0.5)
    train = tiny_images(40)
    poisoned, chosen, covers = attack.poisoned(train, seed=0)
    assert (len(chosen), len(covers)) == (5, 5)  # of ten images of class 1
    assert set(train.labels[chosen].tolist()) == {1}
    assert set(poisoned.labels[chosen].tolist()) == {2}
    assert 1 not in train.labels[covers].tolist()
    assert torch.equal(poisoned.labels[covers], train.labels[covers])
    for rows in (chosen, covers):
        assert torch.equal(poisoned.images[rows], attack.stamp(train.images[rows]))
    assert attack.relabel(torch.arange(4), 4).tolist() == [0, 2, 2, 3]
    triggered = attack.triggered(train)
    assert triggered.true_labels.tolist() == [1] * 10
    assert triggered.images.labels.tolist() == [2] * 10


def test_a_source_class_and_its_covers_have_defaults() -> None:
    assert BadNets(label_rule="source-specific").poisons_only == 1
    assert BadNets(label_rule="source-specific", target=1).poisons_only == 0
    none = BadNets(label_rule="source-specific", cover_ratio=0.0, poison_rate=0.1)
    assert none.poisoned(tiny_images(40), seed=0).covers.tolist() == []
    covered = BadNets(cover_ratio=2.0, poison_rate=0.1).poisoned(tiny_images(40), seed=0)
    assert (len(covered.chosen), len(covered.covers)) == (4, 8)


def test_several_triggers_are_quarter_turns_with_a_class_each() -> None:
    attack = BadNets(label_rule="multi-target", targets=(3, 1, 0, 2), size=2)
    stamped = [trigger.stamp(grey(1))[0, 0] for trigger in attack.triggers()]
    corners = [(-1, -1), (-1, 0), (0, 0), (0, -1)]  # turned back clockwise: bottom right, bottom left, ...
    for image, (row, column) in zip(stamped, corners, strict=True):
        assert int(image[row, column]) == 255
        assert int((image == 255).sum()) == 4
    assert [trigger.relabel(torch.zeros(1, dtype=torch.int64), 4).item() for trigger in attack.triggers()] == [
        3,
        1,
        0,
        2,
    ]


def test_triggers_take_turns_in_training_and_at_test() -> None:
    attack = BadNets(label_rule="multi-target", target=2, poison_rate=0.15, size=2)
    train = tiny_images(40)
    poisoned, chosen, _ = attack.poisoned(train, seed=0)
    assert poisoned.labels[chosen].tolist() == [2, 3, 0, 2, 3, 0]
    for turn, trigger in enumerate(attack.triggers()):
        assert torch.equal(poisoned.images[chosen[turn::3]], trigger.stamp(train.images[chosen[turn::3]]))
    triggered = attack.triggered(train)
    wanted = torch.tensor([2, 3, 0] * 14)[:40]
    kept = wanted != train.labels
    assert torch.equal(triggered.images.labels, wanted[kept])
    assert torch.equal(triggered.true_labels, train.labels[kept])
    first = attack.triggers()[0].stamp(train.images[:1])
    assert torch.equal(triggered.images.images[:1], first)


@pytest.mark.parametrize("name", ["badnets", "blended", "lf", "ssba", "trojan", "adap-blend", "adap-patch"])
def test_turned_triggers_differ(name: str) -> None:
    attack = quick_attack(name, label_rule="multi-target")
    images = [trigger.stamp(TEST.images) for trigger in attack.triggers(learned(attack))]
    assert len(images) == 3
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


@pytest.mark.parametrize("name", ["wanet", "input-aware", "bpp", "adap-patch", "ftrojan"])
def test_source_specific_attacks_can_be_planted(name: str) -> None:
    attack = quick_attack(name, label_rule="source-specific", poison_rate=0.25)
    planted = attack.plant(untrained(), TRAIN, learned(attack), workshop())
    assert set(attack.triggered(TEST, planted.state).true_labels.tolist()) == {1}


@pytest.mark.long
@pytest.mark.parametrize("rate", [0.005, 0.01, 0.03])
@pytest.mark.parametrize("name", ATTACKS)
def test_low_rates_can_be_planted_even_where_they_round_to_nothing(name: str, rate: float) -> None:
    attack = quick_attack(name, target=1, poison_rate=rate)
    planted = attack.plant(untrained(), TRAIN, learned(attack), workshop())
    assert planted.n_poisoned == round(rate * 48)
    assert len(attack.triggered(TEST, planted.state)) == 9


def multi(**more: Any) -> Attack:
    return BadNets(label_rule="multi-target", **more)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: BadNets(source=1), "a source class goes with the label rule source-specific"),
        (lambda: BadNets(label_rule="source-specific", source=0), "differs from the target class"),
        (lambda: BadNets(targets=(1, 2)), "go with the label rule multi-target"),
        (lambda: multi(targets=(1,)), "targets are 2 to 4 different classes"),
        (lambda: multi(targets=(1, 1)), "targets are 2 to 4 different classes"),
        (lambda: BadNets(cover_ratio=-1.0), "the cover ratio must be at least 0"),
        (lambda: Bpp(label_rule="multi-target"), "Bpp has one trigger only"),
        (lambda: WaNet(label_rule="multi-target"), "WaNet has one trigger only"),
        (lambda: multi(targets=(1, 4)).check(tiny_images(8)), r"the target class must lie in 0..3, got 4"),
        (lambda: multi().check(tiny_images(8, size=8).__class__(**wide())), "needs square images"),
        (
            lambda: BadNets(label_rule="source-specific", source=4).check(tiny_images(8)),
            r"source class must lie in 0..3",
        ),
        (
            lambda: BadNets(label_rule="source-specific", source=3).check(tiny_images(3)),
            "no image of the source class 3 to put the trigger on",
        ),
    ],
)
def test_rules_that_make_no_sense_are_refused(make: Any, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        make()


def wide() -> dict[str, Any]:
    images = tiny_images(4)
    return {**vars(images), "images": images.images[:, :, :4]}
