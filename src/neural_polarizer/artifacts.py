"""Models on disk: safetensors with a JSON record of all that is needed to use them again."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn

from neural_polarizer.checkpoints import load_strict, read_checkpoint
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import write_bytes
from neural_polarizer.models.adapted import adapt, pointwise
from neural_polarizer.models.build import build, sizes_in
from neural_polarizer.models.normalize import PROFILES, Normalized
from neural_polarizer.polarizer import Polarizer, Structure
from neural_polarizer.structures import polarizer_for
from neural_polarizer.surgery import PolarizedModule, Site, insert

KEY = "neural_polarizer"
POLARIZER_PREFIX = "polarizer."
FILES = ("purified.safetensors", "model.safetensors")
SPARE_NUMBERS = 50_000_000  # 200 MB: up to here the names of the missing tensors tell more than their count


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What one must know to use a file of weights.

    Args:
        architecture: a name that ``models.build`` knows.
        num_classes: K.
        width: of the first stage, for architectures that have one.
        mean: of the normalisation inside the model, a channel.
        std: likewise.
        image_size: height and width of the training images, if known.
        classes: class names, if known.
        site: where the polarizer sits, None for a model without one.
        changes: of a folded model, layers that its architecture has not: (name, kind of ``models.adapted``).
        structure: of the polarizer; saving reads it off the layer.
    """

    architecture: str
    num_classes: int
    width: int | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    image_size: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None
    site: str | None = None
    changes: tuple[tuple[str, str], ...] = ()
    structure: Structure = "conv-bn"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model from a file: the module, its record, the file's hash, and remarks on the file."""

    model: nn.Module
    record: ModelRecord
    sha256: str
    path: Path
    findings: tuple[str, ...]


def versions() -> dict[str, str]:
    """Versions of what computes."""
    from neural_polarizer import __version__

    return {
        "neural_polarizer": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with the backbone's own names, and the polarizer's tensors under ``polarizer.``."""
    wrapped = [name for name, module in network.named_modules() if isinstance(module, PolarizedModule)]
    tensors = {}
    for name, value in network.state_dict().items():
        for outer in wrapped:
            if name.startswith(f"{outer}.{POLARIZER_PREFIX}"):
                name = name.removeprefix(f"{outer}.")
            elif name.startswith(f"{outer}.module."):
                name = f"{outer}.{name.removeprefix(f'{outer}.module.')}"
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors


def save_model(path: Path, model: nn.Module, record: ModelRecord) -> None:
    """Write the weights of ``model`` (the normalisation goes into the record) as safetensors, atomically."""
    network = model.network if isinstance(model, Normalized) else model
    layers = [module.polarizer for module in network.modules() if isinstance(module, PolarizedModule)]
    structures: list[Structure] = [layer.structure for layer in layers if isinstance(layer, Polarizer)]
    record = replace(record, structure=structures[0] if structures else "conv-bn")
    write_bytes(path, save(network_tensors(network), metadata=_metadata(record)))


def save_polarizer(path: Path, polarizer: Polarizer, record: ModelRecord) -> None:
    """Write the layer alone."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in polarizer.state_dict().items()}
    write_bytes(path, save(tensors, metadata=_metadata(replace(record, structure=polarizer.structure))))


def _metadata(record: ModelRecord) -> dict[str, str]:
    told = asdict(record)
    for name, usual in (("changes", ()), ("structure", "conv-bn")):
        if told[name] == usual:  # the files of all other models stay as they were, byte for byte
            del told[name]
    return {KEY: json.dumps({**told, "versions": versions()})}


def locate(path: Path) -> Path:
    """The model file of ``path``: itself, or that of an attack's or a purification's folder.

    Raises:
        BadInputError: there is no such file or folder, or the folder holds no model of ours.
    """
    try:
        if path.is_dir():
            for name in FILES:
                if (path / name).is_file():
                    return path / name
            raise BadInputError(f"{path}: the folder holds none of {', '.join(FILES)}; name the checkpoint file itself")
        if not path.exists():
            raise BadInputError(f"{path}: no such file")
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    return path


def load_model(
    path: Path | str,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    profile: str | None = None,
) -> LoadedModel:
    """Read a model without ever unpickling anything.

    Args:
        path: a checkpoint, an attack's folder or a purification's folder.
        architecture: needed for files that are not ours; the file never chooses it.
        num_classes: only checked, as the file's head tells it.
        profile: normalisation, a name of ``PROFILES``, for files that do not say; "none" otherwise.

    Raises:
        BadInputError: the file is missing, damaged, hostile, or does not fit the architecture.
    """
    file = locate(Path(path))
    checkpoint = read_checkpoint(file)
    tensors = checkpoint.tensors
    ours = _our_record(checkpoint.metadata.get(KEY), file)
    if ours is not None:
        record = ours
    elif architecture is None:
        raise BadInputError(
            f"{file}: does not say what network it is; name it with --arch (for example preactresnet18)"
        )
    else:
        record = ModelRecord(architecture=architecture, num_classes=0)
    if architecture is not None and architecture != record.architecture:
        raise BadInputError(f"{file}: is a {record.architecture}, not a {architecture}; leave --arch out")
    found, width = sizes_in(record.architecture, tensors)
    classes = num_classes or found or record.num_classes
    if not classes:
        raise BadInputError(
            f"{file}: has no head of a {record.architecture} to tell the number of classes; check --arch, or give "
            "--num-classes"
        )
    if found is not None and num_classes is not None and found != num_classes:
        raise BadInputError(f"{file}: has {found} classes, not {num_classes}")
    record = replace(record, num_classes=classes, width=width)
    if profile is not None:
        if profile not in PROFILES:
            raise BadInputError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
        record = replace(record, mean=PROFILES[profile][0], std=PROFILES[profile][1])
    _check_size(record, tensors, file)
    network = build(record.architecture, record.num_classes, width=record.width)
    model = _fill(Normalized(network, record.mean, record.std), record, tensors, file)
    return LoadedModel(model.eval(), record, checkpoint.sha256, file, checkpoint.findings)


def _check_size(record: ModelRecord, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse sizes that a small file claims, before memory is spent on a network of that size."""
    held = sum(tensor.numel() for tensor in tensors.values())
    try:
        with torch.device("meta"):
            network = build(record.architecture, record.num_classes, width=record.width)
        needed = sum(tensor.numel() for tensor in network.state_dict().values())
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
    folded = layer.get("weight")  # of a folded polarizer nothing but a convolution is left
    if polarizer is None and folded is not None and folded.ndim == 4 and 1 <= len(folded) <= folded.numel():
        polarizer = pointwise(len(folded), next(model.parameters()))
    if polarizer is None:
        raise BadInputError(f"{file}: says that it has a polarizer at {record.site}, but holds no weights of one")
    load_strict(polarizer, layer, source=f"{file} (polarizer)")
    return insert(model, Site.parse(record.site), polarizer)


def _our_record(text: str | None, file: Path) -> ModelRecord | None:
    if text is None:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        size, classes = found.get("image_size"), found.get("classes")
        record = ModelRecord(
            architecture=str(found["architecture"]),
            num_classes=int(found["num_classes"]),
            width=None if found.get("width") is None else int(found["width"]),
            mean=tuple(float(value) for value in found["mean"]),
            std=tuple(float(value) for value in found["std"]),
            image_size=None if size is None else (int(size[0]), int(size[1])),
            classes=None if classes is None else tuple(str(name) for name in classes),
            site=None if found.get("site") is None else str(found["site"]),
            changes=tuple((str(name), str(kind)) for name, kind in found.get("changes", ())),
            structure=_structure(found.get("structure", "conv-bn")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise BadInputError(f"{file}: its record of the model is damaged ({error!r})") from None
    if not (len(record.mean) == len(record.std) == 3 and all(map(math.isfinite, record.mean + record.std))):
        raise BadInputError(f"{file}: its record of the model is damaged (mean and std are not three numbers each)")
    return record


def _structure(name: Any) -> Structure:
    if name not in get_args(Structure):
        raise ValueError(f"no structure {name!r} of a polarizer is known")
    return name
