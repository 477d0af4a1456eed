"""What to make of a file that is not ours: which network it may hold, by which names, and for what images."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError, listing, printable
from neural_polarizer.model_files.checkpoints.naming import fit_names, fits, unpruned
from neural_polarizer.model_files.checkpoints.normalisation import check_left_out, normalisation_inside
from neural_polarizer.model_files.checkpoints.reader import Checkpoint
from neural_polarizer.model_files.record import POLARIZER_PREFIX, ModelRecord
from neural_polarizer.models.architecture import MAX_OPTION, OPTIONS, Architecture
from neural_polarizer.models.build import skeleton
from neural_polarizer.models.definition import Definition
from neural_polarizer.models.hub_folder import CONFIG, PREFIX, HubFolder, read_folder, why_no_classifier
from neural_polarizer.models.hugging_face import file_names
from neural_polarizer.models.normalize import normalisation_named
from neural_polarizer.models.preprocessing import Preprocessing, own_preprocessing

_AS_IN_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "alexnet", "vgg11", "vgg16", "squeezenet1_0", "densenet121"),
    *("inception_v3", "googlenet", "shufflenet_v2_x1_0", "mobilenet_v2", "mobilenet_v3_large", "resnext50_32x4d"),
    *("wide_resnet50_2", "mnasnet1_0", "efficientnet_b0", "efficientnet_b3", "convnext_tiny"),
)
BACKDOORBENCH: Mapping[str, str] = {
    **{name: name for name in ("preactresnet18", "vgg19", "vgg19_bn", "densenet161")},
    **{name: f"torchvision:{name}" for name in _AS_IN_TORCHVISION},
    **{name: f"torchvision:{name}?resize=224" for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")},
}
"""By the ``model_name`` in BackdoorBench's files, our name for the same network."""
_DATA = MappingProxyType(
    {"cifar10": "cifar10", "cifar100": "cifar100", "gtsrb": "gtsrb", "tiny": "tiny_imagenet", "imagenet": "imagenet"}
)


@dataclass(frozen=True, eq=False)
class Wanted:
    """The network that a file is to fill: its names and shapes, of two classes, once they are asked for."""

    kind: str | Definition
    config: str | None

    @cached_property
    def network(self) -> nn.Module:
        """Without values."""
        return skeleton(self.kind, 2, config=self.config)

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        return self.network.state_dict()

    def fits(self, names: Collection[str]) -> bool:
        """Whether names in a file can be those of this network."""
        return fits(names, self.tensors)


def foreign_record(
    checkpoint: Checkpoint, file: Path, hub: HubFolder | None, wanted: Wanted | None, profile: str | None
) -> tuple[ModelRecord, tuple[str, ...], frozenset[str]]:
    """What the user, or the folder, says of a file that is not ours, remarks on it, and tensors that went into it."""
    if wanted is None:
        why = why_no_classifier(file.parent)
        said = ", or give its folder, whose config.json does" if why is None else ""
        if why is not None and (file.parent / CONFIG).is_file():
            said = f", as {why}"
        raise BadInputError(
            f"{file}: does not say what network it is; name it with --arch (for example preactresnet18){said}"
            f"{suggestion(checkpoint.metadata)}"
        )
    inside = normalisation_inside(checkpoint.tensors, wanted.tensors)  # a name that nothing is known by ends here
    own, classes, definition = None, None, None
    if hub is not None:
        own, classes, named = hub.preprocessing, hub.classes, hub.architecture
    elif isinstance(wanted.kind, Definition):
        named, definition, own = wanted.kind.name, wanted.kind.sha256, wanted.kind.preprocessing()
    else:
        named = str(Architecture.parse(wanted.kind))
        own = own_preprocessing(named)
    record = ModelRecord(
        architecture=named, num_classes=0, classes=classes, config=wanted.config, definition=definition
    )
    if own is not None:
        record = replace(record, mean=own.mean, std=own.std, image_size=own.image_size)
    if inside is None:
        return record, assumptions(own, checkpoint.metadata, normalised=profile is not None), frozenset()
    taken = "was taken" if profile is None else "was not taken, as --profile says another"
    said = f"the normalisation in the file {taken} (mean {_numbers(inside.mean)}, std {_numbers(inside.std)})"
    if profile is None:
        record = replace(record, mean=inside.mean, std=inside.std)
    return record, (said, *assumptions(own, checkpoint.metadata, normalised=True)), inside.names


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def suggestion(metadata: Mapping[str, str]) -> str:
    """The options that a file of BackdoorBench asks for, as the end of a sentence; empty for other files.

    They are only proposed: the file may lie. Nothing of its own words is repeated.
    """
    architecture = BACKDOORBENCH.get(metadata.get("model_name", ""))
    if architecture is None:
        return ""
    profile = _DATA.get(metadata.get("clean_data", ""))
    options = f"--arch '{architecture}'" + (f" --profile {profile}" if profile else "")
    return f"; if it is what its entry model_name says: {options}"


def assumptions(own: Preprocessing | None, metadata: Mapping[str, str], *, normalised: bool) -> tuple[str, ...]:
    """Remarks on what is assumed of the images, and how to say otherwise.

    ``own`` is what the network's library or folder says, ``normalised`` whether the user gave a normalisation.
    """
    told = () if normalised else (_normalisation_remark(own, metadata),)
    if own is None or own.image_size is None:
        return told
    height, width = own.image_size
    theirs = [f"resizes by {own.resampling} interpolation"] if own.resampling != "bilinear" else []
    theirs += ["cuts off the border"] if own.cropped else []
    but = f" ({own.source} {' and '.join(theirs)})" if theirs else ""
    return *told, f"without --size, images become {height}x{width} pixels, whole and by bilinear interpolation{but}"


def _normalisation_remark(own: Preprocessing | None, metadata: Mapping[str, str]) -> str:
    profile = _DATA.get(metadata.get("clean_data", ""))
    other = f"the file names its data: --profile {profile}" if profile else "--profile says another"
    numbers = _numbers_beside(metadata)
    other = other if numbers is None else f"the file has another beside its weights: --profile {numbers}"
    if own is None:
        return f"no normalisation was given, so pixels in [0, 1] enter the network as they are; {other}"
    mean, std = _numbers(own.mean), _numbers(own.std)
    return f"no normalisation was given, so that of {own.source} was taken (mean {mean}, std {std}); {other}"


def _numbers_beside(metadata: Mapping[str, str]) -> str | None:
    """The entries mean and std of a file, as --profile takes them; its own words are not repeated."""
    try:
        told = normalisation_named(f"{metadata['mean']}/{metadata['std']}")
    except (KeyError, BadInputError):
        return None
    return "/".join(",".join(f"{value:.7g}" for value in values) for values in told)


def hub_folder(path: str, *, ours: str) -> HubFolder | None:
    """What a folder of transformers or timm says, also as ``transformers:FOLDER``; None for all else.

    ``ours`` is a file by which a folder of ours is known.

    Raises:
        BadInputError: it is the folder of an image classifier that cannot be used.
    """
    if path.startswith(PREFIX):
        return read_folder(Path(path.removeprefix(PREFIX)))
    folder = Path(path)
    try:
        if not folder.is_dir() or (folder / ours).exists() or why_no_classifier(folder) is not None:
            return None
    except OSError:
        return None
    return read_folder(folder)


def names_in_files(record: ModelRecord) -> dict[str, str]:
    """By the name of a tensor in the network, its name in files; empty where no library tells the two apart."""
    return {} if record.config is None else file_names(skeleton(record.architecture, 2, config=record.config))


def fitted(
    tensors: Mapping[str, Tensor], network: Wanted, file: Path, *, normalised: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors by the names of the network, if a known renaming leads there, and remarks on it.

    Raises:
        BadInputError: they are those of the same network with other options, or with layers that only we put there, or
            there may be a normalisation among them that cannot be read, while the user gave none (``normalised``).
    """
    wanted = network.tensors
    ours = [name for name in tensors if name not in wanted and _OF_OURS.search(name)]
    if ours:
        raise BadInputError(
            f"{file}: holds {listing([*map(printable, ours)])}, which an export of a purified model has and this "
            "network has not; export the model to safetensors, whose record says where they belong"
        )
    numbers = [name for name, value in tensors.items() if not value.ndim and "." not in name and name not in wanted]
    spare = set(numbers)
    tensors = {name: value for name, value in tensors.items() if name not in spare}
    tensors, merged = unpruned(tensors, wanted, partial(_masked, file))
    if numbers:
        merged = (*merged, f"numbers beside the weights were left out: {listing([*map(printable, numbers)])}")
    normed = [printable(name) for name in tensors if _NORMED.search(name)]
    if normed and not any(map(_NORMED.search, wanted)):
        raise BadInputError(
            f"{file}: its weights were saved under weight_norm, spectral_norm or another parametrization such as LoRA ("
            f"{listing(normed)}); take that off before saving (torch.nn.utils, or merge_and_unload of peft), or give "
            "the network as code of your own that has it, --arch FILE.py:NAME"
        )
    found, told = fit_names(tensors, wanted)
    other = None if isinstance(network.kind, Definition) else architecture_in(network.kind, wanted, found)
    if other is not None:
        raise BadInputError(f"{file}: its tensors are those of another form of this network: --arch '{other}'")
    if not normalised:
        check_left_out(tensors, found, wanted)
    return found, (*merged, *told)


def _masked(file: Path, value: Tensor, mask: Tensor) -> Tensor:
    with suppress(RuntimeError):
        if torch.broadcast_shapes(value.shape, mask.shape) == value.shape:
            return value * mask.to(value)
    shapes = " and ".join("x".join(map(str, each.shape)) for each in (mask, value))
    raise BadInputError(f"{file}: a pruning mask and its weight differ in shape ({shapes}); get the file again")


_OF_OURS = re.compile(rf"^{re.escape(POLARIZER_PREFIX)}|\.border$")  # of a layer, or of a ``BorderConv2d``
_NORMED = re.compile(r"\.weight_(g|u)$|\.parametrizations\.\w+\.original|(^|\.)lora_\w+(\.|$)")


def unlike(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], named: str) -> str:
    """What tells the tensors of a file, whose number of classes cannot be found, from those of the network."""
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    extra = [printable(name) for name in tensors if name not in wanted]
    if not missing:
        return f"its tensors do not tell how many classes a {named} has; give --num-classes"
    heads = {name.rpartition(".")[0] for name in missing}
    if len(heads) == 1 and extra and all(name.startswith(f"{next(iter(heads))}.") for name in extra):
        return (
            f"its head is not that of a {named}: it has {listing(extra)} instead of {listing(missing)}; give the "
            "network with its head as code of your own, --arch FILE.py:NAME"
        )
    lacks = f"lacks {listing(missing)}" + (f" and has {listing(extra)}" if extra else "")
    return (
        f"the weights are not those of a {named}: the file {lacks}; check --arch, or give the network as code of your "
        "own (FILE.py:NAME)"
    )


def architecture_in(architecture: str, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """The name with the options that the tensors ask for, of a vision transformer or of a ResNet for small images.

    None where it is ``architecture``, or where they do not tell.
    """
    asked = Architecture.parse(architecture)
    if asked.library == "torchvision" and all(name in tensors or name.endswith("_tracked") for name in wanted):
        stems = [_shape(each, "conv1.weight", 4) for each in (wanted, tensors)]
        sides = [None if shape is None else shape[2] for shape in stems]
        others = tuple(option for option in asked.options if option[0] != "stem")
        if sides in ([7, 3], [3, 7]):
            stem = (("stem", 3),) if sides[1] == 3 else ()
            return str(Architecture(asked.library, asked.name, tuple(sorted((*others, *stem)))))
    names = _TRANSFORMERS.get(asked.library)
    positions = None if names is None else _shape(wanted, names[0], 3)
    if names is None or positions is None:
        return None
    extra = positions[1] - math.isqrt(positions[1]) ** 2  # tokens that are no patches, such as the class token
    before, found = _form(wanted, names, extra), _form(tensors, names, extra)
    if before is None or found is None:
        return None
    options = {names[2] if name == "img_size" else name: size for name, size in found.items() if before[name] != size}
    if not options or not options.keys() <= set(OPTIONS[asked.library]) or max(options.values()) > MAX_OPTION:
        return None
    return str(Architecture(asked.library, asked.name, tuple(sorted({**dict(asked.options), **options}.items()))))


_TRANSFORMERS = MappingProxyType(
    {
        "timm": ("pos_embed", "patch_embed.proj.weight", "img_size"),
        "torchvision": ("encoder.pos_embedding", "conv_proj.weight", "image_size"),
    }
)
"""By library: names of the position embedding, of the patch embedding, and of the option for the image size."""


def _form(tensors: Mapping[str, Tensor], names: tuple[str, ...], extra: int) -> dict[str, int] | None:
    positions, patches = _shape(tensors, names[0], 3), _shape(tensors, names[1], 4)
    side = 0 if positions is None else math.isqrt(max(0, positions[1] - extra))
    if positions is None or patches is None or side * side + extra != positions[1]:
        return None
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return {"img_size": side * patches[2], "patch_size": patches[2], "embed_dim": patches[0], "depth": len(blocks)}


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...] | None:
    shape = tuple(tensors[name].shape) if name in tensors else ()
    return shape if len(shape) == axes and all(shape) else None
