"""FT-SAM (Zhu et al., 2023): fine-tune where the loss stays low if large weights are shaken most."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.fine_tuning import LAPTOP, RECIPE
from neural_polarizer.defenses.passes import all_passes, logits_by
from neural_polarizer.defenses.result import Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class FTSAM(Defense):
    """Fine-tune all weights by adaptive sharpness-aware minimisation.

    Each step takes the gradient at ``w + rho T^2 g / |T g|`` with ``T = diag(|w|)``, where g is the gradient at w.

    Source: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023;
    settings of its appendix and of BackdoorBench.
    Departures from the reference: the learning rate falls once, over all epochs, as that of all methods here that
    fine-tune (the authors' code moves its cosine on after each batch, so that the rate rises and falls many times); the
    last, smaller batch of an epoch is dropped.

    Args:
        rho: length of the step towards the worst weights, where each weight is measured in units of itself.
        smoothing: share of the label's probability that the other classes get, all alike.
        schedule: how to train; batches are never larger than the clean set.
    """

    title: ClassVar[str] = "FT-SAM"
    story: ClassVar[tuple[str, ...]] = (
        "FT-SAM: a copy of the model was trained further on clean images, all its weights, so that it stays right "
        "where large weights are shaken most, since those of a backdoor are large.",
    )
    every_class: ClassVar[bool] = True
    smoke: ClassVar[Mapping[str, Any]] = {"schedule.epochs": 1}
    laptop: ClassVar[Mapping[str, Any]] = LAPTOP
    for_profile: ClassVar[Mapping[str, Mapping[str, Any]]] = {"gtsrb": {"rho": 8.0}, "tiny_imagenet": {"rho": 8.0}}

    rho: float = 2.0
    smoothing: float = 0.1
    schedule: Schedule = field(default=RECIPE)

    def __post_init__(self) -> None:
        if not self.rho > 0 or not 0 <= self.smoothing <= 0.5:
            raise BadInputError(
                f"FT-SAM needs a positive rho and a smoothing in [0, 0.5], got {self.rho}, {self.smoothing}"
            )

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        network = model.train().requires_grad_(True)
        weights = list(network.parameters())
        optimizer = self.schedule.optimize(network.parameters())

        def step(pixels: Tensor, labels: Tensor) -> None:
            def loss() -> Tensor:
                return smoothed_cross_entropy(logits_by(network, pixels, self.schedule), labels, self.smoothing)

            with worst_case(weights, loss, self.rho), fixed_statistics(network):
                optimizer.zero_grad()
                loss().backward()
            optimizer.step()

        with run.timed("fine_tune"):
            all_passes(clean, self.schedule, optimizer, step, run, use="ft-sam", phase="train")
        return Outcome(model)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against ``1 - smoothing`` for the label and an equal share of the rest for each other class.

    Torch's own smoothing spreads its share over all classes, the label included.
    """
    classes = logits.shape[1]
    return F.cross_entropy(logits, labels, label_smoothing=min(1.0, smoothing * classes / max(1, classes - 1)))


@contextmanager
def worst_case(weights: Sequence[Tensor], loss: Callable[[], Tensor], rho: float) -> Iterator[None]:
    """While the block runs, ``weights`` are where adaptive SAM supposes the loss to be worst; then as they were.

    Each is moved by ``eps = rho w^2 g / |w g|``, so that ``eps / |w|`` has the length rho. ``loss``, at the weights as
    they are, is called once; their ``.grad`` is left alone.
    """
    gradients = torch.autograd.grad(loss(), list(weights), allow_unused=True)
    pairs = [(weight, slope) for weight, slope in zip(weights, gradients, strict=True) if slope is not None]
    before = [weight.detach().clone() for weight, _ in pairs]
    with torch.no_grad():
        length = torch.stack([(weight * slope).norm() for weight, slope in pairs]).norm()
        for weight, slope in pairs:
            weight.add_(rho / (length + 1e-12) * weight.square() * slope)
    try:
        yield
    finally:
        with torch.no_grad():  # copied back, as adding and subtracting would round
            for (weight, _), value in zip(pairs, before, strict=True):
                weight.copy_(value)


@contextmanager
def fixed_statistics(network: nn.Module) -> Iterator[None]:
    """While the block runs, batch norms use the batch's statistics without keeping them."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
