"""What is tried at one place, in which order, and what is kept of it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from neural_polarizer.defenses.base import Run
from neural_polarizer.defenses.guard import Guarded, Point
from neural_polarizer.defenses.stand_ins.belief import Belief
from neural_polarizer.defenses.stand_ins.learn import Carried, Change, Lesson
from neural_polarizer.defenses.stand_ins.place import Learned, Place
from neural_polarizer.defenses.stand_ins.settings import Bank, Copies, Guard, Learning, Looks, Search, Settings
from toys import tiny_images, tiny_model

SMALL = Settings(
    batch_size=16,
    looks=Looks(pixels=4, features=1, program_steps=20),
    in_pixels=Search(steps=3, images=4),
    in_features=Search(steps=3, images=4),
    bank=Bank(taught=8, images=4, held=4),
    learning=Learning(weights=(0.03, 0.1, 0.3), steps=2),
    copies=Copies(total=1),
    guard=Guard(folds=2),
)
SEEN_IN_PIXELS = torch.tensor([9.0, 1.0, 9.0])


@pytest.fixture(scope="module")
def place() -> Place:
    clean = tiny_images(24)
    return Place(replace(SMALL, site="after:features"), tiny_model(), clean, Run(seed=0))


@pytest.fixture(scope="module")
def gathered(place: Place) -> tuple[Lesson, Belief]:
    found, belief = place.look()
    return place.lesson(found, belief), belief


def of_form(belief: Belief, forms: torch.Tensor) -> Belief:
    return replace(belief, forms=forms.expand(len(belief.aims), -1), factor=1.0)


class Script:
    """In place of learning: what the guard says of each attempt, told beforehand."""

    def __init__(self, place: Place, stand_ins: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.told, self.tried = iter(stand_ins), list[float]()
        self.nothing = [place.layer.nothing] * 2
        monkeypatch.setattr(place, "_learned", self.learned)

    def learned(self, lesson: Lesson, belief: Belief, generator: torch.Generator, weight: float) -> Learned:
        self.tried.append(weight)
        points = (Point(0.0, 1.0, 0.0, 0.0, 1.0, 1.0), Point(1.0, 1.0, 0.0, 0.0, *[next(self.told)] * 2))
        guarded = Guarded(points, 1.0, 24, 4, 0.006, 1.0, 0.02, weight)
        return Learned(self.nothing, guarded, lesson, [{"weight": weight}])


@pytest.mark.long
def test_weights_are_tried_until_one_does_or_does_more_harm_and_the_best_is_kept(
    place: Place, gathered: tuple[Lesson, Belief], monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson, belief = gathered
    script = Script(place, [0.5, 0.0], monkeypatch)
    assert place.learn(lesson, of_form(belief, SEEN_IN_PIXELS)).guarded.weight == 0.1
    assert script.tried == [0.03, 0.1]
    for told, kept, tried in (([0.5, 0.2, 0.3], 0.1, 3), ([0.5, 0.2, 0.1], 0.3, 3), ([0.5, 0.5, 0.1], 0.03, 2)):
        script = Script(place, told, monkeypatch)
        found = place.learn(lesson, of_form(belief, SEEN_IN_PIXELS))
        assert found.guarded.weight == kept
        assert len(script.tried) == len(found.history) == tried


@pytest.mark.parametrize(
    ("left", "factor", "dial", "last"),
    [
        (0.0, 9.0, 0.5, 4.0),  # as far as held-out stand-ins need
        (1.0, math.inf, 3.0, 4.0),  # and where some are left as far as the budget and its error allow
        (1.0, 3.0, 3.0, 4.0),
        (1.0, 1.7, 2.5, 3.0),  # less of the error is excused where a backdoor is not clearly seen
        (1.0, 1.0, 2.5, 3.0),  # and nothing where the evidence says nothing
        (1.0, 0.5, 0.5, 1.0),  # where it speaks against a backdoor, half as much, less the error
    ],
)
def test_the_dial_goes_as_far_as_stand_ins_need_and_the_budget_and_its_error_allow(
    place: Place,
    gathered: tuple[Lesson, Belief],
    monkeypatch: pytest.MonkeyPatch,
    left: float,
    factor: float,
    dial: float,
    last: float,
) -> None:
    lesson, belief = gathered

    def point(_changes: Any, at: float, _held: Any, _likeliest: int, errors: float) -> Point:
        share = 1.0 if at == 0 else left / (1 + at)
        return Point(at, 1.0, 0.003 * at, 0.003 * at - 0.001 * errors, share, share)

    monkeypatch.setattr(place.judge, "point", point)
    monkeypatch.setattr(
        place,
        "settings",
        replace(SMALL, guard=replace(SMALL.guard, dials=(0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 4.0), beyond=0.25)),
    )
    nothing: list[Change] = [place.layer.nothing] * 2
    found = place._guarded(nothing, lesson, 0.03, replace(belief, factor=factor, backdoor=1.0))
    assert found.chosen == dial
    assert found.points[-1].dial == last  # the first over the budget; nothing behind it is measured


def test_where_stand_ins_are_left_the_curve_goes_on_to_where_more_does_no_good(
    place: Place, gathered: tuple[Lesson, Belief], monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson, belief = gathered[0], replace(gathered[1], factor=1.0)
    measured: list[float] = []

    def point(_changes: Any, at: float, _held: Any, _likeliest: int, _errors: float) -> Point:
        measured.append(at)
        return Point(at, 1.0, 0.01 * at, 0.01 * at, *[max(0.0, 0.6 - 0.3 * at)] * 2)

    monkeypatch.setattr(place.judge, "point", point)
    guard = replace(SMALL.guard, dials=(0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0))
    monkeypatch.setattr(place, "settings", replace(SMALL, guard=guard))
    nothing = [place.layer.nothing] * 2
    guarded = replace(place._guarded(nothing, lesson, 0.03, belief), backdoor=1.0)
    assert guarded.chosen == 0.5
    measured.clear()
    learned = Learned(nothing, guarded, lesson, [])
    ahead = place.looked_ahead(learned, belief).guarded
    assert measured == [1.5, 2.0, 2.5]  # the last does more harm than the one before it
    assert ahead.better is not None
    assert (ahead.better.dial, ahead.chosen) == (2.0, 0.5)
    assert (
        place.looked_ahead(replace(learned, guarded=replace(guarded, enough=1.0)), belief).guarded.points
        == guarded.points
    )


def test_what_is_kept_is_the_mean_of_the_folds_at_the_chosen_dial(place: Place, gathered: Any) -> None:
    nothing = place.layer.nothing
    one = Change(nothing.mix + 0.2, nothing.shift + 0.4)
    guarded = Guarded(
        (Point(0.0, 1.0, 0.0, 0.0, 1.0, 1.0), Point(1.5, 1.0, 0.0, 0.0, 0.0, 0.0)),
        1.5,
        24,
        4,
        0.006,
        1.0,
        0.02,
        0.03,
    )
    place.keep(Learned([one, nothing], guarded, gathered[0], []))
    assert torch.allclose(place.layer.change.mix, nothing.mix + 0.15, atol=1e-6)
    assert torch.allclose(place.layer.change.shift, nothing.shift + 0.3, atol=1e-5)
    place.layer.set(nothing)


def test_a_fold_learns_nothing_from_the_images_that_judge_it(place: Place, gathered: tuple[Lesson, Belief]) -> None:
    lesson, _ = gathered
    four, shape = torch.arange(4), place.net.features.shape
    moves = torch.arange(4.0).view(4, *[1] * len(shape)).expand(4, *shape)
    carried = Carried(tuple(value[:4] for value in lesson.values), moves, four, four, four, four)
    lesson = replace(lesson, carried=[carried])
    kept = lesson.of(torch.tensor([1, 3, 5]))
    (bank,) = kept.carried
    assert bank.rows.tolist() == [1, 3]
    assert torch.equal(bank.values[0], lesson.values[0][[1, 3]])
    assert torch.equal(moves[[1, 3]], torch.zeros(0) if bank.moves is None else bank.moves)
    assert kept.fit.tolist() == [1, 3, 5]


def test_nothing_is_learned_from_what_judges(place: Place, gathered: tuple[Lesson, Belief]) -> None:
    lesson, _ = gathered
    assert sum(lesson.shares) == pytest.approx(1)
    for taught, held in zip(lesson.carried, lesson.held, strict=True):
        one, other = (
            {tuple(row.flatten().tolist()) for row in (each.values[0] if each.moves is None else each.moves)}
            for each in (taught, held)
        )
        assert not one & other
