"""The paper's Lemma 1 (App. A.3; spec 3.8): a linear projection can hide the trigger from every linear read-out."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

SAMPLES, INPUTS, FEATURES, CLASSES, TARGET = 600, 5, 60, 3, 0


def projection(features: Float[Tensor, "n d"], poisoned: Float[Tensor, " n"]) -> Float[Tensor, "d d"]:
    """``P = I - c c^T / |c|^2`` with ``c = Cov(phi, m)``, the whole cross-covariance of a binary m."""
    shared = covariance(features, poisoned)
    length = shared.square().sum()
    if length == 0:
        raise ValueError("the features do not vary with the poison: Lemma 1 needs poisoned and clean samples")
    return torch.eye(len(shared), dtype=shared.dtype) - torch.outer(shared, shared) / length


def covariance(features: Float[Tensor, "n d"], poisoned: Float[Tensor, " n"]) -> Float[Tensor, " d"]:
    return (features * (poisoned - poisoned.mean())[:, None]).mean(dim=0)


def backdoored_regression(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random Fourier features of [x; m], m, the true classes, and the ridge fit of the poisoned labels (eq. 11)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = normal(SAMPLES, INPUTS)
    classes = (inputs @ normal(INPUTS, CLASSES)).argmax(dim=1)
    poisoned = (torch.rand(SAMPLES, generator=generator, dtype=torch.float64) < 0.3).double()
    phases = 2 * torch.pi * torch.rand(FEATURES, generator=generator, dtype=torch.float64)
    features = (torch.cat([inputs, 2 * poisoned[:, None]], dim=1) @ normal(INPUTS + 1, FEATURES) / 3 + phases).cos()
    labels = torch.where(poisoned.bool(), TARGET, classes)
    wanted = torch.nn.functional.one_hot(labels, CLASSES).double()
    gram = features.T @ features + 1e-3 * torch.eye(FEATURES, dtype=torch.float64)
    return features, poisoned, classes, torch.linalg.solve(gram, features.T @ wanted)


@pytest.mark.parametrize("seed", range(3))
def test_the_projection_makes_the_outputs_uncorrelated_with_the_poison(seed: int) -> None:
    features, poisoned, _, weights = backdoored_regression(seed)
    projected = features @ projection(features, poisoned)
    assert covariance(features @ weights, poisoned).abs().max() > 0.01
    assert covariance(projected @ weights, poisoned).abs().max() < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_it_does_so_for_any_read_out(seed: int) -> None:
    features, poisoned, _, _ = backdoored_regression(seed)
    other = torch.randn(FEATURES, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert covariance(features @ projection(features, poisoned) @ other, poisoned).abs().max() < 1e-10


def test_it_is_an_orthogonal_projection_that_drops_one_direction_only() -> None:
    features, poisoned, _, _ = backdoored_regression(0)
    found = projection(features, poisoned)
    torch.testing.assert_close(found @ found, found, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.T, found, rtol=0, atol=0)
    assert torch.linalg.matrix_rank(found) == FEATURES - 1


def test_what_is_left_still_tells_the_classes_of_clean_samples() -> None:
    features, poisoned, classes, weights = backdoored_regression(0)
    clean = ~poisoned.bool()
    after = (features @ projection(features, poisoned) @ weights).argmax(dim=1)
    assert (after[clean] == classes[clean]).double().mean() > 0.6  # chance is 1/3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_clean_or_without_poisoned_samples_there_is_nothing_to_project_on(share: float) -> None:
    features, poisoned, _, _ = backdoored_regression(0)
    with pytest.raises(ValueError, match="Lemma 1 needs"):
        projection(features, torch.full_like(poisoned, share))
