"""FP (Liu et al., 2018): prune what is quiet on clean images, then fine-tune."""

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Audit, Purified, check_images, repaired
from neural_polarizer.defenses.fine_tuning import LAPTOP, RECIPE, fine_tuned
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import inputs_of, last_linear, replace_layer
from neural_polarizer.train import Progress, Schedule, silent


@dataclass(frozen=True, kw_only=True)
class FinePruning:
    """Remove the inputs of the last linear layer that fire least on clean images, as many as accuracy allows.

    Source: Liu et al., "Fine-Pruning", RAID 2018.
    Departures from the reference: accuracy is measured on the clean images, not on the test set; the step that costs
    too much is taken back; the features are computed once.

    Args:
        max_drop: relative loss of accuracy on the clean images that ends the pruning.
        step: share of the channels that is pruned at a time.
        schedule: of the fine-tuning.
    """

    revision: ClassVar[int] = 1
    laptop: ClassVar[Mapping[str, Any]] = LAPTOP

    max_drop: float = 0.1
    step: float = 0.01
    schedule: Schedule = field(default=RECIPE)

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1 or not 0 < self.step <= 1:
            raise BadInputError(f"max drop must lie in [0, 1) and step in (0, 1], got {self.max_drop}, {self.step}")

    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Purified:
        """A pruned and fine-tuned copy of ``model``.

        Raises:
            BadInputError: fewer than two images, a class without any, or a network without a linear layer.
        """
        started = time.perf_counter()
        check_images("FP", model, clean, every_class=True)
        pruned = copy.deepcopy(model).to(device).eval()
        name, head = last_linear(pruned)
        features = head_inputs(pruned, name, clean, device)
        mask = quiet_channels(features, head, clean.labels.to(device), max_drop=self.max_drop, step=self.step)
        replace_layer(pruned, name, _MaskedLinear(head, mask))
        chosen = time.perf_counter()
        tuned = fine_tuned(pruned, clean, self.schedule, seed=seed, device=device, progress=progress)
        masked = tuned.get_submodule(name)
        assert isinstance(masked, _MaskedLinear)
        replace_layer(tuned, name, masked.folded())
        seconds = {"prune": chosen - started, "fine_tune": time.perf_counter() - chosen}
        return repaired(tuned, seconds, Audit(f"Pruned {int((mask == 0).sum())} of {len(mask)} inputs of {name}.", {}))


class _MaskedLinear(nn.Module):
    """A linear layer some of whose inputs are zero, and stay so while it is trained."""

    mask: Tensor

    def __init__(self, layer: nn.Linear, mask: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", mask)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features * self.mask)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The plain layer that does the same."""
        self.layer.weight.mul_(self.mask)
        return self.layer


@torch.no_grad()
def quiet_channels(
    features: Float[Tensor, "n d"], head: nn.Linear, labels: Int64[Tensor, " n"], *, max_drop: float, step: float
) -> Float[Tensor, " d"]:
    """1 for every channel that stays, 0 for the quietest ones, as many as the accuracy on ``features`` allows."""

    def accuracy(kept: Tensor) -> float:
        logits = F.linear(features * kept, head.weight, head.bias)
        return float((logits.argmax(dim=1) == labels).float().mean())

    order = features.mean(dim=0).argsort()
    mask = torch.ones_like(features[0])
    lowest = (1 - max_drop) * accuracy(mask)
    width = math.ceil(step * len(order))
    for start in range(0, len(order), width):
        tried = mask.clone()
        tried[order[start : start + width]] = 0
        if accuracy(tried) < lowest:
            break
        mask = tried
    return mask


@torch.no_grad()
def head_inputs(
    model: nn.Module, name: str, clean: ImageSet, device: torch.device | str, batch: int = 256
) -> Float[Tensor, "n d"]:
    """What enters the layer called ``name`` for every clean image."""
    parts = clean.images.split(batch)
    return torch.cat([inputs_of(model, name, to_pixels(images.to(device))) for images in parts])
