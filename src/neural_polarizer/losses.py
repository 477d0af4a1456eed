"""The losses of the outer problem (paper eqs. 2 and 3) and the runner-up class (eq. 4), all in float32."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

LossForm = Literal["stable", "clamped"]
BceTerms = Literal["both", "true-class", "runner-up"]


def runner_up(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """The best class other than the label, ``argmax_{k != y} z_k`` (eq. 4), int64 ``(n,)``."""
    return logits.float().scatter(1, labels[:, None], -torch.inf).argmax(dim=1)


def log_one_minus(
    logits: Float[Tensor, "n k"], index: Int64[Tensor, " n"], form: LossForm = "stable"
) -> Float[Tensor, " n"]:
    """``-log(1 - p_j)`` a sample, with ``p = softmax(logits)`` and ``j = index``.

    "stable" is ``logsumexp_all(z) - logsumexp_{k != j}(z)``: exact, with a gradient of at most 1. "clamped" is the
    reference code's ``-log(1.0001 - p_j + 1e-12)``, whose gradient vanishes as ``p_j`` nears 1.
    """
    logits = logits.float()
    if form == "clamped":
        chosen = logits.softmax(dim=1).gather(1, index[:, None])[:, 0]
        return -torch.log(1.0001 - chosen + 1e-12)
    others = logits.scatter(1, index[:, None], -torch.inf)
    return logits.logsumexp(dim=1) - others.logsumexp(dim=1)


def asr_loss(
    logits: Float[Tensor, "n k"], targets: Int64[Tensor, " n"], form: LossForm = "stable"
) -> Float[Tensor, ""]:
    """L_asr: the perturbed images must not be taken for their (pseudo) target (eq. 2); a batch mean."""
    return log_one_minus(logits, targets, form).mean()


def boosted_cross_entropy(
    logits: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    form: LossForm = "stable",
    positive_labels: Int64[Tensor, " n"] | None = None,
    terms: BceTerms = "both",
) -> Float[Tensor, ""]:
    """L_bce: cross-entropy plus a margin against the best wrong class (eq. 3); a batch mean.

    Args:
        logits: of the perturbed images.
        labels: their true labels.
        form: of the margin term.
        positive_labels: other labels for only the cross-entropy term, such as the model's own predictions.
        terms: "true-class" is only the cross-entropy L_bce1, "runner-up" only the margin L_bce2 (paper Table 3).
    """
    logits = logits.float()
    wrong = runner_up(logits.detach(), labels)
    if terms == "runner-up":
        return log_one_minus(logits, wrong, form).mean()
    positive = F.cross_entropy(logits, labels if positive_labels is None else positive_labels)
    return positive if terms == "true-class" else positive + log_one_minus(logits, wrong, form).mean()
