"""The one test of the evidence: Student's tail, factors, and how they combine."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neural_polarizer.defenses.stand_ins.belief import Belief, bayes_factor, believed, mixed_factor, told_aim
from neural_polarizer.defenses.stand_ins.evidence import summary
from neural_polarizer.defenses.stand_ins.looks import BY_CLASS
from neural_polarizer.defenses.stand_ins.p_values import (
    combined_p,
    corrected_p,
    nameable,
    outlier_p,
    student_quantile,
    student_tail,
)
from neural_polarizer.defenses.stand_ins.settings import Looks
from toys import quick


def usual(
    by_class: Sequence[Tensor],
    by_form: Sequence[Tensor],
    shifts: Tensor,
    *,
    floor: float = 0.1,
    resolution: float = 0.05,
) -> Belief:
    """A backdoor that shows everywhere."""
    return believed(by_class, by_form, shifts, Looks(floor=floor, shown=1.0), resolution)


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [
        (1.0, 1, 0.25),  # arctan(1) / pi from 1/2
        (2.0, 2, 0.09175170953613698),  # (1 - 2 / sqrt(6)) / 2
        (2.015048372669157, 5, 0.05),
        (3.355387331333395, 8, 0.005),
        (1.6828783, 41, 0.05),
    ],
)
def test_tails_of_printed_tables(t: float, freedom: int, tail: float) -> None:
    assert float(student_tail(torch.tensor([t]), freedom)) == pytest.approx(tail, rel=1e-5)


@quick
@given(st.lists(st.floats(-5, 5), min_size=4, max_size=30, unique=True), st.integers(0, 3))
def test_p_values_do_not_depend_on_unit_and_origin(values: list[float], place: int) -> None:
    found = torch.tensor(values, dtype=torch.float64)
    if float(found.std()) < 1e-2 or float(torch.cat([found[:place], found[place + 1 :]]).std()) < 1e-2:
        return
    assert torch.allclose(outlier_p(found), outlier_p(3 * found + 7), atol=1e-6)


def test_a_class_far_below_the_others_is_an_outlier_and_one_far_above_is_not() -> None:
    values = torch.tensor([0.0, 0.1, -0.1, 0.05, -0.05, 0.08, -2.0, 2.0])
    p = outlier_p(torch.cat([values[:6], values[6:7]]))
    assert int(p.argmin()) == 6
    assert float(p[6]) < 1e-5
    assert float(outlier_p(torch.cat([values[:6], values[7:]]))[6]) > 0.999


@pytest.mark.long
def test_false_alarms_come_as_often_as_the_level_says() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = sum(usual([torch.randn(10, generator=generator)], [], torch.zeros(0)).p_value < 0.05 for _ in range(1000))
    assert 25 <= alarms <= 75


@pytest.mark.long
@pytest.mark.parametrize("dependence", [0.0, 0.5, 0.9])
def test_false_alarms_keep_the_level_however_statistics_depend_on_each_other(dependence: float) -> None:
    generator, alarms = torch.Generator().manual_seed(1), 0
    for _ in range(400):
        common = math.sqrt(dependence) * torch.randn(10, generator=generator)
        drawn = [common + math.sqrt(1 - dependence) * torch.randn(10, generator=generator) for _ in BY_CLASS]
        shifts = torch.randn(9, generator=generator)
        alarms += usual(drawn, [], shifts).p_value < 0.05
    assert 8 <= alarms <= 34


def test_combined_p_values_are_those_of_cauchy() -> None:
    same = torch.tensor([[0.003], [0.003], [0.003]], dtype=torch.float64)
    assert float(combined_p(same)) == pytest.approx(0.003)
    assert float(combined_p(torch.tensor([[1e-9], [0.5], [0.5], [0.5]]))) == pytest.approx(4e-9, rel=1e-6)
    assert float(combined_p(torch.tensor([[0.02], [1.0]]))) == pytest.approx(0.02)  # 1: not measured
    assert float(combined_p(torch.tensor([[1.0], [1.0]]))) == 1.0
    # Far away in one statistic clears nobody of what another one says.
    far = torch.tensor([[1e-6], [1 - 1e-9]], dtype=torch.float64)
    assert float(combined_p(far)) == pytest.approx(2e-6, rel=1e-3)
    assert corrected_p(0.01, 10) == pytest.approx(1 - 0.99**10)


def test_quantiles_turn_tails_around() -> None:
    assert student_quantile(0.005, 8) == pytest.approx(3.355387331333395, rel=1e-6)
    assert student_quantile(0.25, 1) == pytest.approx(1.0, rel=1e-6)


def test_a_class_is_named_from_the_norm_that_is_told_on() -> None:
    generator = torch.Generator().manual_seed(2)
    crowd = 0.1 * torch.randn(9, generator=generator)
    told = nameable(torch.cat([crowd, torch.tensor([-9.0])]), 0.05, 11, 1, 0.001)
    assert told is not None
    for factor, named in ((0.999, True), (1.001, False)):
        values = torch.cat([crowd, torch.tensor([math.log(told * factor)]) + crowd.mean()])
        found = usual([values], [], torch.zeros(1), resolution=0.001)
        assert (found.accused(0.05) == 9) is named
    assert nameable(torch.zeros(3), 0.05, 3, 1, 0.05) is None


def test_norms_that_are_all_alike_accuse_nobody() -> None:
    alike = torch.full((10,), 1.0)
    alike[3] -= 0.05
    assert float(outlier_p(alike)[3]) < 1e-9
    assert usual([alike], [], torch.zeros(0)).p_value > 0.5


def test_too_few_classes_and_missing_ones_accuse_nobody() -> None:
    assert outlier_p(torch.tensor([0.0, 1.0, -9.0])).tolist() == [1.0, 1.0, 1.0]
    assert float(outlier_p(torch.tensor([torch.nan, 0.0, 0.1, 0.2, -0.1]))[0]) == 1.0


def test_factors_are_those_of_sellke_and_others() -> None:
    drawn = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(bayes_factor(drawn, 0.5).mean()) == pytest.approx(
        1, rel=0.02
    )  # no evidence, on average, where all are alike
    bound = -1 / (math.e * 0.05 * math.log(0.05))  # of all a
    assert 0.95 * bound < float(bayes_factor(torch.tensor([0.05]), 0.25)) < bound
    assert float(bayes_factor(torch.tensor([1.0]), 0.25)) == 1.0
    assert float(bayes_factor(torch.tensor([0.9]), 0.25)) < 0.3
    assert float(bayes_factor(torch.tensor([0.0]), 0.25)) == float(bayes_factor(torch.tensor([1e-6]), 0.25))


def test_statistics_multiply_and_every_aim_keeps_its_share() -> None:
    calm = torch.linspace(-1, 1, 10)
    low = torch.cat([torch.tensor([-6.0]), torch.linspace(-1, 1, 9)])
    one = usual([low], [], torch.zeros(0), floor=0.2)
    both = usual([low, low], [], torch.zeros(0), floor=0.2)
    none = usual([calm], [], torch.zeros(0), floor=0.2)
    assert both.factors[0] == pytest.approx(float(one.factors[0]) ** 2)
    assert one.likeliest == both.likeliest == 0
    assert float(both.aims.sum()) == pytest.approx(1)
    assert float(both.aims.min()) == pytest.approx(0.02, rel=0.1)
    assert none.backdoor < 0.7 < one.backdoor < both.backdoor


def test_the_form_of_a_trigger_is_the_one_in_which_its_class_stands_out() -> None:
    calm = torch.linspace(-1, 1, 10)
    low = torch.cat([torch.tensor([-6.0]), torch.linspace(-1, 1, 9)])
    smooth = usual([low], [calm, low, low], torch.zeros(9))
    assert float(smooth.forms[0, 1]) > 10 * float(smooth.forms[0, 0])
    assert smooth.forms[10].tolist() == [1.0, 1.0, 1.0]  # nobody looks for the form of "next"


def test_only_the_form_in_which_a_class_stands_out_most_judges() -> None:
    calm = torch.linspace(-1, 1, 10)
    low = torch.cat([torch.tensor([-6.0]), torch.linspace(-1, 1, 9)])
    less = torch.cat([torch.tensor([-3.0]), torch.linspace(-1, 1, 9)])
    smooth, everywhere = usual([low], [calm, low, low], torch.zeros(9)), usual([low], [low, low, low], torch.zeros(9))
    dense = usual([low], [low, less, low], torch.zeros(9))
    assert dense.forms[0, 0] > dense.forms[0, 1] > 3
    assert dense.judging(3.0)[0].tolist() == [float(dense.forms[0, 0]), 0.0, 0.0]  # a trigger has one form
    assert smooth.judging(3.0)[0].tolist() == [0.0, float(smooth.forms[0, 1]), 0.0]  # the features' length tells less
    assert smooth.judging(3.0)[1].tolist() == smooth.forms[1].tolist()  # it stands out in none
    assert everywhere.judging(3.0)[0].tolist() == [*everywhere.forms[0, :2].tolist(), 0.0]
    assert usual([low], [calm, calm, low], torch.zeros(9)).judging(3.0)[0, 2] > 3  # in features only: all as they are


def test_next_is_an_aim_like_a_class_and_other_shifts_are_its_crowd() -> None:
    shifts = torch.cat([torch.tensor([-5.0]), torch.linspace(-0.2, 0.2, 8)])
    found = usual([torch.linspace(-1, 1, 10)], [], shifts)
    assert found.likeliest == 10
    assert told_aim(found.likeliest, 10) == "next"
    assert told_aim(3, 10) == 3
    crowd = torch.cat([torch.linspace(-0.2, 0.2, 8), torch.tensor([-5.0])])
    other = usual([torch.linspace(-1, 1, 10)], [], crowd)
    assert len(other.aims) == 11
    assert other.likeliest != 10


def test_the_accused_is_the_class_that_the_layer_is_learned_against() -> None:
    calm = torch.linspace(-1, 1, 10)
    nearer = torch.cat([torch.tensor([-1.0, -2.5]), torch.linspace(-0.7, 0.7, 8)])
    once = torch.cat([torch.tensor([-6.0]), torch.linspace(-1, 1, 9)])
    found = usual([once, nearer, nearer, nearer, calm.flip(0)], [], torch.zeros(0))
    # Class 0 is far nearer in one measure only, class 1 near in several.
    assert int(found.by_aim.argmin()) == 0
    assert found.likeliest == int(found.aims.argmax()) == int(found.factors.argmax()) == 1
    assert found.p_value == pytest.approx(corrected_p(float(found.by_aim[1]), 10))


def test_a_backdoor_may_show_in_one_statistic_only() -> None:
    p = torch.tensor([0.003, 0.5, 0.5, 0.5, 0.5])
    always, sometimes = (float(mixed_factor(p, 0.25, shown).prod()) for shown in (1.0, 0.5))
    assert always < 1 < sometimes
    even = (torch.arange(100_000) + 0.5) / 100_000
    assert float(mixed_factor(even, 0.25, 0.5).mean()) == pytest.approx(1.0, abs=0.03)  # no evidence on average


@pytest.mark.parametrize(
    ("factor", "certainty"),
    [(0.0, -1.0), (0.2, -1.0), (3**-0.5, -0.5), (1.0, 0.0), (3**0.5, 0.5), (3.0, 1.0), (40.0, 1.0), (math.inf, 1.0)],
)
def test_certainty_grows_with_the_logarithm_of_the_factor(factor: float, certainty: float) -> None:
    found = usual([torch.linspace(-1, 1, 10)], [], torch.zeros(0))
    assert replace(found, factor=factor).certainty(3.0) == pytest.approx(certainty)


def test_whoever_knows_the_aim_leaves_the_others_the_floor_only() -> None:
    found = usual([torch.linspace(-1, 1, 10)], [], torch.zeros(0)).knowing(4, 0.1)
    assert float(found.aims[4]) == pytest.approx(0.91)
    assert float(found.aims[0]) == pytest.approx(0.01)
    assert found.backdoor == 1.0


@pytest.mark.parametrize(
    ("p_value", "verdict"),
    [(0.049, "stands out"), (0.05, "is the most suspicious one, but does not stand out at the level of 0.05")],
)
def test_the_sentence_says_at_which_level_a_class_does_not_stand_out(p_value: float, verdict: str) -> None:
    found = replace(usual([torch.linspace(-1, 1, 10)], [], torch.zeros(0)), p_value=p_value, backdoor=0.998)
    assert summary(found, 0.05) == f"class 0 {verdict} (corrected p {p_value}, probability of a backdoor 1.00)"


def test_of_two_classes_none_is_called_the_most_suspicious() -> None:
    few, many = torch.tensor([-3.0, 1.0]), torch.cat([torch.tensor([-3.0]), torch.linspace(-1, 1, 9)])
    assert summary(usual([few], [few] * 3, torch.zeros(1)), 0.05).startswith("there are too few classes")
    assert summary(usual([many], [many] * 3, torch.zeros(9)), 0.05).startswith("class 0")
