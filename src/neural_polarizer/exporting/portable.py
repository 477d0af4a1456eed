"""The form in which a model leaves: without its polarizer where that is possible, and with what to say about it."""

import json
import math
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
from neural_polarizer.models.forms import copied, in_float32
from neural_polarizer.models.normalize import bare, one_logit


@dataclass(frozen=True, eq=False)
class Portable:
    """A model that is ready to be written."""

    model: nn.Module  # in evaluation mode, float32, on the CPU
    reference: nn.Module  # the same with its polarizer, for comparison
    record: ModelRecord  # what is known about it
    layer: str | None  # what became of the polarizer, in one line; None if there was none
    image_shape: tuple[int, int, int]  # ``(c, h, w)`` of the images
    output_shape: tuple[int, ...]  # of what ``model`` gives for one: ``(k,)``, or ``(1,)`` or ``()`` for one logit

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
        channels, *size = self.image_shape
        pixels = f"float32 pixels in [0, 1], {_rows(1 if self.record.grey and not inside else channels, *size)}"
        known = {name: value for name, value in asdict(self.record).items() if value not in (None, ())}
        if self.record.grey:
            known |= {"mean": self.record.mean[:1], "std": self.record.std[:1]}
        if "output" in known:
            known["output_key"] = known.pop("output")
        if _wrapped(self.model) is None:
            del known["structure"]  # of a layer that is not there
        return {
            **({} if self.layer is None else {"polarizer": self.layer}),
            "input": f"{pixels}; normalised inside the model" if inside else f"(x - mean) / std, where x is {pixels}",
            "output": self._output(inside=inside),
            **known,
            "image_size": self.image_shape[1:],
            "versions": versions(),
        }

    def _output(self, *, inside: bool) -> str:
        """What the file, or the network without what is around it, gives."""
        one = "one logit z for each image, which stands for the two logits (0, z)"
        if inside:
            rows = f"logits, {_rows(*self.output_shape)}"
            return f"{rows}: {one}" if math.prod(self.output_shape) == 1 else rows
        logits = one if self.record.yes_no else f"logits, {_rows(self.record.num_classes)}"
        part = self.record.output
        return logits if part is None else f"{logits}, as {part!r} of what the network gives"

    def in_form(self, model: nn.Module) -> nn.Module:
        """``model``, made by the record, with one logit where ``reference`` gives one."""
        return one_logit(model, self.reference) if math.prod(self.output_shape) == 1 else model

    def refilled(self, tensors: Mapping[str, Tensor], source: Path) -> nn.Module:
        """A new network, or a copy of one by code of the user's own, with ``tensors`` behind the normalisation."""
        if self.buildable:
            return self.in_form(assemble(self.record, tensors, source))
        model = copied(self.model)
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
    with torch.no_grad():
        output_shape = tuple(reference(to_pixels(images.images[:1])).shape[1:])
    known = with_structure(record or _record_of(reference, images, math.prod(output_shape)), reference)
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
    image_shape = (images.images.shape[1], *images.image_size)
    return Portable(leaving, reference, known, layer, image_shape, output_shape)


def _record_of(model: nn.Module, images: ImageSet, logits: int) -> ModelRecord:
    """What a model in memory, which gives so many logits, tells about itself."""
    record = replace(record_of_model(model, max(2, logits), takes=images.image_size), yes_no=logits == 1)
    if isinstance(getattr(model, "model_record", None), ModelRecord):  # its file has said it all
        return record
    return replace(
        record,
        mean=_shortest(record.mean),
        std=_shortest(record.std),
        image_size=images.image_size,
        classes=images.classes if images.num_classes == record.num_classes else None,
    )


def _shortest(values: Sequence[float]) -> tuple[float, ...]:
    """Values of float32 in the fewest digits that tell them, as they were written before they were rounded to it."""
    return tuple(float(str(np.float32(value))) for value in values)


def _wrapped(model: nn.Module) -> PolarizedModule | None:
    return next((module for module in model.modules() if isinstance(module, PolarizedModule)), None)


def _rows(*sizes: int) -> str:
    return " x ".join(["N", *map(str, sizes)])


def as_texts(about: Mapping[str, Any]) -> dict[str, str]:
    """The description for formats whose metadata are texts: JSON, but for what is a text already."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
