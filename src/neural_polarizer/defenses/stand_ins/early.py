"""Stand-ins in features: perturbations of an earlier map, and what they make of the layer's input."""

from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.stand_ins.least import StandIns, drawn_forms, least_stand_ins
from neural_polarizer.defenses.stand_ins.seen import engine_at, seen, succeeding
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.sites import on_the_way
from neural_polarizer.progress import Progress


class EarlyMap:
    """The map ``Bank.depth`` of the way to the layer of ``net``, where what is added is looked for.

    In a network without such a place it is the layer's own input. ``net`` has the identity and is left as it is.
    """

    def __init__(
        self, settings: Settings, net: Engine, clean: ImageSet, *, seed: int, device: torch.device | str
    ) -> None:
        self._settings = settings
        site = on_the_way(net.model, net.polarizer, to_pixels(net.images[:4]), settings.bank.depth)
        at = partial(engine_at, settings, net.model, clean, seed=seed, device=device)
        self._net = net if site is None else at(str(site))[0]
        layers = [each for each in self._net.model.modules() if isinstance(each, Polarizer)]
        self._layer = next((each for each in layers if each is not self._net.polarizer), None)
        self._seen = seen(self._net, settings.batch_size)

    def stand_ins(
        self, aims: Int64[Tensor, " m"], dense: float, generator: torch.Generator, told: Progress, phase: str
    ) -> StandIns:
        """Least stand-ins, this share of them ``dense`` and the others in windows; without those that do not succeed.

        The generator (on the CPU) draws them.
        """
        search, features = self._settings.in_features, self._net.features
        forms = drawn_forms(
            len(aims),
            features.shape,
            features.places,
            dense=dense,
            largest=1.0,
            generator=generator,
            device=self._net.device,
        )
        found = least_stand_ins(
            self._seen.in_features(),
            aims,
            forms,
            search=search,
            batch_size=self._settings.batch_size,
            generator=generator,
            told=partial(told, phase),
        )
        return found.select(succeeding(found, self._settings.bank.led, search.cap * self._seen.feature_norm))

    @torch.no_grad()
    def moves(self, rows: Int64[Tensor, " b"], deltas: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """By how much ``deltas`` move the layer's input, of the images in these ``rows``."""
        if self._layer is None:
            return deltas
        found: list[Tensor] = []
        values = tuple(value[rows] for value in self._net.values)
        with self._layer.register_forward_pre_hook(lambda _layer, args: found.append(args[0].float())):
            self._net.logits(values)
            self._net.logits(values, deltas)
        return found[1] - found[0]
