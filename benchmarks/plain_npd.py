"""NPD as the reference procedure does it, step by step: every pass through the whole network, nothing cached.

``npd_speed.py`` measures our implementation against this one; a test holds both to the same result.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.surgery import Site, insert
from neural_polarizer.losses import asr_loss, boosted_cross_entropy, runner_up
from neural_polarizer.perturb import clip
from neural_polarizer.rng import stream


def plain_npd(
    model: nn.Module,
    clean: ImageSet,
    settings: NPD,
    *,
    seed: int,
    precision: str = "fp32",
    layout: torch.memory_format = torch.contiguous_format,
) -> Polarizer:
    """The polarizer that Alg. 1 learns, with the authors' order of work; only for the method ``npd``.

    A batch costs a clean forward pass, in each inner step a forward, a backward and one more forward pass to see
    whether the perturbation has succeeded, then two forward passes and the backward pass of the outer step.

    Args:
        model: float pixels in [0, 1] to logits; untouched.
        clean: the defender's images.
        settings: per-sample targeted perturbations with sign steps in an L2 ball, constant learning rate, warm-up.
        seed: fixes the order of the batches, as in ``NPD.repair``.
        precision: "fp32" or "bf16" autocast.
        layout: of images and weights.
    """
    pixels, labels = to_pixels(clean.images).contiguous(memory_format=layout), clean.labels
    assert settings.site is not None
    site = Site.parse(settings.site)
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    polarizer = Polarizer(features_at(frozen, site, pixels[:2]).channels).eval()
    network = insert(frozen, site, polarizer).to(memory_format=layout)

    def predict(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return network(x).float()

    def batches(phase: str, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in range(epochs):
            order = torch.randperm(len(labels), generator=stream(seed, phase, epoch))
            yield from ((pixels[rows], labels[rows]) for rows in order.split(settings.batch_size))

    def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    warm = torch.optim.SGD(polarizer.parameters(), lr=settings.warmup_lr)
    polarizer.train()
    for x, y in batches("warm-up", settings.warmup_epochs):
        step(warm, F.cross_entropy(predict(x), y))
    polarizer.eval()

    optimizer = torch.optim.SGD(
        polarizer.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    for x, y in batches("optimise", settings.epochs or 0):
        logits = predict(x).detach()
        targets = runner_up(logits, y)
        delta = _perturbation(predict, x, targets, settings)
        adversarial = predict((x + delta).clamp(0, 1))
        shown = logits.argmax(dim=1) if settings.bce_label == "predicted" else None
        loss = settings.benign_weight * F.cross_entropy(predict(x), y)
        loss = loss + settings.asr_weight * asr_loss(adversarial, targets, settings.loss_form)
        loss = loss + settings.bce_weight * boosted_cross_entropy(adversarial, y, settings.loss_form, shown)
        step(optimizer, loss)
    return polarizer


def _perturbation(predict: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor, settings: NPD) -> Tensor:
    """Eq. 5 for each image alone; the pass after each step looks whether most images have reached their target."""
    (radius,) = settings.radii
    delta = torch.zeros_like(x)
    for _ in range(settings.steps):
        point = delta.clone().requires_grad_()
        loss = F.cross_entropy(predict(clip(x + point)), targets)
        loss.backward()  # the reference's way: the polarizer's gradients are computed, too, and cleared later
        assert point.grad is not None
        delta = delta - settings.step_size * point.grad.sign()
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = delta * (radius / length.clamp_min(1e-12)).clamp_max(1)
        reached = (predict((x + delta).clamp(0, 1)).argmax(dim=1) == targets).float().mean()
        if settings.early_stop is not None and bool(reached > settings.early_stop):
            break
    return delta
