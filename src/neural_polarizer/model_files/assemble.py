"""A network from a record and tensors: built by its name, filled strictly, behind its normalisation."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.structures import polarizer_for
from neural_polarizer.layer.surgery import Site, insert
from neural_polarizer.model_files.checkpoints import load_strict
from neural_polarizer.model_files.record import POLARIZER_PREFIX, ModelRecord
from neural_polarizer.models.adapted import adapt, channel_map
from neural_polarizer.models.build import build, skeleton
from neural_polarizer.models.definition import Definition
from neural_polarizer.models.normalize import Converted, Normalized, one_channel

SPARE_NUMBERS = 50_000_000  # 200 MB: up to here the names of the missing tensors tell more than their count


def assemble(
    record: ModelRecord, tensors: Mapping[str, Tensor], file: Path, kind: str | Definition | None = None
) -> nn.Module:
    """A new float32 network of the kind that ``record`` names, filled with ``tensors``, behind its normalisation.

    Args:
        record: what is known about the model.
        tensors: by their names in the network; all that it needs, and nothing else.
        file: where they come from, for the errors.
        kind: what builds the network; None: the name in the record.

    Raises:
        BadInputError: architecture, record and tensors do not go together.
    """
    logits = 1 if record.yes_no else record.num_classes
    network = build(kind or record.architecture, logits, width=record.width, config=record.config, least=1).float()
    if record.grey:
        one_channel(network)
    if not (record.grey or record.yes_no or record.output is not None):
        return _fill(Normalized(network, record.mean, record.std), record, tensors, file).eval()
    grey, output, yes_no = record.grey, record.output, record.yes_no
    model = Converted(network, record.mean, record.std, grey=grey, output=output, yes_no=yes_no)
    return _fill(model, record, tensors, file).eval()


def check_size(record: ModelRecord, kind: str | Definition, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse sizes that a small file claims, before memory is spent on a network of that size."""
    held = sum(tensor.numel() for tensor in tensors.values())
    try:
        network = skeleton(kind, record.num_classes, width=record.width, config=record.config)
        needed = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    except (RuntimeError, OverflowError):  # more numbers than can be counted
        needed = 1 << 63
    if needed > 2 * held + SPARE_NUMBERS:
        raise BadInputError(
            f"{file}: the weights do not fit this architecture: they are {held:,} numbers, but a {record.architecture} "
            f"of {record.num_classes} classes has {needed:,}; check the architecture and the number of classes"
        )


def _fill(model: Normalized, record: ModelRecord, tensors: Mapping[str, Tensor], file: Path) -> nn.Module:
    backbone = {name: value for name, value in tensors.items() if not name.startswith(POLARIZER_PREFIX)}
    layer = {name[len(POLARIZER_PREFIX) :]: value for name, value in tensors.items() if name not in backbone}
    try:
        for name, kind in record.changes:
            adapt(model.network, name, kind)
    except BadInputError as error:
        raise BadInputError(f"{file}: {error}") from None
    if record.site is None:
        load_strict(model.network, tensors, source=str(file))
        return model
    load_strict(model.network, backbone, source=str(file))
    polarizer: nn.Module | None = polarizer_for(record.structure, layer)
    folded = layer.get("weight")  # of a folded polarizer nothing but a convolution or a linear layer is left
    if polarizer is None and folded is not None and folded.ndim in (2, 4) and 1 <= len(folded) <= folded.numel():
        polarizer = channel_map(len(folded), next(model.parameters()), flat=folded.ndim == 2)
    if polarizer is None:
        raise BadInputError(f"{file}: says that it has a polarizer at {record.site}, but holds no weights of one")
    load_strict(polarizer, layer, source=f"{file} (polarizer)")
    return insert(model, Site.parse(record.site), polarizer)
