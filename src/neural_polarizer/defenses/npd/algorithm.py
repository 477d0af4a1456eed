"""Alg. 1 (NPD), 2 (NPD-TU) and 3 (NPD-TP) of the paper, to be read beside it: the numbers are those of its lines.

Lines 1 and 2 are what goes in and comes out.  The frozen network f, its layer g and the cached values of the clean
images are ``engine.Engine``'s.
"""

import math
from collections import defaultdict
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Run
from neural_polarizer.defenses.descent import Descent
from neural_polarizer.defenses.engine import Engine, Values
from neural_polarizer.defenses.npd.aims import Aim, aim_of
from neural_polarizer.defenses.npd.objective import objective
from neural_polarizer.defenses.npd.settings import NPDSettings, Target
from neural_polarizer.defenses.schedule import feature_units_rate
from neural_polarizer.layer.polarizer import batch_statistics
from neural_polarizer.perturb import Ball, perturb
from neural_polarizer.progress import Progress


def engine_of(settings: NPDSettings, model: nn.Module, clean: ImageSet, run: Run) -> Engine:
    """``model`` with the layer that is to be learned."""
    return Engine(
        model,
        clean,
        seed=run.seed,
        site=settings.site,
        structure=settings.structure,
        batch_size=settings.batch_size,
        precision=settings.precision,
        compile=settings.compile,
        device=run.device,
    )


def initialise(settings: NPDSettings, net: Engine, *, seed: int, progress: Progress) -> float:
    """Lines 3 and 4: the layer as the identity, then T0 epochs of warm-up with the benign loss.

    A calibrated layer (ours) is the exact identity for the clean images' statistics, and needs no warm-up. Returns the
    learning rate of the parameters that have the features' unit, as a share of the other parameters'.
    """
    if settings.init == "calibrated":
        _, var = net.calibrate()  # line 3
        return feature_units_rate(var, settings.small_features)
    descent, total = Descent(net.polarizer), settings.warmup_epochs * net.steps
    net.polarizer.train()
    for epoch in range(settings.warmup_epochs):  # line 4
        descent.keep()
        for step, rows in enumerate(net.batches(seed, "warm-up", epoch)):
            loss = F.cross_entropy(net.logits(_clean(net, rows)), net.labels[rows])
            descent.step(loss, settings.warmup_lr)
            progress("warm-up", epoch * net.steps + step + 1, total)
        if not descent.is_finite():
            descent.restore()
            net.notes.append(f"the loss was not finite in epoch {epoch + 1} of the warm-up, which ended before it")
            break
    net.polarizer.eval()
    return 1.0


def optimise(
    settings: NPDSettings, net: Engine, target: Target, *, unit_rate: float, seed: int, progress: Progress
) -> list[dict[str, float]]:
    """Lines 5 to 9: the bi-level loop; it stops with the last finite layer if the loss is not finite.

    ``net`` has an initialised layer, of which ``initialise`` gave ``unit_rate``; ``target`` is that of line 7, None for
    the runner-up. Returns one record per epoch: the means of ``objective``'s terms over the clean images.
    """
    epochs = settings.epochs_of(net.steps)
    descent = _descent(settings, net, unit_rate)
    history: list[dict[str, float]] = []
    for epoch in range(epochs):  # line 5
        descent.keep()
        sums: dict[str, Tensor | float] = defaultdict(float)
        for step, rows in enumerate(net.batches(seed, "optimise", epoch)):  # line 6
            done = epoch * net.steps + step
            clean, labels, hostile, aim = _clean(net, rows), net.labels[rows], None, None
            logits = net.logits(clean)
            if settings.adversarial:
                aim = aim_of(target, logits.detach(), labels)  # line 7: eq. 4
                hostile = perturbed(settings, net, rows[aim.places], aim, done)  # line 8: eq. 5
            loss, terms = _outer_loss(settings, net, clean, logits, labels, hostile, aim)  # line 9: eq. 6
            descent.step(loss, settings.rate(done, epochs * net.steps))  # line 9: SGD
            for name, value in terms.items():
                sums[name] += value * len(rows) / len(net.labels)
            progress("optimise", done + 1, epochs * net.steps)
        record = {"epoch": float(epoch + 1), **{name: float(value) for name, value in sums.items()}}
        if not descent.is_finite() or not all(map(math.isfinite, record.values())):
            descent.restore()
            net.notes.append(f"the loss was not finite in epoch {epoch + 1}; kept the polarizer of epoch {epoch}")
            break
        history.append(record)
    return history


def _descent(settings: NPDSettings, net: Engine, unit_rate: float) -> Descent:
    """The SGD of line 9; shortening long gradients is ours."""
    return Descent(
        net.polarizer,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        max_gradient=settings.max_gradient,
        unit_rate=unit_rate,
    )


def perturbed(settings: NPDSettings, net: Engine, rows: Int64[Tensor, " n"], aim: Aim, done: int) -> Values | None:
    """Line 8, the inner problem (eq. 5), by eq. 8 (NPD, NPD-TP), eq. 10 (NPD-TU) or eq. 7 (untargeted ones).

    ``rows`` are the places of the images among the clean ones, ``aim`` is theirs, and ``done`` outer steps came before.
    Returns what the network makes of the perturbed images in front of the layer; None if there are none.
    """
    if len(rows) == 0:
        return None
    pixels = to_pixels(net.images[rows]).contiguous(memory_format=torch.channels_last)
    targeted = settings.goal == "targeted"
    delta = perturb(
        net.predict,
        pixels,
        aim.targets if targeted else aim.labels,
        ball=Ball(settings.norm, settings.radius(len(rows), done)),
        steps=settings.steps,
        step_size=settings.step_size,
        targeted=targeted,
        universal=settings.perturbation == "universal",
        rule=settings.step_rule,
        stop_above=settings.early_stop,
    )
    with torch.no_grad():
        return net.front((pixels + delta).clamp(0, 1))


def _outer_loss(
    settings: NPDSettings,
    net: Engine,
    clean: Values,
    logits: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    hostile: Values | None,
    aim: Aim | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 6.  With batch statistics (reference code, Tiny ImageNet) the clean images take a pass of their own."""
    in_training = settings.bn_outer == "train_clean_stats"
    if in_training:
        with batch_statistics(net.polarizer, follow=True):
            logits = net.logits(clean)
    if hostile is None:
        return objective(settings, logits, labels, None, None)
    with batch_statistics(net.polarizer, follow=False) if in_training else nullcontext():
        return objective(settings, logits, labels, net.logits(hostile), aim)


def _clean(net: Engine, rows: Tensor) -> Values:
    return tuple(value[rows] for value in net.values)
