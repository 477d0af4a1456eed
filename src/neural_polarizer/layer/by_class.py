"""One layer for each class, and the first pass of the network that chooses among them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.polarizer import Polarizer, Structure
from neural_polarizer.models.normalize import Converted, bare, picked


class FirstPass:
    """What a network says without its layer, computed in front of each call of the network by a hook on it.

    While it is ``running``, the layer lets everything through. Then ``classes`` are what it said, int64 ``(n,)``; None
    outside of a call.
    """

    def __init__(self) -> None:
        self.running = False
        self.classes: Tensor | None = None
        self._output: str | None = None

    def lead(self, model: nn.Module) -> None:
        """Hook the passes into ``model``, at the network behind its normalisation."""
        network = bare(model)
        self._output = model.output if isinstance(model, Converted) else None
        network.register_forward_pre_hook(self.begin, with_kwargs=True)
        network.register_forward_hook(self.end, always_call=True)

    def begin(self, network: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.running = True
        try:
            with torch.no_grad():
                found = network.forward(*args, **options)
        finally:
            self.running = False
        logits = found if self._output is None else picked(found, self._output)
        one = logits.ndim == 1 or logits.shape[1] == 1  # z stands for the two logits (0, z)
        self.classes = (logits.flatten() > 0).long() if one else logits.argmax(dim=1)

    def end(self, _network: nn.Module, _args: tuple[Any, ...], _found: object) -> None:
        self.classes = None


class ByClass(Polarizer):
    """A layer for each class, in their order; each image takes that of the class which the network says without any.

    So the network is run twice (``FirstPass``, which ``surgery.insert`` hooks in). It is saved and exported as other
    layers are, but cannot be folded.

    Source: Zhu et al., "Class-Conditional Neural Polarizer", arXiv 2502.18520, r-CNPD.
    Shape: as ``Polarizer``, with the images first.
    """

    structure: Structure = "by-class"

    def __init__(self, layers: Sequence[Polarizer]) -> None:
        nn.Module.__init__(self)  # without the polarizer's parts
        self.layers = nn.ModuleList(layers)
        self.first = FirstPass()

    @property
    def channels_last(self) -> bool:
        return all(isinstance(layer, Polarizer) and layer.channels_last for layer in self.layers)

    def forward(self, features: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        if self.first.running:
            return features
        classes = self.first.classes
        if classes is None:
            raise BadInputError("layers by class need two passes of the whole network: call the network, not a part")
        if classes.shape[0] != features.shape[0]:
            raise BadInputError(
                f"layers by class read {features.shape[0]} images at once where the network was given "
                f"{classes.shape[0]}; choose another site, or smaller batches"
            )
        classes = classes.view(-1, *(1 for _ in features.shape[1:]))
        given = features
        for number, layer in enumerate(self.layers):  # no choice by value, so that torch.export can follow
            given = torch.where(classes == number, layer(features), given)
        return given

    def calibrate(self, mean: Float[Tensor, " c"], var: Float[Tensor, " c"]) -> None:
        for layer in self.layers:
            assert isinstance(layer, Polarizer)
            layer.calibrate(mean, var)
