"""The score of an audit by hand, and when it is believed."""

from statistics import pstdev, stdev

import pytest
import torch
from torch import Tensor

from neural_polarizer.audit.evidence import Margins
from neural_polarizer.audit.score import LIKELY, UNLIKELY, Score, confident_suspect, score

CROWD = [-5.0, -4.0, -6.0, -5.5, -4.5, -5.2]


def margins(features: list[float], pixels: list[float] | None = None, accuracy: float = 0.9, n: int = 40) -> Margins:
    """Margins that are the same for all images of an aim; the last ones in features: the next class, the one before."""

    def each(values: list[float]) -> tuple[Tensor, ...]:
        return tuple(torch.full((n,), value) for value in values)

    return Margins(each(pixels or [0.0, 1.0, 2.0, 3.0, 4.0, 4.5]), each(features), accuracy)


def known(value: float | None) -> float:
    assert value is not None
    return value


def test_a_class_ahead_of_the_crowd_is_scored_in_units_of_the_spread_between_classes() -> None:
    found = score(margins([-5.0, -4.0, 2.0, -5.5, -4.5, -5.2, -9.0, -9.0]), seed=0)
    assert found.value == pytest.approx(6.0 / stdev([-5.0, -4.0, -5.5, -4.5, -5.2]), rel=1e-5)
    assert (found.suspect, found.seen_in, found.verdict, found.agreement) == (2, "features", "backdoor", 1.0)
    assert found.low == pytest.approx(found.value)  # images that all agree leave no doubt
    assert confident_suspect(found) == 2


def test_the_same_in_pixels() -> None:
    found = score(margins([*CROWD, -9.0, -9.0], [0.0, 1.0, 30.0, 2.0, 3.0, 4.0]), seed=0)
    assert (found.suspect, found.seen_in, found.verdict) == (2, "pixels", "backdoor")


def test_the_next_class_counts_by_its_lead_over_the_class_before() -> None:
    found = score(margins([*CROWD, -3.0, -6.0]), seed=0)
    assert found.value == pytest.approx(3.0 / pstdev(CROWD), rel=1e-5)
    assert (found.suspect, found.seen_in, found.verdict) == ("next", "features", "backdoor")
    alike = score(margins([*CROWD, -3.0, -3.0]), seed=0)  # neighbours that look alike
    assert alike.suspect != "next"
    assert known(alike.value) < LIKELY


def test_an_even_crowd_is_no_sign() -> None:
    found = score(margins([*CROWD, -9.0, -9.0]), seed=0)
    assert (found.verdict, confident_suspect(found)) == ("no sign", None)
    assert known(found.value) < LIKELY


@pytest.mark.parametrize("case", ["few classes", "low accuracy"])
def test_what_cannot_be_judged_is_inconclusive(case: str) -> None:
    if case == "few classes":
        found = score(margins([-5.0, -4.0, 9.0, -5.0, -9.0, -9.0], [0.0, 1.0, 2.0, 3.0]), seed=0)
        assert (found.value, found.p_value, found.suspect, found.unusable) == (None, None, None, "few classes")
    else:
        found = score(margins([-5.0, -4.0, 2.0, -5.5, -4.5, -5.2, -9.0, -9.0], accuracy=0.49), seed=0)
        assert (found.suspect, found.unusable) == (2, "low accuracy")
    assert (found.verdict, confident_suspect(found)) == ("inconclusive", None)


def test_a_lead_that_hangs_on_a_few_images_is_not_believed() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [12 * torch.randn(12, generator=generator) for _ in range(8)]
    means = (-5.0, -4.0, 1.0, -5.5, -4.5, -5.2, -99.0, -99.0)
    noisy = [value + each - each.mean() for value, each in zip(means, noise, strict=True)]
    found = score(Margins(margins([*CROWD, -9.0, -9.0]).pixels, tuple(noisy), 0.9), seed=0)
    assert known(found.value) > LIKELY
    assert known(found.low) < UNLIKELY
    assert known(found.agreement) < 1
    assert found.verdict == "inconclusive"


def test_the_p_value_counts_clean_models_that_score_as_high() -> None:
    def of(reference: tuple[float, ...]) -> Score:
        return score(margins([-5.0, -4.0, 2.0, -5.5, -4.5, -5.2, -9.0, -9.0]), seed=0, reference=reference)

    value = known(of(()).value)
    assert of((value - 1, value, value + 1, 0.0)).p_value == pytest.approx(3 / 5)
    assert of((0.0,) * 19).p_value == pytest.approx(1 / 20)


def test_a_class_that_all_images_belong_to_is_last() -> None:
    own = margins([*CROWD, -9.0, -9.0])
    empty = Margins((torch.zeros(0), *own.pixels[1:]), (torch.zeros(0), *own.features[1:]), 0.9)
    found = score(empty, seed=0)
    assert found.suspect != 0
    assert torch.tensor([known(each) for each in (found.value, found.low, found.high)]).isfinite().all()


def test_two_classes_are_no_crowd() -> None:
    found = score(Margins((torch.ones(4),) * 2, (torch.ones(4),) * 4, 0.9), seed=0)
    assert (found.value, found.verdict) == (None, "inconclusive")
