"""The paper's Lemma 1 (App. A.3): a linear projection can hide the trigger from every linear read-out."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from neural_polarizer.analysis.lemma1 import (
    Problem,
    check_lemma1,
    covariance,
    draw_problem,
    fit,
    gaussian_gram,
    projected_values,
    projection,
)
from neural_polarizer.errors import BadInputError


def _problem(seed: int, rate: float = 0.3) -> Problem:
    return draw_problem(seed, samples=600, rate=rate)


def test_covariance_and_projection_by_hand() -> None:
    features = tensor([[3.0, 4.0, 5.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    poisoned = tensor([1.0, 0.0], dtype=torch.float64)
    assert_close(covariance(features, poisoned), tensor([0.75, 1.0, 0.0], dtype=torch.float64))
    expected = tensor([[0.64, -0.48, 0.0], [-0.48, 0.36, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert_close(projection(features, poisoned), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_projection_makes_the_outputs_uncorrelated_with_the_poison(seed: int) -> None:
    found = check_lemma1(seed)
    assert found.before.covariance > 0.01
    assert found.after.covariance < 1e-10
    assert found.kernel_before > 0.01
    assert found.kernel_after < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_it_does_so_for_any_read_out(seed: int) -> None:
    problem = _problem(seed)
    other = torch.randn(60, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    hidden = problem.features @ projection(problem.features, problem.poisoned) @ other
    assert covariance(problem.features @ other, problem.poisoned).abs().max() > 0.01
    assert covariance(hidden, problem.poisoned).abs().max() < 1e-10


def test_it_is_an_orthogonal_projection_that_drops_one_direction_only() -> None:
    found = check_lemma1(0)
    assert (found.rank, found.features) == (59, 60)
    assert found.idempotence < 1e-12
    assert found.symmetry == 0
    assert found.change > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_the_backdoor_works_before_and_clean_samples_keep_their_classes_after(seed: int) -> None:
    found = check_lemma1(seed)
    assert found.before.success is not None
    assert found.before.success > 0.95
    assert found.before.accuracy > 0.85
    assert found.after.accuracy > 0.6  # chance is 1/3
    assert 0.2 < found.poisoned < 0.4


@pytest.mark.parametrize("seed", range(3))
def test_clean_and_poisoned_samples_have_the_same_mean_outputs_after(seed: int) -> None:
    found = check_lemma1(seed)
    assert found.before.target_poisoned == pytest.approx(1, abs=0.05)
    assert found.before.target_clean < 0.5
    assert found.after.target_poisoned == pytest.approx(found.after.target_clean, abs=1e-10)


def test_the_lemma_alone_does_not_make_every_attack_fail() -> None:
    """The common mean may be in favour of the target; a report must not claim more than the lemma does."""
    fails, succeeds = check_lemma1(0).after, check_lemma1(2).after
    assert fails.success is not None
    assert succeeds.success is not None
    assert fails.target_clean < 0.5 < succeeds.target_clean
    assert fails.success < 0.5 < succeeds.success


def test_the_curve_leads_from_the_one_to_the_other_along_a_line() -> None:
    found = check_lemma1(1, points=5)
    assert [point.t for point in found.curve] == [0, 0.25, 0.5, 0.75, 1]
    assert (found.curve[0], found.curve[-1]) == (found.before, found.after)
    for point in found.curve:
        assert point.covariance == pytest.approx((1 - point.t) * found.before.covariance, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_form_is_the_finite_one_for_a_kernel_of_finitely_many_features(seed: int) -> None:
    problem = _problem(seed)
    gram = problem.features @ problem.features.T
    weights = torch.randn(600, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 600
    finite = problem.features @ projection(problem.features, problem.poisoned) @ (problem.features.T @ weights)
    assert_close(projected_values(gram, problem.poisoned, weights), finite, rtol=0, atol=1e-10)


def test_the_kernel_is_the_one_that_many_random_features_have() -> None:
    samples = _problem(0).samples[:8]
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(6, 100_000, generator=generator, dtype=torch.float64) / 3
    phases = 2 * torch.pi * torch.rand(100_000, generator=generator, dtype=torch.float64)
    features = (samples @ waves + phases).cos()
    assert_close(2 * features @ features.T / 100_000, gaussian_gram(samples), rtol=0, atol=0.02)


def test_the_fit_is_the_ridge_regression() -> None:
    """Its gradient vanishes: X^T (X W - Y) + 0.001 W = 0."""
    problem = _problem(2)
    weights = fit(problem.features, problem.wanted)
    gradient = problem.features.T @ (problem.features @ weights - problem.wanted) + 1e-3 * weights
    assert gradient.abs().max() < 1e-8


def test_poisoned_samples_have_the_target_as_their_label_and_others_their_class() -> None:
    problem = _problem(0)
    labels, poisoned = problem.wanted.argmax(dim=1), problem.poisoned.bool()
    assert bool((labels[poisoned] == 0).all())
    assert bool((problem.classes[poisoned] != 0).any())
    assert bool((labels[~poisoned] == problem.classes[~poisoned]).all())
    assert_close(problem.samples[:, -1], 2 * problem.poisoned)


def test_a_record_is_plain_and_depends_on_the_seed_alone() -> None:
    found = check_lemma1(0)
    assert found == check_lemma1(0)
    assert found.before != check_lemma1(1).before
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["rank"] == 59


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_without_clean_or_without_poisoned_samples_there_is_nothing_to_project_on(rate: float) -> None:
    with pytest.raises(BadInputError, match=rf"share of poisoned samples: {rate:g}\); Lemma 1 needs clean and"):
        check_lemma1(0, rate=rate)
    problem = _problem(0, rate)
    with pytest.raises(BadInputError, match="Lemma 1 needs"):
        projected_values(gaussian_gram(problem.samples), problem.poisoned, problem.wanted)


def test_without_attacked_samples_no_success_is_claimed() -> None:
    """One sample in 600 is poisoned, in the first seeds that are so, and it is of the target's class itself."""

    def attacked(seed: int) -> list[int]:
        problem = _problem(seed, 1 / 600)
        return problem.classes[problem.poisoned.bool()].tolist()

    seed = next(seed for seed in range(200) if attacked(seed) == [0])
    assert check_lemma1(seed, rate=1 / 600).after.success is None


def test_a_curve_without_two_ends_is_refused() -> None:
    with pytest.raises(BadInputError, match="at least its 2 ends, got 1"):
        check_lemma1(0, points=1)
