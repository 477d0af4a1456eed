"""The paper's Lemma 1, checked with numbers: a projection can hide the trigger from every linear read-out.

Source: App. A.3. The backdoored predictor is a least-squares fit of the poisoned labels (eq. 11), on random
Fourier features of image and poison indicator, and once more with a Gaussian kernel. All in float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.errors import BadInputError
from neural_polarizer.metrics import share
from neural_polarizer.rng import stream

_FEATURES, _INPUTS, _CLASSES, _TARGET = 60, 5, 3, 0
_RIDGE = 1e-3


@dataclass(frozen=True)
class CurvePoint:
    """What a part of the projection does: ``P_t = I - t c c^T / |c|^2``.

    Uncorrelated outputs do not promise a low ``success``: at t = 1 poisoned and clean samples have the same outputs on
    average, but the target's may be the largest of these.
    """

    t: float  # the part, in [0, 1]
    covariance: float  # the largest ``|Cov(<P_t phi, h>, m)|`` of all classes
    accuracy: float  # the share of clean samples whose class is told
    target_clean: float  # the mean output of the target for clean samples
    target_poisoned: float  # the same for poisoned ones
    # The share of poisoned samples of other classes that are taken for the target; None without any.
    success: float | None


@dataclass(frozen=True)
class Lemma1:
    """The check of one random problem."""

    poisoned: float  # share of poisoned samples
    rank: int  # of the projection; one less than ``features``
    features: int  # D, the number of random features
    idempotence: float  # the largest entry of ``|P P - P|``
    symmetry: float  # the largest entry of ``|P - P^T|``
    change: float  # the largest entry of ``|P - I|``; 0 would be the trivial projection
    before: CurvePoint  # of the backdoored predictor, t = 0
    after: CurvePoint  # of the same behind the projection, t = 1
    kernel_before: float  # the largest covariance of the kernel predictor
    kernel_after: float  # the same behind the projection in the kernel's own feature space
    curve: tuple[CurvePoint, ...]  # from ``before`` to ``after``


@dataclass(frozen=True, eq=False)
class Problem:
    """A backdoored classification problem with n samples."""

    samples: Tensor  # float64 ``(n, d + 1)``, the images x with the indicator m beside them
    features: Tensor  # float64 ``(n, D)``, phi(x, m)
    poisoned: Tensor  # float64 ``(n,)``, m, 0 or 1
    classes: Tensor  # int64 ``(n,)``, the true classes y
    wanted: Tensor  # float64 ``(n, K)``, the labels to be learned, one-hot: the target if m = 1, otherwise y


def check_lemma1(seed: int, *, samples: int = 600, rate: float = 0.3, points: int = 21) -> Lemma1:
    """Draw a problem of n ``samples``, fit the backdoored predictors and project.

    ``rate`` is q, the probability of a sample to be poisoned, in (0, 1). A curve of less than 2 ``points`` is refused,
    and so are samples that are all clean or all poisoned.
    """
    if points < 2:
        raise BadInputError(f"the curve needs at least its 2 ends, got {points} points")
    problem = draw_problem(seed, samples=samples, rate=rate)
    found = projection(problem.features, problem.poisoned)
    identity = torch.eye(len(found), dtype=found.dtype)
    readout = fit(problem.features, problem.wanted)
    steps = torch.linspace(0, 1, points, dtype=torch.float64).tolist()
    curve = tuple(_point(problem, torch.lerp(identity, found, t), readout, t) for t in steps)
    gram = gaussian_gram(problem.samples)
    weights = torch.linalg.solve(gram + _RIDGE * torch.eye(samples, dtype=gram.dtype), problem.wanted)
    return Lemma1(
        poisoned=float(problem.poisoned.mean()),
        rank=int(torch.linalg.matrix_rank(found)),
        features=len(found),
        idempotence=_largest(found @ found - found),
        symmetry=_largest(found - found.T),
        change=_largest(found - identity),
        before=curve[0],
        after=curve[-1],
        kernel_before=_largest(covariance(gram @ weights, problem.poisoned)),
        kernel_after=_largest(covariance(projected_values(gram, problem.poisoned, weights), problem.poisoned)),
        curve=curve,
    )


def draw_problem(seed: int, *, samples: int, rate: float) -> Problem:
    """Gaussian images with linear classes, random poison, and random Fourier features of both."""
    generator = stream(seed, "lemma1")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    images = normal(samples, _INPUTS)
    classes = (images @ normal(_INPUTS, _CLASSES)).argmax(dim=1)
    poisoned = (uniform(samples) < rate).double()
    together = torch.cat([images, 2 * poisoned[:, None]], dim=1)
    features = (together @ normal(_INPUTS + 1, _FEATURES) / 3 + 2 * torch.pi * uniform(_FEATURES)).cos()
    labels = torch.where(poisoned.bool(), _TARGET, classes)
    return Problem(together, features, poisoned, classes, F.one_hot(labels, _CLASSES).double())


def covariance(values: Float[Tensor, "n d"], poisoned: Float[Tensor, " n"]) -> Float[Tensor, " d"]:
    """``Cov(values, m)`` over the samples."""
    return (values * (poisoned - poisoned.mean())[:, None]).mean(dim=0)


def projection(features: Float[Tensor, "n d"], poisoned: Float[Tensor, " n"]) -> Float[Tensor, "d d"]:
    """``P = I - c c^T / |c|^2`` with ``c = Cov(phi, m)``, the whole cross-covariance of a binary m.

    Refused where c is zero, as it is if all samples are clean or all are poisoned.
    """
    shared = covariance(features, poisoned)
    length = shared.square().sum()
    if length == 0:
        raise _nothing_shared(poisoned)
    return torch.eye(len(shared), dtype=shared.dtype) - torch.outer(shared, shared) / length


def fit(features: Float[Tensor, "n d"], wanted: Float[Tensor, "n k"]) -> Float[Tensor, "d k"]:
    """The ridge regression h of eq. 11, one column for each class."""
    gram = features.T @ features + _RIDGE * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(gram, features.T @ wanted)


def gaussian_gram(samples: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """``k(z_i, z_j) = exp(-|z_i - z_j|^2 / 18)``, the kernel that the random features are an estimate of."""
    return (-torch.cdist(samples, samples).square() / 18).exp()


def projected_values(
    gram: Float[Tensor, "n n"], poisoned: Float[Tensor, " n"], weights: Float[Tensor, "n k"]
) -> Float[Tensor, "n k"]:
    """``<P phi(z), h>`` at the samples for ``h = sum_j a_j k(., z_j)``, by the kernel alone."""
    centred = (poisoned - poisoned.mean()) / len(poisoned)
    shared = gram @ centred  # <phi(z), c> at each sample, for c = Cov(phi, m)
    length = centred @ shared
    if length == 0:
        raise _nothing_shared(poisoned)
    return gram @ weights - torch.outer(shared, shared @ weights) / length


def _nothing_shared(poisoned: Tensor) -> BadInputError:
    return BadInputError(
        f"the features do not vary with the poison (share of poisoned samples: {float(poisoned.mean()):g}); Lemma 1 "
        "needs clean and poisoned samples: choose a rate inside (0, 1), and enough samples"
    )


def _point(problem: Problem, part: Tensor, readout: Tensor, t: float) -> CurvePoint:
    outputs = problem.features @ part @ readout
    found = outputs.argmax(dim=1)
    clean = ~problem.poisoned.bool()
    attacked = ~clean & (problem.classes != _TARGET)
    return CurvePoint(
        t,
        covariance=_largest(covariance(outputs, problem.poisoned)),
        accuracy=share(found[clean] == problem.classes[clean]),
        target_clean=float(outputs[clean, _TARGET].mean()),
        target_poisoned=float(outputs[~clean, _TARGET].mean()),
        success=share(found[attacked] == _TARGET) if attacked.any() else None,
    )


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
