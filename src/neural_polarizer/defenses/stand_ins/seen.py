"""The clean images as a search sees them, at one place of the network."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.engine import Engine, Values
from neural_polarizer.defenses.stand_ins.forms import PixelForm
from neural_polarizer.defenses.stand_ins.least import Space, StandIns, wanted_labels
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.layer.sites import candidates, last_map
from neural_polarizer.perturb import clip, each_length


@dataclass(frozen=True, eq=False)
class Seen:
    """The clean images that a search may see, and what the frozen network makes of them."""

    net: Engine  # the engine; its layer is the identity
    labels: Int64[Tensor, " n"]  # their true labels
    wanted: Int64[Tensor, "a n"]  # for each aim the label that each is to get
    values: Values  # in front of the layer
    logits: Float[Tensor, "n k"]  # the frozen network's, float32
    feature_norm: float  # mean L2 norm of the layer's input

    def in_pixels(self, form: PixelForm) -> Space:
        """Pictures, which keep their range."""

        def forward(rows: Tensor, deltas: Tensor) -> Tensor:
            return self.net.predict(clip(to_pixels(self.net.images[rows]) + deltas))

        return Space(forward, self.labels, self.wanted, form.shape, form.unit)

    def in_features(self) -> Space:
        """The layer's input."""

        def forward(rows: Tensor, deltas: Tensor) -> Tensor:
            return self.net.logits(tuple(value[rows] for value in self.values), deltas)

        return Space(forward, self.labels, self.wanted, self.net.features.shape, self.feature_norm)


def engine_at(
    settings: Settings, model: nn.Module, clean: ImageSet, site: str | None, *, seed: int, device: torch.device | str
) -> tuple[Engine, float]:
    """A network with the identity at ``site``, which takes no gradients; and the standard deviation of its input.

    Raises:
        BadInputError: as ``Engine``.
    """
    net = Engine(
        model,
        clean,
        seed=seed,
        site=site,
        batch_size=settings.batch_size,
        precision=settings.precision,
        device=device,
    )
    unit = float(net.calibrate()[1].mean().sqrt())
    net.polarizer.requires_grad_(False)
    return net, unit


def at_last_map(
    settings: Settings, model: nn.Module, clean: ImageSet, net: Engine, *, seed: int, device: torch.device | str
) -> Seen | None:
    """What is seen at the last map of the network (``sites.last_map``); None where it is ``net``'s site, or none."""
    site = last_map(net.sites or candidates(copy.deepcopy(model).to(device).eval(), to_pixels(net.images[:4])))
    if site is None or site == net.site:
        return None
    return seen(engine_at(settings, model, clean, str(site), seed=seed, device=device)[0], settings.batch_size)


def seen(net: Engine, batch_size: int) -> Seen:
    """What a search may see of the clean images."""
    logits, norms = [], []
    with torch.no_grad():
        for batch in torch.arange(len(net.labels), device=net.device).split(batch_size):
            part = tuple(value[batch] for value in net.values)
            logits.append(net.logits(part))
            norms.append(each_length(net.layer_input(part).float()).flatten())
    return Seen(
        net,
        net.labels,
        wanted_labels(net.labels, net.num_classes),
        net.values,
        torch.cat(logits),
        float(torch.cat(norms).mean()),
    )


def succeeding(found: StandIns, led: float, cap: float) -> Tensor:
    """Which lead at least the share ``led`` of their images over without being at the cap."""
    return (found.success >= led) & (found.norms < 0.99 * cap)
