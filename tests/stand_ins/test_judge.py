"""The judge: originals and harder copies count alike, and held-out stand-ins by aim."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.guard import margins
from neural_polarizer.defenses.stand_ins import judge as judging
from neural_polarizer.defenses.stand_ins.judge import Fold, Judge
from neural_polarizer.defenses.stand_ins.learn import Carried, Change, Layer
from neural_polarizer.defenses.stand_ins.seen import seen
from neural_polarizer.defenses.stand_ins.settings import Copies, Settings
from toys import tiny_images, tiny_model


@pytest.fixture
def judge() -> Judge:
    net = Engine(tiny_model(), tiny_images(12), seed=0, batch_size=5)
    net.calibrate()
    net.polarizer.requires_grad_(False)
    rows = torch.arange(12)
    folds = [Fold(rows[rows % 2 != part], rows[rows % 2 == part]) for part in (0, 1)]
    return Judge(seen(net, 5), Layer(net), folds, Settings(batch_size=5, copies=Copies(total=24)), seed=0)


def held(judge: Judge, aims: list[int], works: list[bool]) -> list[Carried]:
    """Stand-ins on two images each, which lead both to the label that the network gives them, or none."""
    said = judge.seen.logits.argmax(dim=1)
    rows = torch.arange(2).repeat(len(aims))
    led = torch.stack([said[:2] if yes else (said[:2] + 1) % 4 for yes in works]).flatten()
    of = torch.tensor(aims, dtype=torch.int64).repeat_interleave(2)
    which = torch.arange(len(aims)).repeat_interleave(2)
    return [Carried(tuple(value[rows] for value in judge.seen.values), None, rows, led, of, which)]


def test_the_identity_costs_nothing_however_far_the_dial_goes(judge: Judge) -> None:
    point = judge.point([judge.layer.nothing] * 2, 2.0, held(judge, [0], [True]), 0, 2.0)
    expected = (judge.seen.logits.argmax(dim=1) == judge.seen.labels).float().mean()
    assert (point.drop, point.least_drop, point.stand_ins) == (0.0, -2 * judge._guard.systematic, 1.0)
    assert point.acc == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("originals", "copies", "drop", "least"),
    [
        ((0.02, 0.004), (0.04, 0.012), 0.03, 0.03 - 2 * math.hypot(0.008, 0.0025)),  # the mean of both, less two errors
        ((0.02, 0.01), (0.04, 0.03), 0.03, 0.03 - 0.022),  # however large the error
        ((0.02, 0.008), (-0.5, 0.008), 0.01, 0.01 - 2 * math.hypot(0.008, 0.0025)),  # a gain on copies pays for nothing
        ((-0.02, 0.0), (0.0, 0.0), -0.01, -0.015),  # what more images do not lower
    ],
)
def test_originals_and_copies_count_alike(
    judge: Judge,
    monkeypatch: pytest.MonkeyPatch,
    originals: tuple[float, float],
    copies: tuple[float, float],
    drop: float,
    least: float,
) -> None:
    told: Iterator[tuple[float, float]] = iter((originals, copies))
    shapes = []

    def expected_drop(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
        shapes.append((before.shape, after.shape))
        return next(told)

    monkeypatch.setattr(judging, "expected_drop", expected_drop)
    point = judge.point([judge.layer.nothing] * 2, 1.0, held(judge, [0], [False]), 0, 2.0)
    assert (point.drop, point.least_drop) == pytest.approx((drop, least))
    assert shapes == [((1, 12), (1, 12)), ((2, 12), (2, 12))]


def test_the_accuracy_is_a_count_of_images_to_the_last_bit(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = torch.tensor([1.0] * 5 + [-1.0] * 7)
    monkeypatch.setattr(judging, "margins", lambda logits, _labels: answers[: len(logits)])
    point = judge.point([judge.layer.nothing] * 2, 0.0, held(judge, [0], [False]), 0, 2.0)
    assert point.acc == sum(int(answers[: len(fold.judge)].gt(0).sum()) for fold in judge.folds) / 12


def test_each_image_is_judged_by_the_layer_of_its_own_fold(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = judge.layer.nothing
    wild = Change(nothing.mix + 50.0, nothing.shift - 200.0)
    judge.layer.set(wild, 0.5)
    with torch.no_grad():
        broken = judge.seen.net.logits(judge.seen.values)
    known: list[torch.Tensor] = []

    def expected_drop(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
        known.append(after)
        return 0.0, 0.0

    monkeypatch.setattr(judging, "expected_drop", expected_drop)
    judge.point([nothing, wild], 0.5, held(judge, [0], [False]), 0, 2.0)
    labels = judge.seen.labels
    expected = torch.cat([margins(judge.seen.logits[0::2], labels[0::2]), margins(broken[1::2], labels[1::2])])
    assert torch.allclose(known[0][0], expected, atol=1e-4)
    assert not torch.allclose(margins(broken, labels), margins(judge.seen.logits, labels), atol=0.1)


def test_of_each_aim_the_upper_quartile_counts(judge: Judge) -> None:
    natural = held(judge, [0] * 5 + [1] * 3, [True] + [False] * 4 + [True] * 3)
    assert judge.led(natural) == {0: (0.0, 5), 1: (1.0, 3)}  # one of five is no trigger's; all of three are
    assert judge.led(held(judge, [0], [True])[:0]) == {}
    (bank,) = natural
    wild = 100 * torch.randn(len(bank), 6, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, 8)
    assert judge.led([replace(bank, moves=wild)]) != judge.led(natural)


def test_aims_count_by_their_stand_ins_and_the_likeliest_is_told_apart(judge: Judge) -> None:
    mixed = held(judge, [0] * 5 + [1] * 3, [True] + [False] * 4 + [True] * 3)
    found = [judge.point([judge.layer.nothing] * 2, 1.0, mixed, likeliest, 2.0) for likeliest in (0, 1, 2)]
    assert [point.stand_ins for point in found] == pytest.approx([3 / 8] * 3)
    assert [point.suspect for point in found] == pytest.approx([0.0, 1.0, 3 / 8])  # of class 2 there are none


def test_stand_ins_judge_at_several_lengths(judge: Judge) -> None:
    assert judge.lengths(4).tolist() == [1.0, 1.5, 2.0, 1.0]


def test_copies_are_seen_as_the_network_sees_them(judge: Judge) -> None:
    assert len(judge._copies) == 2  # 24 of 12 images
    assert judge._before.shape == (2, 12)
    assert not torch.equal(judge._copies[0][0], judge.seen.values[0])
