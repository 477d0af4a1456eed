"""RNP (Li et al., 2023): let a copy forget, see which channels it can do without as it recovers, prune those."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.anp import masked_norms, prune
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.passes import all_passes, logits_by
from neural_polarizer.defenses.result import Audit, Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.train.fit import descend, is_finite
from neural_polarizer.train.schedule import Schedule

LARGEST_GRADIENT = 20.0
"""Norm to which the gradient is cut while the copy forgets, as nothing bounds its loss."""


@dataclass(frozen=True, kw_only=True)
class RNP(Defense):
    """Prune the batch-norm channels that an unlearned copy of the model gives up as it regains its accuracy.

    Source: Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023; settings of the authors' code.
    Departures from the reference: the threshold is the highest that costs no more than ``max_drop`` of the accuracy on
    the clean images (the authors look at the test set's ASR for all of them, and BackdoorBench takes the best); the
    gradient is cut after it has been computed (there before, so that it never is); the rate of the unlearning is
    constant, as it hardly ever lasts until it would fall; if the copy still knows too much after all epochs, it is
    taken as it is.

    Args:
        images: so many of the clean images are used to unlearn and to recover; None is all.
        unlearn: how the copy's loss is maximised, over all weights.
        forgotten: accuracy of a pass, augmentation and all, that ends the unlearning; in [0, 1].
        recover: how the masks are learned, with all weights fixed.
        weight: of the loss in the recovery, against steps of a fixed length.
        max_drop: relative loss of accuracy on the clean images that ends the pruning.
        highest: largest threshold that is tried.
        step: from one threshold to the next.
    """

    title: ClassVar[str] = "RNP"
    story: ClassVar[tuple[str, ...]] = (
        "Reconstructive neuron pruning (RNP): a copy of the model was made to forget what clean images show.",
        "Then it was learned which of its channels can be given up as it regains its accuracy; these were switched off "
        "in the model itself, as many as accuracy allowed. No other weight was changed.",
    )
    smoke: ClassVar[Mapping[str, Any]] = {"unlearn.epochs": 1, "recover.epochs": 1, "step": 0.3}
    # As many steps of the masks as the authors', but shorter: theirs push a tenth of a narrow network to 0 at once.
    laptop: ClassVar[Mapping[str, Any]] = {
        "unlearn.batch_size": 64,
        "recover.epochs": 10,
        "recover.batch_size": 64,
        "recover.lr": 0.005,
    }

    images: int | None = 500
    unlearn: Schedule = field(default=Schedule(epochs=20, batch_size=128, lr=0.01, policy="constant"))
    forgotten: float = 0.2
    recover: Schedule = field(default=Schedule(epochs=20, batch_size=128, lr=0.2, weight_decay=0.0, policy="constant"))
    weight: float = 0.2
    max_drop: float = 0.1
    highest: float = 0.9
    step: float = 0.05

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 2:
            raise BadInputError(f"RNP needs at least 2 images, got {self.images}")
        if not 0 <= self.forgotten <= 1 or not 0 <= self.max_drop < 1 or not self.weight > 0:
            raise BadInputError(
                f"RNP needs forgotten in [0, 1], a max drop in [0, 1) and a positive weight, got {self.forgotten}, "
                f"{self.max_drop}, {self.weight}"
            )
        if not 0 < self.step <= 1 or not 0 <= self.highest < 1:
            raise BadInputError(
                f"RNP needs a step in (0, 1] and a highest threshold in [0, 1), got {self.step}, {self.highest}"
            )

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        masked_norms(copy.deepcopy(model), "RNP")  # refuses networks without any before time is spent
        rows = torch.randperm(len(clean), generator=run.stream("rnp images"))[: self.images]
        some = clean.select(rows)
        network = copy.deepcopy(model)
        with run.timed("unlearn"):
            left = self._forget(network, some, run)
        if not is_finite(network):
            raise BadInputError("the unlearning diverged: weights are NaN or infinite; use a lower unlearn.lr")
        with run.timed("recover"):
            masks = self._regain(network, some, run)
        with run.timed("prune"):
            threshold, count = prune_within(
                model, masks, clean, max_drop=self.max_drop, highest=self.highest, step=self.step, batch=self.at_once
            )
        total = sum(mask.numel() for mask in masks.values())
        which = f": those whose mask ended at {threshold:g} or below" if count else ""
        summary = (
            f"Pruned {count} of {total} channels{which}. The unlearning ended at an accuracy of {100 * left:.0f} %."
        )
        return Outcome(model, Audit(summary, {}))

    def _forget(self, network: nn.Module, some: ImageSet, run: Run) -> float:
        """Maximise the loss of all weights until the accuracy of a pass is low enough; that accuracy."""
        network.train().requires_grad_(True)
        optimizer = self.unlearn.optimize(network.parameters())
        right: list[Tensor] = []
        reached = [1.0]

        def step(pixels: Tensor, labels: Tensor) -> None:
            logits = logits_by(network, pixels, self.unlearn)
            right.append(logits.argmax(dim=1) == labels)
            optimizer.zero_grad()
            (-F.cross_entropy(logits, labels)).backward()
            nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
            optimizer.step()

        def forgotten() -> bool:
            reached.append(float(torch.cat(right).float().mean()))
            right.clear()
            return reached[-1] <= self.forgotten

        all_passes(some, self.unlearn, optimizer, step, run, use="rnp unlearn", phase="unlearn", enough=forgotten)
        return reached[-1]

    def _regain(self, network: nn.Module, some: ImageSet, run: Run) -> dict[str, Float[Tensor, " c"]]:
        """Minimise the loss over masks of the batch norms' gammas, in [0, 1]; the masks, by name of the norm."""
        network.requires_grad_(False)
        norms = masked_norms(network, "RNP")
        for norm in norms.values():
            norm.mask.requires_grad_(True)
            norm.on_weight.requires_grad_(False)
            norm.on_bias.requires_grad_(False)
        network.train()
        recipe = self.recover
        optimizer = recipe.optimize([norm.mask for norm in norms.values()])

        def step(pixels: Tensor, labels: Tensor) -> None:
            descend(optimizer, self.weight * F.cross_entropy(logits_by(network, pixels, recipe), labels))
            for norm in norms.values():
                norm.mask.data.clamp_(0, 1)

        all_passes(some, recipe, optimizer, step, run, use="rnp recover", phase="recover")
        return {name: norm.mask.detach().cpu() for name, norm in norms.items()}


def prune_within(
    model: nn.Module,
    masks: Mapping[str, Float[Tensor, " c"]],
    clean: ImageSet,
    *,
    max_drop: float,
    highest: float,
    step: float,
    batch: int,
) -> tuple[float, int]:
    """Prune ``model``, in place, at the highest threshold 0, step, 2 step, ... up to ``highest`` that accuracy allows.

    At most the share ``max_drop`` of the accuracy on ``clean`` may be lost. The model is in evaluation mode, ``masks``
    are those of its batch norms by name, ``batch`` is the images in a forward pass. Returns the threshold, and the
    number of channels.
    """
    lowest = (1 - max_drop) * accuracy(model, clean, batch)
    kept, count = 0.0, 0
    for number in range(int(highest / step + 1e-6) + 1):
        threshold = number * step
        tried = copy.deepcopy(model)
        gone = prune(tried, masks, threshold)
        if gone > count and accuracy(tried, clean, batch) < lowest:
            break
        kept, count = threshold, gone
    if count:
        prune(model, masks, kept)
    return kept, count


@torch.no_grad()
def accuracy(model: nn.Module, clean: ImageSet, batch: int) -> float:
    """Share of the images that ``model``, in evaluation mode, classifies as labelled."""
    device = next(model.parameters()).device
    said = torch.cat([model(to_pixels(images.to(device))).argmax(dim=1).cpu() for images in clean.images.split(batch)])
    return float((said == clean.labels.cpu()).float().mean())
