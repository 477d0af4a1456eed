"""Models on disk: safetensors with a JSON record of all that is needed to use them again."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn

from neural_polarizer.checkpoints import load_strict, read_checkpoint
from neural_polarizer.checkpoints.reader import Checkpoint
from neural_polarizer.checkpoints.wording import printable
from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import write_bytes
from neural_polarizer.foreign import (
    assumptions,
    fitted,
    fitting,
    hub_folder,
    names_in_files,
    normalisation_inside,
    renamed_back,
    suggestion,
    unlike,
)
from neural_polarizer.layer.folding import Folded
from neural_polarizer.layer.polarizer import Polarizer, Structure
from neural_polarizer.layer.structures import polarizer_for
from neural_polarizer.layer.surgery import PolarizedModule, Site, insert
from neural_polarizer.models.adapted import adapt, pointwise, square_linear
from neural_polarizer.models.architecture import Architecture
from neural_polarizer.models.build import build, sizes_in, skeleton
from neural_polarizer.models.definition import Definition
from neural_polarizer.models.hub_folder import HubFolder
from neural_polarizer.models.normalize import (
    Converted,
    Normalized,
    described,
    normalisation_named,
    one_channel,
    outputs,
    takes_one_channel,
)
from neural_polarizer.models.preprocessing import own_preprocessing

KEY = "neural_polarizer"
POLARIZER_PREFIX = "polarizer."
FILES = ("purified.safetensors", "model.safetensors")
MAX_SIDE = 2048  # of the images that a record asks for
MAX_NAME = 1_000  # letters of what a record names, and layers that it changes
_GREY = "the network takes one channel: it gets the mean of the three"
SPARE_NUMBERS = 50_000_000  # 200 MB: up to here the names of the missing tensors tell more than their count


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What one must know to use a file of weights.

    Args:
        architecture: a name that ``models.build`` knows, with its options.
        num_classes: K.
        width: of the first stage, for architectures that have one.
        mean: of the normalisation inside the model, a channel.
        std: likewise.
        image_size: height and width of the training images, if known.
        classes: class names, if known.
        site: where the polarizer sits, None for a model without one.
        changes: of a folded model, layers that its architecture has not: (name, kind of ``models.adapted``).
        structure: of the polarizer; saving reads it off the layer.
        config: of a classifier of transformers, what builds it, as JSON (``models.hugging_face``).
        definition: SHA-256 of the user's own code that builds it; ``architecture`` then only says how it was called.
        grey: whether the network takes one channel, the mean of the three.
        output: key, attribute or index of the logits, where the network gives more than a tensor.
        yes_no: whether the network gives one logit z, which stands for the two logits (0, z).
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
    config: str | None = None
    definition: str | None = None
    grey: bool = False
    output: str | None = None
    yes_no: bool = False


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model from a file: the module, its record, the file's hash, remarks on the file, and which entry was named."""

    model: nn.Module
    record: ModelRecord
    sha256: str
    path: Path
    findings: tuple[str, ...]
    weights: str | None = None


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
    write_bytes(path, model_bytes(model, record))


def model_bytes(model: nn.Module, record: ModelRecord, also: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The safetensors file from which ``load_model`` makes ``model`` again.

    Args:
        model: its normalisation goes into the record.
        record: what the file says about it.
        also: further metadata, for other readers.
    """
    network = model.network if isinstance(model, Normalized) else model
    names, tensors = names_in_files(record.architecture, record.config), network_tensors(network)
    tensors = {names.get(name, name): value for name, value in tensors.items()}
    return save(tensors, metadata={**also, **_metadata(with_structure(record, model))})


def with_structure(record: ModelRecord, model: nn.Module) -> ModelRecord:
    """``record`` with the structure of the polarizer in ``model``."""
    layers = [module.polarizer for module in model.modules() if isinstance(module, PolarizedModule)]
    structures: list[Structure] = [layer.structure for layer in layers if isinstance(layer, Polarizer)]
    return replace(record, structure=structures[0] if structures else "conv-bn")


def folded_record(record: ModelRecord, folded: Folded) -> ModelRecord:
    """The record of a folded model, from that of the purified one."""
    return replace(
        record,
        site=record.site if folded.site_kept else None,
        changes=(*record.changes, *folded.changes.items()),
    )


def save_polarizer(path: Path, polarizer: Polarizer, record: ModelRecord) -> None:
    """Write the layer alone."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in polarizer.state_dict().items()}
    write_bytes(path, save(tensors, metadata=_metadata(replace(record, structure=polarizer.structure))))


def _metadata(record: ModelRecord) -> dict[str, str]:
    told = asdict(record)
    later = ("changes", "structure", "config", "definition", "grey", "output", "yes_no")
    for name, usual in ((field.name, field.default) for field in fields(ModelRecord) if field.name in later):
        if told[name] == usual:  # the files of all other models stay as they were, byte for byte
            del told[name]
    return {KEY: json.dumps({**told, "versions": versions()})}


def with_polarizer(model: nn.Module, path: Path) -> nn.Module:
    """A copy of ``model`` with the layer that ``save_polarizer`` wrote, at its site; dtype and device are the model's.

    Raises:
        BadInputError: the file holds no layer of ours, or it does not fit the model.
    """
    checkpoint = read_checkpoint(path)
    record = _our_record(checkpoint.metadata.get(KEY), path)
    polarizer = None if record is None else polarizer_for(record.structure, checkpoint.tensors)
    if record is None or record.site is None or polarizer is None:
        raise BadInputError(f"{path}: holds no polarizer; purify writes one as polarizer.safetensors")
    load_strict(polarizer, checkpoint.tensors, source=str(path))
    like = next(model.parameters(), torch.zeros(()))
    return insert(model, Site.parse(record.site), polarizer.to(like.device, like.dtype).train(model.training))


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
    architecture: str | Definition | None = None,
    num_classes: int | None = None,
    profile: str | None = None,
    weights: str | None = None,
    output: str | None = None,
    channels: int | None = None,
) -> LoadedModel:
    """Read a model without ever unpickling anything.

    Args:
        path: a checkpoint, an attack's folder, a purification's folder, or the folder of a classifier of transformers
            (``transformers:FOLDER`` where that is not plain) or of timm.
        architecture: needed for files that neither are ours nor lie in a folder that says it; the weights never
            choose it. A text is only a name: code of the user's own comes as what ``models.definition.network_named``
            made of it, and is needed for our own files of such networks, too.
        num_classes: only checked, as the file's head tells it.
        profile: normalisation, a name of ``PROFILES`` or MEAN/STD. Where a file that is not ours comes without one,
            that of the library's own configuration is taken, or none; a remark says which.
        weights: which entry of a file that holds several sets of weights; None takes the one that fits.
        output: key, attribute or index of the logits, where a network that is not ours gives more than a tensor.
        channels: 1 for a network that is not ours and takes one channel; it then gets the mean of the three.

    Raises:
        BadInputError: the file is missing, damaged, hostile, or does not fit the architecture.
    """
    if channels not in (None, 1, 3):
        raise BadInputError(f"{path}: images have 1 or 3 channels, not {channels}")
    hub = hub_folder(str(path), ours=FILES[0])
    file = locate(Path(path)) if hub is None else hub.weights
    try:
        return _read_model(file, hub, architecture, num_classes, profile, weights, output, channels)
    except BadInputError as error:
        said, names = str(error), (str(file), printable(str(file), 4096))
        said = said if any(name in said for name in names) else f"{file}: {said}"
        raise type(error)(said if said.isprintable() else printable(said, 8192)) from None


def _read_model(
    file: Path,
    hub: HubFolder | None,
    architecture: str | Definition | None,
    num_classes: int | None,
    profile: str | None,
    weights: str | None,
    output: str | None,
    channels: int | None,
) -> LoadedModel:
    if hub is not None and isinstance(architecture, str) and _other_options(hub.architecture, architecture):
        hub = replace(hub, architecture=architecture)
    known = architecture if hub is None else hub.architecture
    fits = None if known is None else fitting(known, None if hub is None else hub.config)
    checkpoint = read_checkpoint(file, weights=weights, fits=fits)
    record, remarks, used = _our_record(checkpoint.metadata.get(KEY), file), tuple[str, ...](), frozenset[str]()
    ours = record is not None
    if record is None:
        record, remarks, used = _foreign_record(checkpoint, file, hub, architecture, profile)
        record = replace(record, output=output, grey=channels == 1)
        if output is not None:
            remarks = (*remarks, f"of what the network gives, {printable(output)} is taken for the logits")
        if channels == 1:
            remarks = (*remarks, _GREY)
    elif output not in (None, record.output) or channels not in (None, 1 if record.grey else 3):
        raise BadInputError(f"{file}: says itself what goes in and out; leave --output and --channels out")
    kind, said = _network_of(record, architecture, file)
    remarks = (*said, *remarks)
    names = names_in_files(record.architecture, record.config)
    tensors = renamed_back({key: value for key, value in checkpoint.tensors.items() if key not in used}, names)
    if not ours:
        tensors, told = fitted(tensors, kind, record.config, file)
        if channels is None and takes_one_channel(skeleton(kind, 2, config=record.config), tensors):
            record, told = replace(record, grey=True), (*told, _GREY)
        remarks = (*told, *remarks)
    found, width = sizes_in(kind, tensors, config=record.config)
    if found == 1 and num_classes in (None, 2):
        record, found = replace(record, yes_no=True), 2
        remarks = (*remarks, "a yes/no model: its one logit z stands for the two logits (0, z)")
    classes = num_classes or found or record.num_classes
    if not classes:
        raise BadInputError(f"{file}: {unlike(tensors, kind, record.config)}")
    if found is not None and num_classes is not None and found != num_classes:
        raise BadInputError(f"{file}: has {found} classes, not {num_classes}")
    named = record.classes if ours or record.classes is None or len(record.classes) == classes else None
    record = replace(record, num_classes=classes, width=width, classes=named)
    if profile is not None:
        mean, std = normalisation_named(profile)
        record = replace(record, mean=mean, std=std)
    _check_size(record, kind, tensors, file)
    model = assemble(record, tensors, file, kind)
    return LoadedModel(model, record, checkpoint.sha256, file, (*checkpoint.findings, *remarks), weights)


def _other_options(said: str, given: str) -> bool:
    """Whether ``given`` is the network of timm that its folder names, with other options."""
    here, there = Architecture.parse(said), Architecture.parse(given)
    return here.library == "timm" and (here.library, here.name) == (there.library, there.name)


def _network_of(
    record: ModelRecord, given: str | Definition | None, file: Path
) -> tuple[str | Definition, tuple[str, ...]]:
    """What builds the network of ``record``, and remarks on it; code comes from ``given`` only, never from the record.

    Raises:
        BadInputError: ``given`` is another network, or the record's was built by code that is not given.
    """
    if record.definition is not None:
        if not isinstance(given, Definition):
            raise BadInputError(
                f"{file}: its network is built by code of your own, {record.architecture} (SHA-256 "
                f"{record.definition[:12]}...), which is never run unless you name it: give --arch FILE.py:NAME (in "
                "Python, arch=)"
            )
        same = given.sha256 == record.definition
        other = f"that code is not the {record.architecture} of SHA-256 {record.definition} that the file was made with"
        return given, (given.remark, *(() if same else (other,)))
    if isinstance(given, Definition) or (
        given is not None and Architecture.parse(given) != Architecture.parse(record.architecture)
    ):
        named = given.name if isinstance(given, Definition) else given
        raise BadInputError(f"{file}: is a {record.architecture}, not a {named}; leave --arch out")
    return record.architecture, ()


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


@torch.no_grad()
def check_takes(loaded: LoadedModel, image_size: tuple[int, int]) -> None:
    """Send a black and a white image through the model, so that a wrong size is told before any work is spent.

    Raises:
        BadInputError: the network refuses it, or gives no logits for it.
    """
    height, width = image_size
    said = f"{loaded.path}: a {loaded.record.architecture} cannot take images of {height}x{width} pixels"
    try:
        logits = loaded.model(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, height, width))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        remedy = (
            "--channels 1, as it takes one channel" if _takes_grey(loaded, image_size) else "--size, or another --arch"
        )
        raise BadInputError(f"{said} ({reason}); give {remedy}") from None
    if not isinstance(logits, Tensor):
        fitting = [
            key
            for key, value in (outputs(logits) or getattr(logits, "__dict__", {})).items()
            if isinstance(value, Tensor) and value.shape == (2, loaded.record.num_classes)
        ]
        proposed = f", as --output {fitting[0]}" if len(fitting) == 1 else ""
        raise BadInputError(
            f"{loaded.path}: the network gives {described(logits)}; name the logits with --output KEY_OR_INDEX"
            f"{proposed}"
        )
    if logits.shape != (2, loaded.record.num_classes):
        raise BadInputError(f"{said}: it gives no {loaded.record.num_classes} logits for an image")
    if not bool(logits.isfinite().all()):
        raise BadInputError(
            f"{loaded.path}: gives NaN or infinite logits for a black or a white image; its weights or normalisation "
            "are too large to compute with: get the file again or train anew"
        )


def _takes_grey(loaded: LoadedModel, image_size: tuple[int, int]) -> bool:
    """Whether the network, which refuses images of three channels, takes those of one."""
    network = loaded.model.network if isinstance(loaded.model, Normalized) else loaded.model
    if loaded.record.grey:
        return False
    try:
        network(torch.zeros(2, 1, *image_size))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError):
        return False
    return True


def _foreign_record(
    checkpoint: Checkpoint,
    file: Path,
    hub: HubFolder | None,
    architecture: str | Definition | None,
    profile: str | None,
) -> tuple[ModelRecord, tuple[str, ...], frozenset[str]]:
    """What the user, or the folder, says of a file that is not ours, remarks on it, and tensors that went into it."""
    definition, kind = None, architecture
    if hub is not None:
        kind = hub.architecture
        own, classes, config, named = hub.preprocessing, hub.classes, hub.config, hub.architecture
    elif isinstance(architecture, Definition):
        own, classes, config, named = None, None, None, architecture.name
        definition = architecture.sha256
    elif architecture is not None:
        named, classes, config = str(Architecture.parse(architecture)), None, None
        skeleton(named, 2)  # a name that nothing is known by ends here
        own = own_preprocessing(named)
    else:
        raise BadInputError(
            f"{file}: does not say what network it is; name it with --arch (for example preactresnet18)"
            f"{suggestion(checkpoint.metadata)}"
        )
    record = ModelRecord(architecture=named, num_classes=0, classes=classes, config=config, definition=definition)
    if own is not None:
        record = replace(record, mean=own.mean, std=own.std, image_size=own.image_size)
    assert kind is not None
    inside = normalisation_inside(checkpoint.tensors, skeleton(kind, 2, config=config).state_dict())
    if inside is not None and profile is None:
        said = f"the normalisation in the file was taken (mean {_numbers(inside.mean)}, std {_numbers(inside.std)})"
        record = replace(record, mean=inside.mean, std=inside.std)
        return record, (said, *assumptions(own, checkpoint.metadata, normalised=True)), inside.names
    return record, assumptions(own, checkpoint.metadata, normalised=profile is not None), frozenset()


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _check_size(record: ModelRecord, kind: str | Definition, tensors: Mapping[str, Tensor], file: Path) -> None:
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
        polarizer = (pointwise if folded.ndim == 4 else square_linear)(len(folded), next(model.parameters()))
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
            config=None if found.get("config") is None else str(found["config"]),
            definition=None if found.get("definition") is None else str(found["definition"]),
            grey=found.get("grey") is True,
            output=None if found.get("output") is None else str(found["output"]),
            yes_no=found.get("yes_no") is True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        said = printable(f"{type(error).__name__}: {error}", 200)
        raise BadInputError(f"{file}: its record of the model is damaged ({said})") from None
    if not (len(record.mean) == len(record.std) == 3 and all(map(math.isfinite, record.mean + record.std))):
        raise BadInputError(f"{file}: its record of the model is damaged (mean and std are not three numbers each)")
    if not all(1 <= side <= MAX_SIDE for side in record.image_size or ()):
        raise BadInputError(f"{file}: its record of the model is damaged (image_size is not within 1..{MAX_SIDE})")
    names = (
        record.architecture,
        record.site or "",
        record.definition or "",
        record.output or "",
        *chain.from_iterable(record.changes),
    )
    if max(map(len, names)) > MAX_NAME or len(record.changes) > MAX_NAME:
        raise BadInputError(f"{file}: its record of the model is damaged (a name or list of more than {MAX_NAME})")
    return record


def _structure(name: Any) -> Structure:
    if name not in get_args(Structure):
        raise ValueError(f"no structure {name!r} of a polarizer is known")
    return name
