"""The fast mode of NPD: perturbations that are carried on from batch to batch (our own; docs/performance.md)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.perturb import Ball, StepRule, clip, perturb, stepped


class Carried:
    """One perturbation that images share and one for each image, moved by one step in every batch that uses them.

    The forward pass that the layer learns from is also the one whose gradient moves the perturbation, as in "free"
    adversarial training (Shafahi et al., NeurIPS 2019): a batch costs one pass forwards and one backwards instead of
    one of each for every inner step and a last one forwards.

    Args:
        images: all clean images, ``(n, c, h, w)``; only their shape and device count.
        step_size: alpha, in pixel units.
        targeted: whether perturbations go towards the labels they are given, or away from them.
        rule: of the steps.
        first_steps: how many steps from zero the shared perturbation takes before its first use; others take one.
    """

    def __init__(self, images: Tensor, *, step_size: float, targeted: bool, rule: StepRule, first_steps: int) -> None:
        self.own = torch.zeros(images.shape, device=images.device)
        self.begun = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.shared: Tensor | None = None
        self.step_size = step_size
        self.targeted = targeted
        self.rule: StepRule = rule
        self.first_steps = first_steps

    def logits(
        self,
        predict: Callable[[Tensor], Tensor],
        pixels: Float[Tensor, "m c h w"],
        rows: Int64[Tensor, " m"],
        labels: Int64[Tensor, " m"],
        *,
        ball: Ball,
        shared: bool,
    ) -> Float[Tensor, "m k"]:
        """What ``predict`` says of the perturbed images, with its graph; then their perturbations take a step.

        Args:
            predict: pixels to logits.
            pixels: some of the images, in [0, 1].
            rows: which ones they are.
            labels: where the perturbations go, or what they go away from.
            ball: the constraint on each perturbation.
            shared: use the shared perturbation, not those of the images.
        """
        point = (
            self._shared(predict, pixels, labels, ball) if shared else self._own(predict, pixels, rows, labels, ball)
        )
        point.requires_grad_()
        logits = predict(clip(pixels + point))
        moved = stepped(
            point,
            logits,
            labels,
            ball=ball,
            step_size=self.step_size,
            targeted=self.targeted,
            rule=self.rule,
            keep_graph=True,
        )
        if shared:
            self.shared = moved
        else:
            self.own[rows] = moved
        return logits

    def _shared(self, predict: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor, ball: Ball) -> Tensor:
        if self.shared is None:
            self.shared = self._begin(predict, pixels, labels, ball, self.first_steps, universal=True)
        return self.shared

    def _own(
        self, predict: Callable[[Tensor], Tensor], pixels: Tensor, rows: Tensor, labels: Tensor, ball: Ball
    ) -> Tensor:
        fresh = ~self.begun[rows]
        if fresh.any():
            radius = ball.radius[fresh] if isinstance(ball.radius, Tensor) else ball.radius
            some = Ball(ball.norm, radius)
            self.own[rows[fresh]] = self._begin(predict, pixels[fresh], labels[fresh], some, 1, universal=False)
            self.begun[rows] = True
        return self.own[rows]

    def _begin(
        self,
        predict: Callable[[Tensor], Tensor],
        pixels: Tensor,
        labels: Tensor,
        ball: Ball,
        steps: int,
        *,
        universal: bool,
    ) -> Tensor:
        return perturb(
            predict,
            pixels,
            labels,
            ball=ball,
            steps=steps,
            step_size=self.step_size,
            targeted=self.targeted,
            universal=universal,
            rule=self.rule,
        )
