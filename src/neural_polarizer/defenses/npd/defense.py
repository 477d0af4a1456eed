"""Neural Polarizer Defense: NPD, NPD-TP, NPD-TU and the untargeted NPD-UP, NPD-UU."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Purified
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.npd.aims import targets_of
from neural_polarizer.defenses.npd.algorithm import initialise, optimise
from neural_polarizer.defenses.npd.settings import NPDSettings
from neural_polarizer.train import Progress, silent


@dataclass(frozen=True, kw_only=True)
class NeuralPolarizer(NPDSettings):
    """Learn one inserted linear layer that takes the backdoor out of a frozen network.

    Source: Zhu et al., "Neural Polarizer", NeurIPS 2023, Alg. 1 (NPD), 2 (NPD-TU), 3 (NPD-TP), section 4.3 (-UU,
    -UP).  Departures: the defaults are those of docs/defaults.md; ``npd.presets`` has the paper's own.
    """

    revision: ClassVar[int] = 2

    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Purified:
        """Learn the polarizer for ``model`` from ``clean``; ``model`` is untouched.

        Args:
            model: float pixels in [0, 1] to logits ``(n, k)``.
            clean: the defender's images.
            seed: fixes the order of the batches, and the first weights of structures that need random ones: the only
                randomness.
            device: where to compute.
            progress: told about every step.

        Raises:
            BadInputError: no images, an unknown or unusable site, or a class count that does not fit.
        """
        started = time.perf_counter()
        net = Engine(
            model,
            clean,
            seed=seed,
            site=self.site,
            structure=self.structure,
            batch_size=self.batch_size,
            precision=self.precision,
            compile=self.compile,
            device=device,
        )
        targets = targets_of(self, net.num_classes)
        cached = time.perf_counter()
        unit_rate = initialise(self, net, seed=seed, progress=progress)
        warm = time.perf_counter()
        history = optimise(self, net, targets, unit_rate=unit_rate, seed=seed, progress=progress)
        seconds = {"features": cached - started, "warm_up": warm - cached, "optimise": time.perf_counter() - warm}
        return Purified(
            net.model.to("cpu").eval().requires_grad_(True),
            net.polarizer,
            str(net.site),
            history,
            seconds,
            tuple(net.notes),
            site_reason=net.site_reason,
        )
