"""The guard: losses from few images, and what is let through."""

import math

import pytest
import torch

from neural_polarizer.defenses.guard import Point, allowed, chosen_dial, expected_drop, margins
from neural_polarizer.defenses.stand_ins.settings import Bank, Guard


def points(*drops_and_stand_ins: tuple[float, float]) -> list[Point]:
    return [Point(0.5 * place, 1 - drop, drop, drop, led, led) for place, (drop, led) in enumerate(drops_and_stand_ins)]


def test_the_expected_loss_is_that_of_many_images() -> None:
    generator = torch.Generator().manual_seed(0)
    before = 2 + 2 * torch.randn(200_000, generator=generator)
    after = before - 0.3 + 0.5 * torch.randn(200_000, generator=generator)
    counted = float((before > 0).float().mean() - (after > 0).float().mean())
    found, error = expected_drop(before[None], after[None])
    assert found == pytest.approx(counted, rel=0.15)
    few = [expected_drop(b[None], a[None])[0] for b, a in zip(before.split(100), after.split(100), strict=True)]
    counts = [
        float((b > 0).float().mean() - (a > 0).float().mean())
        for b, a in zip(before.split(100), after.split(100), strict=True)
    ]
    assert torch.tensor(few).std() < 0.7 * torch.tensor(counts).std()  # less chance in it
    assert error < 1e-3


def test_no_change_costs_nothing_and_what_is_not_finite_everything() -> None:
    before = torch.tensor([[1.0, -1.0, 2.0]])
    assert expected_drop(before, before) == (0.0, 0.0)
    assert expected_drop(before, torch.tensor([[1.0, torch.nan, 2.0]]))[0] == math.inf


def test_logits_that_all_shrink_alike_lose_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = 2 + 2 * torch.randn(1, 400, generator=generator)
    after = before - 0.2 + 0.5 * torch.randn(1, 400, generator=generator)
    assert expected_drop(before, 0.6 * before) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert expected_drop(before, 0.6 * after) == pytest.approx(expected_drop(before, after))
    assert expected_drop(before, torch.zeros(1, 400))[0] > 0.2


def test_copies_of_an_image_make_no_estimate_surer() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(1, 400, generator=generator)
    after = before - 0.2 + 0.3 * torch.randn(1, 400, generator=generator)
    once, often = expected_drop(before, after), expected_drop(before.expand(5, -1), after.expand(5, -1))
    assert often == pytest.approx(once)


def test_margins_are_to_the_best_other_class() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])
    assert margins(logits, torch.tensor([1, 2])).tolist() == [1.0, -4.0]


def test_the_dial_stops_at_the_first_point_over_the_budget() -> None:
    curve = points((0.0, 0.9), (0.001, 0.5), (0.02, 0.1), (0.0, 0.0))
    assert [point.dial for point in allowed(curve, 0.006)] == [0.0, 0.5]
    assert chosen_dial(curve, 0.006, backdoor=1.0, enough=0.01, beyond=0.5) == 0.5


def test_the_dial_goes_a_little_beyond_what_stand_ins_need() -> None:
    curve = points((0.0, 0.9), (0.0, 0.3), (0.0, 0.005), (0.0, 0.0), (0.0, 0.0))
    assert chosen_dial(curve, 0.006, backdoor=1.0, enough=0.01, beyond=0.0) == 1.0
    assert chosen_dial(curve, 0.006, backdoor=1.0, enough=0.01, beyond=0.5) == 1.5
    assert chosen_dial(curve, 0.006, backdoor=1.0, enough=0.01, beyond=0.9) == 1.5  # a distance, not a share
    more = points((0.0, 0.9), (0.0, 0.5), (0.0, 0.3), (0.0, 0.005), (0.0, 0.0))
    assert chosen_dial(more, 0.006, backdoor=1.0, enough=0.01, beyond=0.35) == 1.5


def test_the_little_more_stops_at_the_budget_as_everything_does() -> None:
    curve = [
        Point(0.0, 1.0, 0.0, 0.0, 0.9, 0.9),
        Point(0.5, 1.0, 0.005, 0.0, 0.0, 0.0),
        Point(1.0, 1.0, 0.009, 0.005, 0.0, 0.0),  # within its error
        Point(1.5, 1.0, 0.012, 0.007, 0.0, 0.0),
    ]
    assert chosen_dial(curve, 0.006, backdoor=1.0, enough=0.0, beyond=2.0) == 1.0
    assert chosen_dial(curve, 0.008, backdoor=1.0, enough=0.0, beyond=2.0) == 1.5
    assert chosen_dial(curve, 0.004, backdoor=1.0, enough=0.0, beyond=2.0) == 0.5


def test_accuracy_and_stand_ins_are_weighed_by_the_probability_of_a_backdoor() -> None:
    curve = points((0.0, 0.9), (0.001, 0.1), (0.005, 0.097))
    assert chosen_dial(curve, 0.006, backdoor=1.0, enough=0.0, beyond=0.0) == 0.5  # 0.3 points are not worth 0.4
    assert chosen_dial(points((0.0, 0.5), (0.006, 0.494)), 0.006, backdoor=0.5, enough=0.0, beyond=0.0) == 0.0
    assert chosen_dial(points((0.0, 0.5), (0.006, 0.4)), 0.006, backdoor=0.5, enough=0.0, beyond=0.0) == 0.5


def test_a_stronger_point_is_not_taken_because_its_expected_loss_is_smaller() -> None:
    """Where stand-ins are gone, the rest of the curve is the error of the estimate."""
    curve = points((0.0, 0.9), (0.003, 0.3), (0.002, 0.0), (0.001, 0.0), (0.0005, 0.0))
    assert chosen_dial(curve, 0.006, backdoor=1.0, enough=0.0, beyond=0.0) == 1.0


def test_what_destroys_everything_comes_back_as_it_was() -> None:
    curve = points((0.0, 0.9), (0.4, 0.0), (0.8, 0.0))
    assert chosen_dial(curve, 0.006, backdoor=1.0, enough=0.01, beyond=0.5) == 0.0


def test_one_image_that_a_stand_in_leads_over_is_chance_and_two_are_not() -> None:
    assert 1 / Bank().images <= Guard().enough < 2 / Bank().images
