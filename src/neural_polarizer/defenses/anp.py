"""ANP (Wu & Wang, 2021): prune the neurons that adversarial noise on the batch norms turns most easily."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.passes import logits_by
from neural_polarizer.defenses.result import Audit, Outcome
from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import global_rng
from neural_polarizer.settings import check_literals
from neural_polarizer.train.fit import descend
from neural_polarizer.train.schedule import Schedule

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, kw_only=True)
class ANP(Defense):
    """Learn a mask on every channel of every batch norm against noise on their weights; prune what it gives up.

    Source: Wu & Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021.
    Departures from the reference: the threshold is fixed (the reference chooses it by the test set's ASR); works on
    any network with batch norms.

    Args:
        eps: bound of the noise's start and length of its steps together.
        steps: of the noise.
        alpha: weight of the clean loss; the rest is the noisy loss's.
        threshold: channels whose mask ends at or below it are pruned.
        lr: of the mask's SGD (momentum 0.9).
        iterations: batches in all, drawn with replacement.
        batch_size: clean images a batch.
        crop_padding: pixels of zero padding for random crops.
        flip: mirror half of the images.
        precision: "bf16" autocast or "fp32".
    """

    title: ClassVar[str] = "ANP"
    story: ClassVar[tuple[str, ...]] = (
        "Adversarial neuron pruning (ANP): it was learned which channels of the batch norms can be given up if all of "
        "them are disturbed in the worst way, since those of a backdoor are disturbed most easily.",
        "These channels were switched off; no other weight was changed.",
    )
    smoke: ClassVar[Mapping[str, Any]] = {"iterations": 10}
    # As far as the masks can move in the paper's 2,000 steps.
    laptop: ClassVar[Mapping[str, Any]] = {"iterations": 500, "batch_size": 64, "lr": 0.04}

    eps: float = 0.4
    steps: int = 1
    alpha: float = 0.2
    threshold: float = 0.4
    lr: float = 0.01
    iterations: int = 2000
    batch_size: int = 256
    crop_padding: int = 4
    flip: bool = True
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_literals(self)
        if self.eps <= 0 or min(self.steps, self.iterations, self.batch_size) < 1 or not 0 <= self.alpha <= 1:
            raise BadInputError(
                f"ANP needs a positive eps, at least 1 step, iteration and image a batch, and alpha in [0, 1], got "
                f"{self.eps}, {self.steps}, {self.iterations}, {self.batch_size}, {self.alpha}"
            )

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("prune"):
            masks = self.masks(model, clean, run)
            count = prune(model, masks, self.threshold)
        total = sum(mask.numel() for mask in masks.values())
        summary = f"Pruned {count} of {total} channels: those whose mask ended at {self.threshold} or below."
        return Outcome(model, Audit(summary, {}))

    def masks(self, model: nn.Module, clean: ImageSet, run: Run) -> dict[str, Float[Tensor, " c"]]:
        """The learned mask of each batch norm of ``model``, which is left as it is, by its name; in [0, 1]."""
        network = copy.deepcopy(model).requires_grad_(False)
        noisy = masked_norms(network, "ANP")
        network.train()
        optimizer = torch.optim.SGD([norm.mask for norm in noisy.values()], lr=self.lr, momentum=0.9)
        noises = [noise for norm in noisy.values() for noise in (norm.on_weight, norm.on_bias)]
        recipe = Schedule(crop_padding=self.crop_padding, flip=self.flip, precision=self.precision)
        images, labels = clean.images.to(run.device), clean.labels.to(run.device)

        def loss_on(pixels: Tensor, wanted: Tensor) -> Tensor:
            return F.cross_entropy(logits_by(network, pixels, recipe), wanted)

        with global_rng(run.seed, "anp dropout"):
            for done in range(self.iterations):
                generator = run.stream("anp", done)
                size = min(self.batch_size, len(labels))
                rows = torch.randint(len(labels), (size,), generator=generator).to(run.device)
                pixels, wanted = to_pixels(recipe.augment(images[rows], generator)), labels[rows]
                self._climb(noises, partial(loss_on, pixels, wanted), generator)
                loss = (1 - self.alpha) * loss_on(pixels, wanted)
                for noise in noises:
                    noise.data.zero_()
                descend(optimizer, loss + self.alpha * loss_on(pixels, wanted))
                for norm in noisy.values():
                    norm.mask.data.clamp_(0, 1)
                run.progress("masks", done + 1, self.iterations)
        return {name: norm.mask.detach().cpu() for name, norm in noisy.items()}

    def _climb(self, noises: Sequence[Tensor], loss: Callable[[], Tensor], generator: torch.Generator) -> None:
        """Sign steps of the noises, from random starts, to where the loss is high."""
        for noise in noises:
            start = (2 * torch.rand(noise.shape, generator=generator) - 1) * self.eps
            noise.data.copy_(start)
        for _ in range(self.steps):
            for noise, slope in zip(noises, torch.autograd.grad(loss(), noises), strict=True):
                noise.data.add_(self.eps / self.steps * slope.sign())


class MaskedNorm(nn.Module):
    """A batch norm with a mask on gamma, and noise on gamma and beta: ``gamma (m + xi) x + beta (1 + nu)``."""

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.norm = norm
        self.mask = nn.Parameter(torch.ones_like(norm.weight))
        self.on_weight = nn.Parameter(torch.zeros_like(norm.weight))
        self.on_bias = nn.Parameter(torch.zeros_like(norm.weight))

    def forward(self, features: Tensor) -> Tensor:
        return F.batch_norm(
            features,
            None,
            None,
            self.norm.weight * (self.mask + self.on_weight),
            self.norm.bias * (1 + self.on_bias),
            training=True,
            eps=self.norm.eps,
        )


def masked_norms(model: nn.Module, method: str) -> dict[str, MaskedNorm]:
    """Replace every batch norm of ``model``, in place, by one with a mask, and with noise that is zero; those, by name.

    A network without any is refused in the name of the ``method``.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine
    ]
    if not names:
        raise BadInputError(f"{method} prunes channels of batch norms, but this network has none; use another defense")
    found = {}
    for name in names:
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        found[name] = MaskedNorm(norm)
        model.set_submodule(name, found[name])
    return found


@torch.no_grad()
def prune(model: nn.Module, masks: Mapping[str, Float[Tensor, " c"]], threshold: float) -> int:
    """Set gamma to zero, in place, where the mask is at most ``threshold``; returns the number of channels."""
    count = 0
    for name, mask in masks.items():
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        gone = mask.to(norm.weight.device) <= threshold
        norm.weight[gone] = 0
        count += int(gone.sum())
    return count
