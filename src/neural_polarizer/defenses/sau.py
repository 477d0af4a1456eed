"""SAU (Wei et al., 2023): unlearn perturbations that fool the model and its backdoored original alike."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.passes import all_passes, logits_by
from neural_polarizer.defenses.result import Outcome
from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError
from neural_polarizer.losses import log_one_minus
from neural_polarizer.settings import check_literals
from neural_polarizer.train.fit import descend
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class SAU(Defense):
    """Minimise over the weights what perturbations do that the original answers in the same wrong way.

    Source: Wei et al., "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial Examples",
    NeurIPS 2023; settings of the authors' code, whose plain adversarial term has weight 0 and is left out.
    Departures from the reference: ``-log(1 - p)`` is computed exactly instead of with clamped probabilities; the last,
    smaller batch of a round is dropped.  As there, images are not augmented, perturbed pixels are not clipped to [0, 1]
    and batch-norm statistics stay as they are.

    Args:
        rounds: passes over the clean images.
        batch_size: images a batch, never more than there are.
        lr: of Adam on the weights, constant.
        radius: of the perturbations, L_inf in pixel units of [0, 1].
        steps: sign steps of each perturbation.
        step_size: of them, in pixel units.
        fooling: weight, in the inner problem, of the cross-entropy of images that do not yet fool a model.
        agreement: weight, there, of the two models' Jensen-Shannon divergence.
        unlearning: weight, in the outer problem, of the shared examples' loss.
        precision: "bf16" autocast or "fp32".
    """

    title: ClassVar[str] = "SAU"
    story: ClassVar[tuple[str, ...]] = (
        "Shared adversarial unlearning (SAU): in turns, perturbations were sought that lead a copy of the model and "
        "the model itself to the same wrong classes, and the copy was taught not to follow them.",
    )
    every_class: ClassVar[bool] = True
    smoke: ClassVar[Mapping[str, Any]] = {"rounds": 1, "steps": 1}
    # Fewer rounds with larger steps on smaller batches, as i-BAU.
    laptop: ClassVar[Mapping[str, Any]] = {"rounds": 5, "batch_size": 128, "lr": 1e-3}

    rounds: int = 100
    batch_size: int = 256
    lr: float = 1e-4
    radius: float = 0.2
    steps: int = 5
    step_size: float = 0.2
    fooling: float = 0.01
    agreement: float = 1.0
    unlearning: float = 1.0
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_literals(self)
        if min(self.rounds, self.batch_size, self.steps) < 1 or not min(self.lr, self.radius, self.step_size) > 0:
            raise BadInputError(
                f"SAU needs at least 1 round, image a batch and step, and a positive lr, radius and step size, got "
                f"{self.rounds}, {self.batch_size}, {self.steps}, {self.lr}, {self.radius}, {self.step_size}"
            )

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        original = copy.deepcopy(model).requires_grad_(False)
        model.requires_grad_(True)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        schedule = Schedule(
            epochs=self.rounds,
            batch_size=self.batch_size,
            lr=self.lr,
            policy="constant",
            crop_padding=0,
            flip=False,
            precision=self.precision,
        )

        def step(pixels: Tensor, labels: Tensor) -> None:
            model.requires_grad_(False)
            delta = shared_perturbation(
                lambda x: logits_by(model, x, schedule),
                lambda x: logits_by(original, x, schedule),
                pixels,
                labels,
                radius=self.radius,
                steps=self.steps,
                step_size=self.step_size,
                fooling=self.fooling,
                agreement=self.agreement,
            )
            model.requires_grad_(True)
            moved = pixels + delta
            logits, perturbed = logits_by(model, torch.cat([pixels, moved]), schedule).split(len(pixels))
            with torch.no_grad():
                before, wrong = (logits_by(original, x, schedule).argmax(dim=1) for x in (pixels, moved))
            shared = shared_loss(perturbed, labels, before, wrong)
            descend(optimizer, F.cross_entropy(logits, labels) + self.unlearning * shared)

        with run.timed("unlearn"):
            all_passes(clean, schedule, optimizer, step, run, use="sau", phase="unlearn")
        return Outcome(model)


def shared_perturbation(
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    pixels: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    radius: float,
    steps: int,
    step_size: float,
    fooling: float,
    agreement: float,
) -> Float[Tensor, "n c h w"]:
    """Perturbations that lead both models to the same wrong answers: sign steps from ``+radius`` everywhere.

    An image is fooled if a model's answer is no longer its own on the clean image. Images that do not yet fool a model
    count with its cross-entropy, those that do not yet fool both alike with the divergence of the answers, weighted by
    ``fooling`` and ``agreement``.

    ``ours`` and ``theirs`` are pixels to logits of the model that is purified and of the original; ``pixels`` lie in
    [0, 1]; the bound ``radius`` (L_inf) and ``step_size`` are in pixel units. There are at most ``steps`` steps, fewer
    once all images fool both models alike.
    """
    delta = torch.full_like(pixels, radius)
    with torch.no_grad():
        clean_ours, clean_theirs = (answer(pixels).argmax(dim=1) for answer in (ours, theirs))
    for _ in range(steps):
        point = delta.requires_grad_()
        logits, others = (answer(pixels + point) for answer in (ours, theirs))
        said, heard = logits.argmax(dim=1), others.argmax(dim=1)
        fooled, also = said != clean_ours, heard != clean_theirs
        apart = ~(fooled & also & (said == heard))
        if not apart.any():
            break
        missed = F.cross_entropy(logits[~fooled], labels[~fooled], reduction="sum") + F.cross_entropy(
            others[~also], labels[~also], reduction="sum"
        )
        loss = (agreement * divergence(logits, others)[apart].sum() - fooling * missed / 2) / len(pixels)
        delta = (point.detach() - step_size * torch.autograd.grad(loss, point)[0].sign()).clamp(-radius, radius)
    return delta.detach()


def divergence(logits: Float[Tensor, "n k"], others: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The Jensen-Shannon divergence of two models' probabilities, in nats, for each image."""
    one, other = (values.softmax(dim=1).clamp_min(1e-8) for values in (logits, others))
    middle = (one + other).log() - math.log(2)
    return 0.5 * (one * (one.log() - middle) + other * (other.log() - middle)).sum(dim=1)


def shared_loss(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], before: Int64[Tensor, " n"], wrong: Int64[Tensor, " n"]
) -> Float[Tensor, ""]:
    """``-log(1 - p)`` of the original's answer to the perturbed image, where it is a fooled one; over all n.

    ``logits`` are those of the model that is purified, on the perturbed images; the original is fooled where its
    answers to these, ``wrong``, differ from both the true labels and its answers ``before``, to the clean images.
    """
    fooled = (wrong != labels) & (wrong != before)
    return log_one_minus(logits, wrong)[fooled].sum() / len(labels)
