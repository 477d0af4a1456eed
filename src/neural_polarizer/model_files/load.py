"""Models from disk, ours and those of others, without ever unpickling anything."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError, listing, printable
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.structures import polarizer_for
from neural_polarizer.layer.surgery import Site, full_name, insert
from neural_polarizer.model_files.checkpoints import load_strict, read_checkpoint, read_weights
from neural_polarizer.model_files.checkpoints.reader import ONE_FILE, Checkpoint
from neural_polarizer.model_files.foreign import Wanted, fitted, foreign_record, hub_folder, names_in_files, unlike
from neural_polarizer.model_files.record import KEY, POLARIZER_PREFIX, ModelRecord, read_record
from neural_polarizer.models.adapted import adapt, channel_map
from neural_polarizer.models.architecture import Architecture
from neural_polarizer.models.build import build, sizes_in, skeleton
from neural_polarizer.models.definition import Definition
from neural_polarizer.models.hub_folder import HubFolder, why_no_classifier
from neural_polarizer.models.normalize import Converted, Normalized, channels_taken, normalisation_named, one_channel

FILES = ("purified.safetensors", "model.safetensors")
_SUFFIXES = frozenset((".pt", ".pth", ".ckpt", ".tar", ".bin", ".safetensors"))
_SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.(safetensors|bin)$")
SPARE_NUMBERS = 50_000_000  # 200 MB: up to here the names of the missing tensors tell more than their count
_MAX_FILES = 10_000  # that are looked through for one to propose
_GREY = "the network takes one channel: it gets the mean of the three"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model from a file, with what unpickling the file would do, what was taken of it, and which entry was named."""

    model: nn.Module
    record: ModelRecord
    sha256: str
    path: Path
    threats: tuple[str, ...]
    findings: tuple[str, ...]
    weights: str | None = None


@dataclass(frozen=True, eq=False)
class LoadedLayer:
    """A layer from a file."""

    polarizer: Polarizer
    site: Site  # where it was learned
    image_size: tuple[int, int] | None  # height and width of the images that it was learned with, if known


def read_polarizer(path: Path) -> LoadedLayer:
    """The layer that ``save_polarizer`` wrote.

    Raises:
        BadInputError: the file holds no layer of ours.
    """
    checkpoint = read_checkpoint(path)
    record = read_record(checkpoint.metadata.get(KEY), path)
    polarizer = None if record is None else polarizer_for(record.structure, checkpoint.tensors)
    if record is None or record.site is None or polarizer is None:
        held = "a whole model, and not its layer" if record is not None else "no polarizer"
        raise BadInputError(f"{path}: holds {held}; purify writes the layer as polarizer.safetensors")
    load_strict(polarizer, checkpoint.tensors, source=str(path))
    return LoadedLayer(polarizer, Site.parse(record.site), record.image_size)


def with_polarizer(model: nn.Module, site: Site, polarizer: Polarizer) -> nn.Module:
    """A copy of ``model`` with ``polarizer`` at ``site``; dtype, device and mode are the model's."""
    like = next(model.parameters(), torch.zeros(()))
    beside = model.get_submodule(full_name(model, site))
    return insert(model, site, polarizer.to(like.device, like.dtype).train(beside.training))


def locate(path: Path) -> Path:
    """The model file of ``path``: itself, or that of an attack's or a purification's folder.

    Raises:
        BadInputError: there is no such file or folder, or the folder holds no model of ours.
    """
    try:
        if path.suffix == ".distcp" or (path.is_dir() and any(path.glob("*.distcp"))):
            raise BadInputError(
                f"{path}: a distributed checkpoint; make one file of the folder: python -m "
                "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt"
            )
        if _SHARD.search(path.name):
            raise BadInputError(f"{path}: one of several files that a model lies in; give their folder, or {ONE_FILE}")
        if path.is_dir():
            for name in FILES:
                if (path / name).is_file():
                    return path / name
            inside = {file for file in islice(path.rglob("*"), _MAX_FILES) if file.suffix in _SUFFIXES}
            inside = {file.parent if why_no_classifier(file.parent) is None else file for file in inside}
            named = f", as {listing(sorted(printable(str(each)) for each in inside))}" if inside else ""
            raise BadInputError(
                f"{path}: the folder holds none of {', '.join(FILES)}; name the checkpoint itself{named}"
            )
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
        num_classes: only checked, as the file's head tells it; but code of the user's that does not take it may not.
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
    wanted = None if known is None else Wanted(known, None if hub is None else hub.config)
    checkpoint = read_weights(file, weights=weights, fits=None if wanted is None else wanted.fits)
    record, remarks, used = _own_record(checkpoint, file), tuple[str, ...](), frozenset[str]()
    ours = record is not None
    if record is None:
        record, remarks, used = foreign_record(checkpoint, file, hub, wanted, profile)
        record = replace(record, output=output, grey=channels == 1)
        named = f"of what the network gives, {printable(str(output))} is taken for the logits"
        remarks = (*remarks, *([named] if output is not None else []), *([_GREY] if record.grey else []))
    elif output not in (None, record.output) or channels not in (None, 1 if record.grey else 3):
        raise BadInputError(f"{file}: says itself what goes in and out; leave --output and --channels out")
    kind, said = _network_of(record, architecture, file)
    remarks = (*said, *remarks)
    own = {there: here for here, there in names_in_files(record).items()}
    tensors = {own.get(name, name): value for name, value in checkpoint.tensors.items() if name not in used}
    wanted = Wanted(kind, record.config) if wanted is None or ours else wanted
    if not ours:
        tensors, told = fitted(tensors, wanted, file, normalised=profile is not None)
        taken = channels_taken(wanted.network, tensors)
        if channels == 1 and taken == 3:
            raise BadInputError(f"{file}: its first convolution takes 3 channels, not 1; leave --channels out")
        if channels is None and taken == 1:
            record, told = replace(record, grey=True), (*told, _GREY)
        remarks = (*told, *remarks)
    record, told = _sized(record, wanted, tensors, num_classes, file, ours=ours)
    if profile is not None:
        mean, std = normalisation_named(profile)
        record = replace(record, mean=mean, std=std)
    _check_size(record, kind, tensors, file)
    model = assemble(record, tensors, file, kind)
    remarks = (*checkpoint.findings, *remarks, *told)
    return LoadedModel(model, record, checkpoint.sha256, file, checkpoint.threats, remarks, weights)


def _own_record(checkpoint: Checkpoint, file: Path) -> ModelRecord | None:
    """What a file of ours says of its model; None for others. One of the layer alone is refused."""
    record, tensors = read_record(checkpoint.metadata.get(KEY), file), checkpoint.tensors
    if record is None or record.site is None or any(name.startswith(POLARIZER_PREFIX) for name in tensors):
        return record
    if polarizer_for(record.structure, tensors) is not None:
        raise BadInputError(f"{file}: is only the layer of a purified model; the model is {FILES[0]} beside it")
    return record


def _sized(
    record: ModelRecord,
    wanted: Wanted,
    tensors: Mapping[str, Tensor],
    num_classes: int | None,
    file: Path,
    *,
    ours: bool,
) -> tuple[ModelRecord, tuple[str, ...]]:
    """The record with the number of classes and the width that the tensors tell, and remarks."""
    kind = wanted.kind
    found, width = sizes_in(kind, tensors, config=record.config)
    told: tuple[str, ...] = ()
    if found == 1 and num_classes in (None, 2):
        record, found = replace(record, yes_no=True), 2
        told = ("a yes/no model: its one logit z stands for the two logits (0, z)",)
    guessed = isinstance(kind, Definition) and not kind.takes_num_classes
    if ours and guessed:  # whoever wrote the record knew better; one logit stands for two
        found = max(2, record.num_classes)
    classes = num_classes or found or record.num_classes
    if not classes:
        named = kind.name if isinstance(kind, Definition) else record.architecture
        raise BadInputError(f"{file}: {unlike(tensors, wanted.tensors, named)}")
    if found is not None and num_classes is not None and found != num_classes and not guessed:
        raise BadInputError(f"{file}: has {found} classes, not {num_classes}")
    known = record.classes if ours or record.classes is None or len(record.classes) == classes else None
    return replace(record, num_classes=classes, width=width, classes=known), told


def _other_options(said: str, given: str) -> bool:
    """Whether ``given`` is the network of timm that its folder names, with other options."""
    here, there = Architecture.parse(said), Architecture.parse(given)
    return here.library == "timm" and (here.library, here.name) == (there.library, there.name)


def _network_of(
    record: ModelRecord, given: str | Definition | None, file: Path
) -> tuple[str | Definition, tuple[str, ...]]:
    """What builds the network of ``record``, and remarks on it; code comes from ``given``, never from the record."""
    if record.definition is not None:
        if not isinstance(given, Definition):
            raise BadInputError(
                f"{file}: its network is built by code of your own, {record.architecture} (SHA-256 "
                f"{record.definition[:12]}...), which is never run unless you name it: give --arch FILE.py:NAME (in "
                "Python, use what neural_polarizer.load(..., arch=...) gives)"
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

    ``tensors`` are all that the network needs, by its names; ``kind`` builds it if not the name in the record.

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
        polarizer = channel_map(len(folded), next(model.parameters()), flat=folded.ndim == 2)
    if polarizer is None:
        raise BadInputError(f"{file}: says that it has a polarizer at {record.site}, but holds no weights of one")
    load_strict(polarizer, layer, source=f"{file} (polarizer)")
    return insert(model, Site.parse(record.site), polarizer)
