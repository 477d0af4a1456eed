"""i-BAU (Zeng et al., 2022): unlearn a universal perturbation by the implicit hypergradient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.result import Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.normalize import Normalized

Loss = Callable[[Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class IBAU(Defense):
    """Minimise over the weights what one perturbation for all images maximises.

    Source: Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022.
    Departures from the reference: at least one image of a batch carries the perturbation, so that small clean sets
    are not plain fine-tuning.  As there, the perturbation lives behind the normalisation, without clipping.

    Args:
        rounds: of inner and outer problem.
        batch_size: clean images a batch.
        inner_lr: of the perturbation's SGD.
        inner_weight: of its squared norm.
        fixed_point_lr: step of the map whose fixed point gives the hypergradient.
        iterations: K, of the fixed-point iteration.
        lr: of Adam (amsgrad) on the weights.
        portion: share of a batch that carries the perturbation in the outer problem.
    """

    title: ClassVar[str] = "i-BAU"
    story: ClassVar[tuple[str, ...]] = (
        "i-BAU: in turns, one perturbation was sought that misleads the model on all images at once, and the weights "
        "of a copy were changed so that it no longer does.",
    )
    smoke: ClassVar[Mapping[str, Any]] = {"rounds": 1, "iterations": 1}
    # Smaller batches, so that fewer rounds have as many steps as the paper's, and a larger rate, as FT.
    laptop: ClassVar[Mapping[str, Any]] = {"rounds": 3, "batch_size": 128, "lr": 1e-3}

    rounds: int = 5
    batch_size: int = 256
    inner_lr: float = 10.0
    inner_weight: float = 1e-3
    fixed_point_lr: float = 0.1
    iterations: int = 5
    lr: float = 1e-4
    portion: float = 0.01

    def __post_init__(self) -> None:
        if min(self.rounds, self.batch_size, self.iterations) < 1 or not 0 < self.portion <= 1 or self.lr <= 0:
            raise BadInputError(
                f"i-BAU needs at least 1 round, image a batch and iteration, a portion in (0, 1] and a positive lr, "
                f"got {self.rounds}, {self.batch_size}, {self.iterations}, {self.portion}, {self.lr}"
            )

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        # Only the plain kernel of attention has the second derivatives that the hypergradient takes.
        with run.timed("unlearn"), sdpa_kernel(SDPBackend.MATH):
            self._unlearn(model, clean, run)
        return Outcome(model)

    def _unlearn(self, model: nn.Module, clean: ImageSet, run: Run) -> None:
        """Change the weights of ``model`` in place; batch-norm statistics stay as they are."""
        weights = list(model.requires_grad_(True).parameters())
        optimizer = torch.optim.Adam(weights, lr=self.lr, amsgrad=True)
        order = torch.randperm(len(clean), generator=run.stream("i-bau")).split(self.batch_size)
        core, enter = split_normalisation(model)
        place = run.device
        batches = [(enter(to_pixels(clean.images[rows].to(place))), clean.labels[rows].to(place)) for rows in order]
        for done in range(self.rounds):
            delta = self._perturbation(core, batches)
            for number, (pixels, labels) in enumerate(batches):
                generator = run.stream("i-bau patch", done, number)
                carriers = torch.randperm(len(pixels), generator=generator)[: max(1, int(self.portion * len(pixels)))]
                patched = torch.zeros(len(pixels), 1, 1, 1, device=pixels.device)
                patched[carriers.to(pixels.device)] = 1

                def outer(d: Tensor, _weights: Sequence[Tensor], x: Tensor = pixels, y: Tensor = labels) -> Tensor:
                    return F.cross_entropy(core(x + patched * d), y)  # noqa: B023 (called at once)

                def inner(d: Tensor, _weights: Sequence[Tensor]) -> Tensor:
                    return self._inner(core, batches[0][0], batches[0][1], d)

                gradient = hypergradient(
                    outer, inner, delta, weights, lr=self.fixed_point_lr, iterations=self.iterations
                )
                for weight, value in zip(weights, gradient, strict=True):
                    weight.grad = value
                optimizer.step()
                run.progress("unlearn", done * len(batches) + number + 1, self.rounds * len(batches))

    def _inner(self, network: nn.Module, pixels: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
        return -F.cross_entropy(network(pixels + delta), labels) + self.inner_weight * delta.square().sum()

    def _perturbation(self, network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """One pass of SGD over the clean images, away from the model's own predictions."""
        delta = torch.zeros_like(batches[0][0][:1])
        for pixels, _ in batches:
            point = delta.requires_grad_()
            with torch.no_grad():
                predicted = network(pixels).argmax(dim=1)
            (gradient,) = torch.autograd.grad(self._inner(network, pixels, predicted, point), point)
            delta = point.detach() - self.inner_lr * gradient
        return delta.detach()


def split_normalisation(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The network behind the normalisation, and the normalisation; the model itself and nothing if it has none."""
    if type(model) is Normalized:  # those derived from it do more than this to pixels and logits
        mean, std = model.mean, model.std
        return model.network, lambda pixels: (pixels - mean) / std
    return model, lambda pixels: pixels


def hypergradient(
    outer: Loss, inner: Loss, delta: Float[Tensor, "*d"], weights: Sequence[Tensor], *, lr: float, iterations: int
) -> list[Tensor]:
    """``d outer(delta*(w), w) / dw`` where ``delta*`` is the minimiser of ``inner``, without any Jacobian.

    The map ``Phi = delta - lr * d inner / d delta`` has the minimiser as its fixed point, so the implicit part is
    ``(dPhi / dw)^T v`` with ``v = (dPhi / d delta)^T v + d outer / d delta``, iterated K times from 0; ``lr`` is small
    enough for Phi to contract. ``delta`` is the approximate minimiser of ``inner``, which is twice differentiable.
    Gives one tensor for each of ``weights``, leaves that need a gradient; zeros where nothing depends on it.
    """
    point = delta.detach().clone().requires_grad_()
    found = torch.autograd.grad(outer(point, weights), [point, *weights], allow_unused=True)
    direct, *explicit = found
    towards = torch.zeros_like(point) if direct is None else direct
    (slope,) = torch.autograd.grad(inner(point, weights), point, create_graph=True)
    phi = point - lr * slope
    vector = torch.zeros_like(point)
    for _ in range(iterations):
        (pulled,) = torch.autograd.grad(phi, point, grad_outputs=vector, retain_graph=True)
        moved = pulled + towards
        if float((moved - vector).norm()) < 1e-10:
            vector = moved
            break
        vector = moved
    implicit = torch.autograd.grad(phi, list(weights), grad_outputs=vector, allow_unused=True)
    return [
        sum((part for part in parts if part is not None), torch.zeros_like(weight))
        for weight, parts in zip(weights, zip(explicit, implicit, strict=True), strict=True)
    ]
