"""NPD-LS as a whole: what it leaves alone, what it keeps, and that it stops where it would do harm."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.guard import Guarded, Point
from neural_polarizer.defenses.stand_ins import LeastStandIns
from neural_polarizer.defenses.stand_ins.defense import _remarks, held_out
from neural_polarizer.defenses.stand_ins.settings import Bank, Guard, Learning, Looks, Search
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import changed
from toys import Untraceable, tiny_images, tiny_model

SMALL = LeastStandIns(
    batch_size=16,
    looks=Looks(pixels=4, features=1, program_steps=20),
    in_pixels=Search(steps=3, images=4),
    in_features=Search(steps=3, images=4),
    bank=Bank(pixels=4, images=4, features=6),
    learning=Learning(steps=4, rounds=1, renewed=4, round_steps=2),
)


def tiny() -> tuple[nn.Module, ImageSet]:
    return tiny_model(), tiny_images(60)


def test_the_model_and_the_global_generator_stay_as_they_are() -> None:
    model, clean = tiny()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    SMALL.repair(model, clean, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_learns_the_same_and_another_something_else() -> None:
    model, clean = tiny()
    first, again, other = (SMALL.repair(model, clean, seed=seed) for seed in (0, 0, 1))
    assert first.guarded == again.guarded
    assert [row["loss"] for row in first.history] == [row["loss"] for row in again.history]
    assert [row["loss"] for row in first.history] != [row["loss"] for row in other.history]


def test_a_learner_that_destroys_everything_gives_the_model_back_and_says_so() -> None:
    model, clean = tiny()
    with torch.no_grad():  # images of their own model's making, so that there is accuracy to lose
        clean = replace(clean, labels=model(to_pixels(clean.images)).argmax(dim=1))
    wild = replace(SMALL, learning=replace(SMALL.learning, lr=50.0, weights=(1.0,)), guard=Guard(max_acc_drop=0.0))
    purified = wild.repair(model, clean, seed=0)
    pixels = to_pixels(clean.images)
    assert purified.guarded is not None
    assert purified.guarded.chosen == 0
    assert torch.allclose(purified.model(pixels), model(pixels), atol=1e-5)
    assert any(note.startswith("not purified") for note in purified.notes)


def test_what_the_guard_could_not_make_sure_of_is_said() -> None:
    point = Point(1.0, 0.9, 0.011, 0.004, 0.0)
    sure = Guarded((Point(0.0, 0.9, 0.0, 0.0, 0.9), replace(point, drop=0.004)), 1.0, 625, True, 0.006, 0.03, 0)
    assert _remarks(sure, 0.02) == []
    assert "1.1 points, is above the budget of 0.6" in _remarks(replace(sure, points=(sure.points[0], point)), 0.02)[0]
    assert "none could be held out" in _remarks(replace(sure, held_out=False, judges=50), 0.02)[0]
    left = replace(point, drop=0.004, stand_ins=0.724)
    assert "still lead 72 %" in _remarks(replace(sure, points=(sure.points[0], left)), 0.02)[0]


def test_no_more_images_at_once_than_the_batch_size() -> None:
    _, clean = tiny()
    seen: list[int] = []
    network = Untraceable().eval()  # every pass goes through the whole of it
    network.register_forward_pre_hook(lambda _network, args: seen.append(len(args[0])))
    SMALL.repair(network, clean, seed=0)
    assert max(seen) <= 16


@pytest.mark.parametrize("target", [2, "next"])
def test_whoever_knows_the_target_can_say_so(target: Any) -> None:
    model, clean = tiny()
    purified = replace(SMALL, target=target).repair(model, clean, seed=0)
    assert purified.suspect == target
    with pytest.raises(BadInputError, match="target"):
        replace(SMALL, target=9).repair(model, clean, seed=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning.pull", -1.0), ("guard.held_out", 1.5), ("looks.floor", float("nan")), ("batch_size", 0)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(BadInputError, match="must be"):
        changed(SMALL, {name: value})


def test_held_out_images_are_of_all_classes_and_apart_where_there_are_enough() -> None:
    labels = torch.arange(10).repeat(50)
    fit, held = held_out(labels, Guard(), torch.Generator().manual_seed(0))
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(500))
    counts = torch.bincount(labels[held], minlength=10)
    assert len(held) == 125
    assert int(counts.max() - counts.min()) <= 1
    few, same = held_out(labels[:50], Guard(), torch.Generator().manual_seed(0))
    assert torch.equal(few, same)
