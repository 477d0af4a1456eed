"""NPD-LS as a whole: what it leaves alone, what it keeps, and that it stops where it would do harm."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from neural_polarizer import purify
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.guard import Guarded, Point
from neural_polarizer.defenses.patient import _cost
from neural_polarizer.defenses.recipes import make_defense, with_options
from neural_polarizer.defenses.stand_ins import LeastStandIns
from neural_polarizer.defenses.stand_ins.defense import _remarks as remarks_with
from neural_polarizer.defenses.stand_ins.judge import cross_fitted
from neural_polarizer.defenses.stand_ins.settings import Bank, Guard, Learning, Looks, Search
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import changed
from toys import Untraceable, tiny_images, tiny_model

SMALL = LeastStandIns(
    batch_size=16,
    looks=Looks(pixels=4, features=1, program_steps=20),
    in_pixels=Search(steps=3, images=4),
    in_features=Search(steps=3, images=4),
    bank=Bank(taught=8, images=4),
    learning=Learning(steps=4),
)


def tiny() -> tuple[nn.Module, ImageSet]:
    return tiny_model(), tiny_images(60)


@pytest.mark.long
def test_the_model_and_the_global_generator_stay_as_they_are() -> None:
    model, clean = tiny()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    SMALL.repair(model, clean, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.long
def test_the_same_seed_learns_the_same_and_another_something_else() -> None:
    model, clean = tiny()
    first, again, other = (SMALL.repair(model, clean, seed=seed) for seed in (0, 0, 1))
    assert first.guarded == again.guarded
    assert [row["loss"] for row in first.history] == [row["loss"] for row in again.history]
    assert [row["loss"] for row in first.history] != [row["loss"] for row in other.history]


def colours() -> tuple[nn.Module, ImageSet]:
    """A network that tells red, green and blue images apart, and such images."""
    first, last = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        last.weight.copy_(20.0 * torch.eye(3))
    network = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    labels = torch.arange(3).repeat(20)
    noise = 20 * torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = 200 * torch.eye(3)[labels].view(-1, 3, 1, 1) + noise
    return network.eval(), ImageSet(images.to(torch.uint8), labels, ("red", "green", "blue"), "colours", ())


@pytest.mark.long
def test_a_learner_that_destroys_everything_gives_the_model_back_and_says_so() -> None:
    model, clean = colours()
    wild = replace(SMALL, learning=replace(SMALL.learning, lr=1e4, weights=(1.0,)), guard=Guard(max_acc_drop=0.0))
    wild = replace(wild, in_pixels=Search(steps=8, images=4, start=10.0, cap=50.0))  # its classes are far apart
    purified = wild.repair(model, clean, seed=0)
    pixels = to_pixels(clean.images)
    assert purified.guarded is not None
    assert purified.guarded.points[-1].acc < 0.9
    assert purified.guarded.chosen == 0
    assert torch.allclose(purified.model(pixels), model(pixels), atol=1e-5)
    assert any(note.startswith("not purified") for note in purified.notes)


def guarded(*points: Point, chosen: float = 1.0, held: int = 12, backdoor: float = 1.0) -> Guarded:
    return Guarded(points, chosen, 625, held, 0.006, backdoor, 0.02, 0.03)


def _remarks(found: Guarded, allowed: float = 0.006) -> list[str]:
    return remarks_with(found, allowed)


OFF, ON = Point(0.0, 0.9, 0.0, 0.0, 0.9, 0.9), Point(1.0, 0.9, 0.004, 0.0, 0.0, 0.0)


def test_what_the_guard_could_not_make_sure_of_is_said() -> None:
    assert _remarks(guarded(OFF, ON)) == []
    assert (
        "the layer loses 1.1 points of accuracy, more than the budget of 0.6"
        in _remarks(guarded(OFF, replace(ON, drop=0.011)))[0]
    )
    assert "loses 2.0 points of accuracy" in _remarks(guarded(OFF, replace(ON, acc=0.88)))[0]  # counted
    assert _remarks(guarded(OFF, replace(ON, acc=0.894))) == []  # three of 500 images are the budget
    assert "still lead 72 %" in _remarks(guarded(OFF, replace(ON, suspect=0.724)))[0]
    assert _remarks(guarded(OFF, replace(ON, stand_ins=0.724))) == []  # what a network follows by nature


def test_why_a_model_comes_back_as_it_was_is_said_as_it_is() -> None:
    (over,) = _remarks(guarded(OFF, ON, chosen=0.0))
    assert "nothing helps within the budget of 0.6 points" in over
    (nothing,) = _remarks(guarded(replace(OFF, stand_ins=0.0), ON, chosen=0.0, held=0))
    assert "no perturbation that the search can reach leads most images to a class" in nothing
    (weak,) = _remarks(guarded(replace(OFF, stand_ins=0.01), ON, chosen=0.0))
    assert "lead no images to a class, even without a layer" in weak
    assert all(each.startswith("not purified: ") for each in (over, nothing, weak))


def test_a_budget_that_would_do_is_named_with_what_it_costs_and_leaves() -> None:
    left, beyond = replace(ON, suspect=0.3, stand_ins=0.3), Point(1.5, 0.88, 0.0214, 0.02, 0.1, 0.04)
    (told,) = _remarks(guarded(OFF, left, beyond))
    assert "guard.max_acc_drop=0.022, which is expected to lose 2.1 points of accuracy and to leave 4 %" in told
    (halved,) = _remarks(guarded(OFF, left, beyond), allowed=0.012)  # the evidence allowed half of it
    assert "guard.max_acc_drop=0.043" in halved
    (against,) = _remarks(guarded(OFF, left, replace(beyond, least_drop=0.03)))
    assert "guard.max_acc_drop=0.03," in against  # the evidence speaks against a backdoor, and so does the error
    (gained,) = _remarks(guarded(OFF, left, replace(beyond, drop=-0.0004)))
    assert "expected to lose 0.0 points" in gained
    (none,) = _remarks(guarded(OFF, left, replace(beyond, drop=math.inf)))
    assert none.endswith("a larger guard.max_acc_drop")
    (unchanged,) = _remarks(guarded(OFF, beyond, chosen=0.0))
    assert "guard.max_acc_drop=0.022" in unchanged


@pytest.mark.long
def test_no_more_images_at_once_than_the_batch_size() -> None:
    _, clean = tiny()
    seen: list[int] = []
    network = Untraceable().eval()  # every pass goes through the whole of it
    network.register_forward_pre_hook(lambda _network, args: seen.append(len(args[0])))
    SMALL.repair(network, clean, seed=0)
    assert max(seen) <= 16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epochs", True), ("batch_size", True), ("target", True), ("guard", 3)],
        *[("looks", Looks(classes=True)), ("looks", Looks(floor=float("nan")))],
    ],
)
def test_settings_that_are_no_such_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(BadInputError, match=r"^\w+ of (LeastStandIns|Looks) cannot be (True|3|nan)$"):
        LeastStandIns(**{name: value})


@pytest.mark.long
@pytest.mark.parametrize("target", [2, "next"])
def test_whoever_knows_the_target_can_say_so(target: Any) -> None:
    model, clean = tiny()
    purified = replace(SMALL, target=target).repair(model, clean, seed=0)
    assert purified.suspect == target
    with pytest.raises(BadInputError, match="target"):
        replace(SMALL, target=9).repair(model, clean, seed=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning.pull", -1.0),
        ("guard.max_acc_drop", 1.5),
        ("in_pixels.steps", 0),
        ("batch_size", 0),
        ("pixels_at_once", 0),
        ("bank.taught", 0),
        ("epochs", 0),
        ("learning.weights", ()),
        ("looks.features", 0),
        ("looks.clear", 1.0),
        ("looks.alternative", 0.0),
        ("bank.held", 0),
        ("bank.held_stretch", ()),
        ("guard.folds", 0),
        ("guard.dials", ()),
        ("guard.dials", (1.0, 2.0)),
        ("guard.dials", (0.0, 2.0, 1.0)),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(BadInputError, match=rf"{name}.* must "):
        changed(SMALL, {name: value})


@pytest.mark.long
def test_epochs_are_passes_over_the_images_that_are_learned_from() -> None:
    model, clean = tiny()
    told: list[tuple[str, int]] = []
    some = replace(SMALL, epochs=3, batch_size=8)
    some.repair(model, clean, seed=0, progress=lambda phase, _done, total: told.append((phase, total)))
    fit = len(cross_fitted(clean.labels, some.guard, torch.Generator().manual_seed(0))[0].fit)
    steps = [total for phase, total in told if phase.startswith("weight")]
    assert set(steps) == {math.ceil(3 * fit / 4)}  # half of a batch is clean
    assert (some.steps(fit), some.steps(1), SMALL.steps(fit)) == (steps[0], *[SMALL.learning.steps] * 2)
    assert with_options(LeastStandIns(), "npd-ls", {"epochs": 3}) == LeastStandIns(epochs=3)
    assert make_defense("npd-ls", profile="gtsrb") == LeastStandIns()  # the paper's number of epochs is not ours


def test_each_image_judges_once_a_layer_that_is_not_learned_from_it() -> None:
    labels = torch.arange(10).repeat(50)
    folds = cross_fitted(labels, Guard(), torch.Generator().manual_seed(0))
    assert sorted(torch.cat([fold.judge for fold in folds]).tolist()) == list(range(500))
    for fold in folds:
        assert sorted([*fold.fit.tolist(), *fold.judge.tolist()]) == list(range(500))
        counts = torch.bincount(labels[fold.judge], minlength=10)
        assert int(counts.max() - counts.min()) <= 1


def test_a_single_image_judges_and_teaches() -> None:
    (only,) = cross_fitted(torch.zeros(1, dtype=torch.int64), Guard(), torch.Generator().manual_seed(0))
    assert only.fit.tolist() == only.judge.tolist() == [0]


@pytest.mark.parametrize(
    ("lost", "point", "said"),
    [(0.012, ON, True), (0.006, ON, False), (0.012, replace(ON, drop=0.01), False), (-0.1, ON, False)],
)
def test_a_loss_on_all_clean_images_is_said_where_the_guard_saw_none(lost: float, point: Point, said: bool) -> None:
    found = _cost(guarded(OFF, point), lost)
    assert bool(found) == said
    assert all("loses 1.2 points of accuracy, more than the budget of 0.6" in note for note in found)


def test_a_loss_without_a_guard_is_said_where_it_is_more_than_is_accepted() -> None:
    (said,) = _cost(None, 0.285)
    assert said.startswith("on the clean images the result loses 28.5 points of accuracy; compare both models")
    assert _cost(None, 0.02) == _cost(None, -0.1) == ()


def test_a_repair_has_its_cost_among_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neural_polarizer.defenses.patient._cost", lambda guarded, lost: (f"lost {lost:.2f}",))
    quick: dict[str, Any] = {"schedule.epochs": 1}
    found = purify(tiny_model(), tiny_images(16), "ft", device="cpu", force=True, **quick)
    assert found.clean_acc is not None
    assert found.notes[0] == f"lost {found.clean_acc[0] - found.clean_acc[1]:.2f}"
