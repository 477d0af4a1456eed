"""Neural Polarizer Defense: NPD, NPD-TP, NPD-TU and the untargeted NPD-UP, NPD-UU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.fitting import check_target
from neural_polarizer.defenses.npd.algorithm import engine_of, initialise, optimise
from neural_polarizer.defenses.npd.settings import NPDSettings
from neural_polarizer.defenses.result import Outcome


@dataclass(frozen=True, kw_only=True)
class NPD(NPDSettings, Defense):
    """Learn one inserted linear layer that takes the backdoor out of a frozen network.

    Source: Zhu et al., "Neural Polarizer", NeurIPS 2023, Alg. 1 (NPD), 2 (NPD-TU), 3 (NPD-TP), section 4.3 (-UU,
    -UP).  Departures: the defaults are those of docs/research/defaults.md; ``npd.presets`` has the paper's own.
    """

    title: ClassVar[str] = "NPD"
    story: ClassVar[tuple[str, ...]] = (
        "Because the trigger is unknown, each step first looked for small perturbations that make the network choose "
        "{aim}, and used them in its place.",
    )
    inserts: ClassVar[bool] = True
    revision: ClassVar[int] = 4
    least_images: ClassVar[int] = 1
    smoke: ClassVar[Mapping[str, Any]] = {"epochs": 2}

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("features"):
            net = engine_of(self, model, clean, run)
            check_target(self.target, net.num_classes)
        with run.timed("warm_up"):
            unit_rate = initialise(self, net, seed=run.seed, progress=run.progress)
        with run.timed("optimise"):
            history = optimise(self, net, self.target, unit_rate=unit_rate, seed=run.seed, progress=run.progress)
        return Outcome(
            net.model,
            polarizer=net.polarizer,
            site=str(net.site),
            site_reason=net.site_reason,
            history=history,
            notes=tuple(net.notes),
        )
