"""The form in which a model leaves: without its polarizer where that is possible, and with what to say about it."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.folding.fold import fold_polarizer
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.model_files.checkpoints import load_strict
from neural_polarizer.model_files.describe import record_of_model
from neural_polarizer.model_files.load import assemble
from neural_polarizer.model_files.record import ModelRecord, folded_record, versions, with_structure
from neural_polarizer.model_files.save import network_tensors
from neural_polarizer.models.forms import in_float32
from neural_polarizer.models.normalize import bare


@dataclass(frozen=True, eq=False)
class Portable:
    """A model that is ready to be written."""

    model: nn.Module  # in evaluation mode, float32, on the CPU
    reference: nn.Module  # the same with its polarizer, for comparison
    record: ModelRecord  # what is known about it
    layer: str | None  # what became of the polarizer, in one line; None if there was none
    image_shape: tuple[int, int, int]  # ``(c, h, w)`` of the images

    @property
    def buildable(self) -> bool:
        """Whether the record alone leads to the network: code of the user's own is not at hand."""
        return self.record.definition is None

    @property
    def network(self) -> nn.Module:
        """The network alone, without the normalisation in front of it."""
        return bare(self.model)

    @property
    def obstacle(self) -> str | None:
        """Why the original architecture does not take the weights as they are, if so."""
        if _wrapped(self.model) is not None:
            return "the layer is still in the network (its tensors begin with polarizer.)"
        changed = [f"{name} ({kind})" for name, kind in self.record.changes]
        return f"folding has changed the form of {', '.join(changed)}" if changed else None

    def description(self, *, inside: bool) -> dict[str, Any]:
        """What a user of the file must know, as JSON has it; ``inside`` a file of a graph is the normalisation, too."""
        pixels = f"float32 pixels in [0, 1], N x {' x '.join(map(str, self.image_shape))}"
        known = {name: value for name, value in asdict(self.record).items() if value not in (None, ())}
        if _wrapped(self.model) is None:
            del known["structure"]  # of a layer that is not there
        return {
            **({} if self.layer is None else {"polarizer": self.layer}),
            "input": f"{pixels}; normalised inside the model" if inside else f"(x - mean) / std, where x is {pixels}",
            "output": f"logits, N x {self.record.num_classes}",
            **known,
            "image_size": self.image_shape[1:],
            "versions": versions(),
        }

    def refilled(self, tensors: Mapping[str, Tensor], source: Path) -> nn.Module:
        """A new network, or a copy of one by code of the user's own, with ``tensors`` behind the normalisation."""
        if self.buildable:
            return assemble(self.record, tensors, source)
        model = copy.deepcopy(self.model)
        network = bare(model)
        inside = dict(zip(network_tensors(network), network.state_dict(), strict=True))
        load_strict(network, {inside.get(name, name): value for name, value in tensors.items()}, source=str(source))
        return model


def portable_form(model: nn.Module, images: ImageSet, record: ModelRecord | None) -> Portable:
    """A copy of ``model`` whose polarizer is folded, if it has one that can be, which is checked on ``images``.

    ``record`` is None for a model that was never in a file of ours. Without an image, ``BadInputError`` is raised.
    """
    if len(images) == 0:
        raise BadInputError(f"{images.source}: exporting needs at least one image to compare the logits on")
    reference = in_float32(model)
    for tensor in (*reference.parameters(), *reference.buffers()):  # torch.export wants the plain memory format
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    known = with_structure(record or _record_of(reference, images), reference)
    leaving, layer = reference, None
    wrapped = _wrapped(reference)
    if wrapped is not None and not isinstance(wrapped.polarizer, Polarizer):
        layer = "folded already, into one layer at its own site, which stays"
    elif wrapped is not None:
        try:
            folded = fold_polarizer(reference, to_pixels(images.images))
        except BadInputError as error:
            layer = f"not folded, the layer stays in the model: {error}"
        else:
            leaving, layer, known = folded.model, folded.remark, folded_record(known, folded)
    return Portable(leaving, reference, known, layer, (images.images.shape[1], *images.image_size))


@torch.no_grad()
def _record_of(model: nn.Module, images: ImageSet) -> ModelRecord:
    """What a model in memory tells about itself."""
    num_classes = model(to_pixels(images.images[:1])).shape[-1]
    record = record_of_model(model, num_classes, image_size=images.image_size)
    if record.classes is None and images.num_classes == num_classes:
        record = replace(record, classes=images.classes)
    return replace(record, mean=_shortest(record.mean), std=_shortest(record.std))


def _shortest(values: Sequence[float]) -> tuple[float, ...]:
    """Values of float32 in the fewest digits that tell them, as they were written before they were rounded to it."""
    return tuple(float(str(np.float32(value))) for value in values)


def _wrapped(model: nn.Module) -> PolarizedModule | None:
    return next((module for module in model.modules() if isinstance(module, PolarizedModule)), None)


def as_texts(about: Mapping[str, Any]) -> dict[str, str]:
    """The description for formats whose metadata are texts: JSON, but for what is a text already."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
