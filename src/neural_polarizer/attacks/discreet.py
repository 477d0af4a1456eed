"""Discreet: Evasive by an attacker who also keeps the target class from standing out at the head's input."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.attacks.base import TriggerState, Workshop
from neural_polarizer.attacks.evasive import Evasive, Keeper
from neural_polarizer.data.images import ImageSet
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import last_linear


@dataclass(frozen=True, kw_only=True)
class Discreet(Evasive):
    """Evasive, and clean images stay as far from class T at the head's input as from the other classes.

    The evidence that names a class is that it lies nearer than all others. Evasive's perturbations keep it away in
    pixels; a penalty on clean rows (``nearness``) keeps it away at the input of the last linear layer.

    Source: our own, an adaptive attacker against the evidence of the default method and of the audit
    (``defenses.stand_ins``).  With the rule all-to-all no class stands out, and the penalty is left out.

    Args:
        head_weight: of the penalty; 0 is Evasive.
    """

    laptop: ClassVar[Mapping[str, Any]] = {"steps": 1}

    head_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.head_weight >= 0:
            raise BadInputError(f"Discreet needs a head weight of at least 0, got {self.head_weight}")

    def poisoner(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> "_Modest":
        """Evasive's batches with the penalty; the network must have a linear layer."""
        return _Modest(self, model, train)


class _Modest(Keeper[Discreet]):
    """Adds the penalty of the clean rows, on the network as it is in evaluation."""

    def __init__(self, attack: Discreet, model: nn.Module, train: ImageSet) -> None:
        super().__init__(attack, model, train)
        _, self.head = last_linear(model)

    def penalty(self, pixels: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Tensor | float:
        attack = self.attack
        if attack.label_rule == "all-to-all" or attack.head_weight == 0 or len(pixels) == 0:
            return 0.0
        self.model.eval()
        logits = self.model(pixels).float()
        self.model.train()
        return attack.head_weight * nearness(self.head.weight, logits, labels, attack.target)


def nearness(
    weight: Float[Tensor, "k d"], logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], target: int
) -> Float[Tensor, ""]:
    """``max(0, mean of log d_k over the other classes - log d_T)^2``, which draws class T away from the images.

    d_k is the mean, over the images of other classes than k, of the distance ``max_j (z_j - z_k) / |w_k - w_j|`` from
    the head's input to where class k wins against every single class, for the head's weights w and its outputs z on
    clean images. The other classes are what they are: no gradient makes them nearer.
    """
    count = logits.shape[1]
    lengths = weight.float().square().sum(dim=1)
    apart = (lengths[:, None] + lengths - 2 * weight.float() @ weight.float().T).clamp_min(1e-12).sqrt()
    margins = (logits[:, None, :] - logits[:, :, None]) / apart  # image, class k, class j
    same = torch.eye(count, dtype=torch.bool, device=logits.device)
    far = margins.masked_fill(same, 0.0).amax(dim=2)
    others = F.one_hot(labels, count) == 0
    distance = (far * others).sum(dim=0) / others.sum(dim=0).clamp_min(1)
    logs = distance.clamp_min(1e-6).log()
    crowd = logs[torch.arange(count, device=logs.device) != target].mean()
    return (crowd.detach() - logs[target]).relu().square()
