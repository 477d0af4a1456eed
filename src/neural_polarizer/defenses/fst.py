"""FST (Min et al., 2023): fine-tune from a new head that must stay away from the old one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.fine_tuning import RECIPE
from neural_polarizer.defenses.passes import all_passes, logits_by
from neural_polarizer.defenses.result import Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import last_linear
from neural_polarizer.train.fit import descend
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class FST(Defense):
    """Draw the head anew, then train all weights by cross-entropy plus ``alpha <W, W_old>``, ``|W| = |W_old|``.

    Features that only the old head could read, such as a trigger's, have to move.

    Source: Min et al., "Towards Stable Backdoor Purification through Feature Shift Tuning", NeurIPS 2023; settings of
    the authors' code.  Its alpha for each data set is a value of the paper (0.2 for CIFAR-10, 0.1 for GTSRB, 0.001 for
    CIFAR-100 and Tiny ImageNet, whose heads are lost otherwise).
    Departures from the reference: the last, smaller batch of an epoch is dropped.

    Args:
        alpha: weight of the product of new and old head.
        schedule: how to train; batches are never larger than the clean set.
    """

    title: ClassVar[str] = "FST"
    story: ClassVar[tuple[str, ...]] = (
        "Feature shift tuning (FST): the last linear layer of a copy of the model was drawn anew.",
        "Then all weights were trained further, with this layer kept away from what it was, so that features that only "
        "the old weights could read have to move.",
    )
    every_class: ClassVar[bool] = True
    smoke: ClassVar[Mapping[str, Any]] = {"schedule.epochs": 1}
    # As FT: larger steps on smaller batches.
    laptop: ClassVar[Mapping[str, Any]] = {"schedule.batch_size": 32, "schedule.lr": 0.03}
    # The authors take as many epochs for all data sets, other than those of the paper's appendix B for its baselines.
    for_profile: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gtsrb": {"alpha": 0.1, "schedule.epochs": 10},
        "cifar100": {"alpha": 0.001},
        "tiny_imagenet": {"alpha": 0.001},
    }

    alpha: float = 0.2
    schedule: Schedule = field(default=replace(RECIPE, epochs=10, batch_size=128, weight_decay=0.0))

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise BadInputError(f"FST needs an alpha of at least 0, got {self.alpha}")

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        network = model.train().requires_grad_(True)
        _, head = last_linear(network)
        old = head.weight.detach().clone()
        redraw(head, run.stream("fst head"))
        optimizer = self.schedule.optimize(network.parameters())

        def step(pixels: Tensor, labels: Tensor) -> None:
            logits = logits_by(network, pixels, self.schedule)
            descend(optimizer, F.cross_entropy(logits, labels) + self.alpha * (head.weight * old).sum())
            rescale(head.weight, old.norm())

        with run.timed("fine_tune"):
            all_passes(clean, self.schedule, optimizer, step, run, use="fst", phase="train")
        return Outcome(model)


@torch.no_grad()
def redraw(head: nn.Linear, generator: torch.Generator) -> None:
    """Weights and bias anew, in place: uniform up to ``1 / sqrt(d)`` either way, for d inputs."""
    bound = head.in_features**-0.5
    for value in (head.weight, head.bias):
        if value is not None:
            value.copy_((2 * torch.rand(value.shape, generator=generator) - 1) * bound)


@torch.no_grad()
def rescale(weight: Float[Tensor, "k d"], norm: Float[Tensor, ""]) -> None:
    """Multiply ``weight``, in place, so that it has the Frobenius norm ``norm``."""
    weight.mul_(norm / weight.norm().clamp_min(1e-12))
