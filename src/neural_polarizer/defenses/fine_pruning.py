"""FP (Liu et al., 2018): prune what is quiet on clean images, then fine-tune."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.fine_tuning import LAPTOP, RECIPE, fine_tuned
from neural_polarizer.defenses.result import Audit, Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import inputs_of, last_linear
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class FinePruning(Defense):
    """Remove the inputs of the last linear layer that fire least on clean images, as many as accuracy allows.

    Source: Liu et al., "Fine-Pruning", RAID 2018.
    Departures from the reference: accuracy is measured on the clean images, not on the test set; the step that costs
    too much is taken back; the features are computed once.

    Args:
        max_drop: relative loss of accuracy on the clean images that ends the pruning.
        step: share of the channels that is pruned at a time.
        schedule: of the fine-tuning.
    """

    title: ClassVar[str] = "FP"
    story: ClassVar[tuple[str, ...]] = (
        "Fine-pruning (FP): the inputs of the last linear layer that are quietest on clean images were cut, as many as "
        "accuracy on these images allowed, since a trigger may hide in neurons that nothing else uses.",
        "Then the weights that were left were trained further.",
    )
    laptop: ClassVar[Mapping[str, Any]] = LAPTOP
    smoke: ClassVar[Mapping[str, Any]] = {"schedule.epochs": 1, "step": 0.2}
    every_class: ClassVar[bool] = True

    max_drop: float = 0.1
    step: float = 0.01
    schedule: Schedule = field(default=RECIPE)

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1 or not 0 < self.step <= 1:
            raise BadInputError(f"max drop must lie in [0, 1) and step in (0, 1], got {self.max_drop}, {self.step}")

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("prune"):
            name, head = last_linear(model)
            if not name:
                raise BadInputError("FP prunes the inputs of the last linear layer, but this network is that layer")
            features = head_inputs(model, name, clean, run.device, self.at_once)
            mask = quiet_channels(features, head, clean.labels.to(run.device), max_drop=self.max_drop, step=self.step)
            model.set_submodule(name, _MaskedLinear(head, mask))
        with run.timed("fine_tune"):
            tuned = fine_tuned(model, clean, self.schedule, run)
        masked = tuned.get_submodule(name)
        assert isinstance(masked, _MaskedLinear)
        tuned.set_submodule(name, masked.folded())
        return Outcome(tuned, Audit(f"Pruned {int((mask == 0).sum())} of {len(mask)} inputs of {name}.", {}))


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
    model: nn.Module, name: str, clean: ImageSet, device: torch.device | str, batch: int
) -> Float[Tensor, "n d"]:
    """What enters the layer called ``name`` for every clean image."""
    parts = clean.images.split(batch)
    return torch.cat([inputs_of(model, name, to_pixels(images.to(device))) for images in parts])
