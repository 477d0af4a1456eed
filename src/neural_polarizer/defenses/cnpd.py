"""CNPD (Zhu et al., 2025): a polarizer for each class, chosen by what the network says without any."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, Literal

from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import MANY_CLASSES, Defense, Run
from neural_polarizer.defenses.npd.algorithm import engine_of, initialise, optimise
from neural_polarizer.defenses.npd.settings import NPDSettings
from neural_polarizer.defenses.result import Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.by_class import ByClass
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import insert
from neural_polarizer.perturb import StepRule


@dataclass(frozen=True, kw_only=True)
class CNPD(NPDSettings, Defense):
    """Learn layer k as NPD-TP learns its own for the target k, for every class k; the first pass's answer chooses.

    A triggered image is taken for the attacker's class in the first pass, so it meets the layer that was learned
    against this class, and no target need be known.  The price is K layers, two passes, and that nothing can be folded.

    Source: Zhu et al., "Class-Conditional Neural Polarizer", arXiv 2502.18520, r-CNPD; the settings are those of the
    paper "Neural Polarizer" for NPD-TP, by the same authors.
    Departures from the reference: no code is public, and neither the loss of r-CNPD nor its settings could be read in
    full: each layer sees all clean images, and is learned by itself for as long as NPD-TP's; the place is chosen by
    ``layer.sites.choose_site`` unless named; of r-, e- and a-CNPD only the first is here.

    Args:
        perturbation: "sample", as in NPD-TP; this and the next three can be nothing else.
        goal: "targeted".
        target: None, as every class is one in its turn.
        structure: "conv-bn", of each layer.
    """

    title: ClassVar[str] = "CNPD"
    story: ClassVar[tuple[str, ...]] = (
        "Class-conditional NPD (CNPD): this layer is a set of them, one for each class, learned one after the other "
        "against small perturbations that make the network choose that class, used in place of the unknown trigger.",
        "The network runs twice: its answer without any layer chooses the one of the second pass.",
    )
    inserts: ClassVar[bool] = True
    least_images: ClassVar[int] = 1
    smoke: ClassVar[Mapping[str, Any]] = {"epochs": 1, "warmup_epochs": 1}
    # The shipped settings of NPD-TP, for each class.
    laptop: ClassVar[Mapping[str, Any]] = {
        "init": "calibrated",
        "epochs": None,
        "batch_size": 64,
        "lr": 0.02,
        "lr_policy": "cosine",
        "max_gradient": 5.0,
        "radii": (5.0,),
        "steps": 4,
        "step_rule": "gradient",
        "bce_weight": 0.05,
    }

    for_profile: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny_imagenet": {"radii": (6.0,)}}

    init: Literal["calibrated", "default"] = "default"
    max_gradient: float | None = None
    epochs: int | None = 50
    batch_size: int = 128
    lr: float = 0.01
    lr_policy: Literal["constant", "cosine"] = "constant"
    step_rule: StepRule = "sign"
    bce_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.perturbation, self.goal, self.target, self.structure) != ("sample", "targeted", None, "conv-bn"):
            raise BadInputError(
                "CNPD learns each class's layer with that class as the target: leave perturbation, goal, target and "
                "structure as they are"
            )

    def cost_of_classes(self, images: int, classes: int) -> str | None:
        """The layers, each learned from all images."""
        if classes < MANY_CLASSES:
            return None
        steps = -(-images // self.batch_size)
        epochs = self.epochs_of(steps)
        return (
            f"CNPD learns a layer for each of {classes:,} classes, with {epochs} passes over {images} images: "
            f"{classes * epochs * steps:,} steps; a smaller --epochs makes it less, and npd-ls learns one layer only"
        )

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("features"):
            net = engine_of(self, model, clean, run)
        start, layers = copy.deepcopy(net.polarizer.state_dict()), list[Polarizer]()
        histories: list[list[dict[str, float]]] = []
        for target in range(net.num_classes):

            def told(phase: str, done: int, total: int, before: int = target) -> None:
                run.progress(phase, before * total + done, net.num_classes * total)

            net.polarizer.load_state_dict(start)
            with run.timed("warm_up"):
                unit_rate = initialise(self, net, seed=run.seed, progress=told)
            with run.timed("optimise"):
                histories.append(optimise(self, net, target, unit_rate=unit_rate, seed=run.seed, progress=told))
            layers.append(copy.deepcopy(net.polarizer))
        chosen = ByClass(layers).eval()
        return Outcome(
            insert(model, net.site, chosen),
            polarizer=chosen,
            site=str(net.site),
            site_reason=net.site_reason,
            history=mean_of(histories),
            notes=tuple(dict.fromkeys(net.notes)),
        )


def mean_of(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """One record an epoch: the mean over those of the layers that have it, value by value."""
    longest = max((len(history) for history in histories), default=0)
    epochs = [[history[epoch] for history in histories if epoch < len(history)] for epoch in range(longest)]
    return [
        {name: fmean(record[name] for record in records if name in record) for name in records[0]} for records in epochs
    ]
