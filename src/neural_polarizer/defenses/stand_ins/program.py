"""The convex program at the head's input: the smallest shift there that would lead most images to a class."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def head_norms(
    weight: Float[Tensor, "k d"],
    logits: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    classes: Int64[Tensor, " c"],
    *,
    quantile: float,
    steps: int,
) -> Float[Tensor, " c"]:
    """For each class the norm of the least shift s of the head's input h with z_k(h + s) >= z_j(h + s) for all j.

    minimise |s|^2 / 2 subject to (w_k - w_j) . s >= b_kj, with b_kj the ``quantile`` over the images of other classes
    of z_j - z_k.  Solved in the dual, max b . l - |sum_j l_j (w_k - w_j)|^2 / 2 over l >= 0, for all classes at once by
    projected gradient steps with momentum; the answer is stretched until it satisfies every constraint.

    ``weight`` is that of the head, a linear layer; the ``logits`` of clean images have its biases; only ``classes`` are
    computed. A norm is infinite for a class that all images belong to, 0 for one that needs no shift.

    Source: the quadratic program of "TAC" (arXiv 2511.08944) with a quantile in place of the maximum.
    """
    weight, towards = weight.double(), weight[classes].double()
    needs = _needs(logits.double(), labels, classes, quantile)
    usable = needs.isfinite()
    target = needs.masked_fill(~usable, 0.0)
    shift = _least_shift(weight, classes, target, usable, steps)
    stretch = target / _slack(shift, weight, towards).clamp_min(1e-12)
    norms = shift.norm(dim=1) * stretch.masked_fill(~usable | (target <= 0), 0.0).amax(dim=1)
    return torch.where(usable.any(dim=1), norms, torch.inf)


def _least_shift(
    weight: Float[Tensor, "k d"],
    classes: Int64[Tensor, " c"],
    target: Float[Tensor, "c k"],
    usable: Bool[Tensor, "c k"],
    steps: int,
) -> Float[Tensor, "c d"]:
    """s, one for each class, by accelerated projected gradient steps of the dual (Beck and Teboulle 2009)."""
    towards, gram = weight[classes], weight @ weight.T

    def shift(dual: Tensor) -> Tensor:
        return dual.sum(dim=1, keepdim=True) * towards - dual @ weight

    diagonal = gram.diagonal()
    spread = (diagonal[classes, None] - 2 * gram[classes] + diagonal[None]).masked_fill(~usable, 0.0)
    rate = 1 / spread.sum(dim=1, keepdim=True).clamp_min(1e-30)  # the trace bounds the largest eigenvalue
    dual = torch.zeros_like(target)
    ahead, pace = dual, 1.0
    for _ in range(steps):
        ascent = rate * (target - _slack(shift(ahead), weight, towards))
        stepped = (ahead + ascent).clamp_min(0).masked_fill(~usable, 0.0)
        following = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead = stepped + (pace - 1) / following * (stepped - dual)
        dual, pace = stepped, following
    return shift(dual)


def _slack(shift: Float[Tensor, "c d"], weight: Float[Tensor, "k d"], towards: Float[Tensor, "c d"]) -> Tensor:
    """(w_k - w_j) . s for each class k and all j, ``(c, k)``."""
    return (shift * towards).sum(dim=1, keepdim=True) - shift @ weight.T


def _needs(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], classes: Int64[Tensor, " c"], quantile: float
) -> Float[Tensor, "c k"]:
    """b: what a class lacks towards each other one; -inf towards itself, and where all images belong to it."""
    needs = torch.full((len(classes), logits.shape[1]), -torch.inf, dtype=logits.dtype, device=logits.device)
    for place, each in enumerate(classes.tolist()):
        others = logits[labels != each]
        if len(others) > 0:
            needs[place] = torch.quantile(others - others[:, each, None], quantile, dim=0)
    return needs.masked_fill(torch.nn.functional.one_hot(classes, logits.shape[1]).bool(), -torch.inf)
