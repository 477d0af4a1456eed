"""The evidence about a network, whoever asks: the defense, an audit, or ``--target auto``."""

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.engine import Engine, Precision
from neural_polarizer.defenses.stand_ins.evidence import Belief, told_aim
from neural_polarizer.defenses.stand_ins.looks import Found, look, seen
from neural_polarizer.defenses.stand_ins.settings import Looks, Search
from neural_polarizer.suspects import Suspect
from neural_polarizer.train import Progress, silent


def searched_in_features() -> Search:
    """How a least stand-in at the layer's input is looked for."""
    return Search(steps=12, images=16, success=0.8, start=0.5, cap=4.0, change=0.15)


def frozen(
    model: nn.Module,
    clean: ImageSet,
    site: str | None,
    *,
    batch_size: int,
    precision: Precision,
    seed: int,
    device: torch.device | str,
) -> tuple[Engine, float]:
    """The network with a layer that is the identity and takes no gradients, and the root of its input's variance.

    Raises:
        BadInputError: no images, an unknown or unusable site, or a class count that does not fit.
    """
    net = Engine(model, clean, seed=seed, site=site, batch_size=batch_size, precision=precision, device=device)
    unit = float(net.calibrate()[1].mean().sqrt())
    net.polarizer.requires_grad_(False)
    return net, unit


def found_in(
    model: nn.Module,
    clean: ImageSet,
    site: str | None = None,
    *,
    looks: Looks | None = None,
    pixels: Search | None = None,
    features: Search | None = None,
    batch_size: int = 128,
    precision: Precision = "fp32",
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> tuple[Engine, Found]:
    """What all clean images tell about ``model``, which is untouched; settings that are None have their defaults.

    Args:
        model: float pixels in [0, 1] to logits ``(n, k)``.
        clean: the defender's images.
        site: where the layer's input is; None takes ``sites.choose_site``.
        looks: what is looked at.
        pixels: how stand-ins in pixels are looked for.
        features: likewise at the layer's input.
        batch_size: the most images at once.
        precision: "fp32", or "bf16" autocast.
        seed: of all that is drawn.
        device: where to compute.
        progress: told about every step.

    Raises:
        BadInputError: no images, an unknown or unusable site, or a class count that does not fit.
    """
    net, _ = frozen(model, clean, site, batch_size=batch_size, precision=precision, seed=seed, device=device)
    found = look(
        seen(net, torch.arange(len(net.labels), device=net.device), batch_size),
        looks or Looks(),
        pixels=pixels or Search(),
        features=features or searched_in_features(),
        batch_size=batch_size,
        seed=seed,
        told=progress,
    )
    return net, found


def accused(belief: Belief, num_classes: int, level: float) -> Suspect | None:
    """The class that the evidence names, or "next"; None where nothing stands out at that level."""
    return told_aim(belief.likeliest, num_classes) if belief.p_value < level else None
