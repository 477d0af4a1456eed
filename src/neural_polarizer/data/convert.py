"""PyTorch and Hugging Face data sets and loaders, pictures and arrays as an image set."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neural_polarizer.data.classes import ClassNames, Numbered, class_names, numbered
from neural_polarizer.data.decode import decoded, transparency_note
from neural_polarizer.data.images import ImageSet, to_bytes
from neural_polarizer.data.labels import class_labels, label_array
from neural_polarizer.data.rows import IMAGE_COLUMNS, LABEL_COLUMNS
from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError, NeuralPolarizerError, cause, shown

IMAGE_KEYS = (*IMAGE_COLUMNS, "pixel_values", "images", "pixels", "x")
LABEL_KEYS = (*LABEL_COLUMNS, "targets", "y")
_CHANNELS = (1, 3, 4)
MOST_BYTES = 4 << 30  # of pixels in memory from a source that does not tell its length
_ARRAYS = (Tensor, np.ndarray)


def as_image_set(data: Any, *, classes: Sequence[str] | Mapping[Any, Any] | None = None) -> ImageSet:
    """An ``ImageSet`` from one, a data set of (image, label) or of dictionaries, a loader, or (images, labels).

    Pictures follow the rules of image files (``data.decode``). Arrays and tensors may have the channels first or last
    where their shape tells; float images are rounded to 8 bits. Labels may be anything that ``data.labels`` takes.

    Args:
        data: images as PIL pictures, encoded bytes, arrays or tensors: uint8, or float in [0, 1].
        classes: the class names of the data in the order of the model (a list, {name: number} or {number: name}).

    Raises:
        BadInputError: no images with labels, images of several sizes, pixels outside [0, 1], or labels out of range.
    """
    known = None if classes is None else class_names(classes, said_by="classes")
    if isinstance(data, ImageSet):
        return data if known is None else _renumbered(data, known)
    where = type(data).__name__
    pixels, together, transparent = _collected(data, where)
    given, own = class_labels(together, where), _names_of(data)
    if own is not None and given.dtype.kind != "U" and int(given.max()) >= len(own):
        own = None
    found = numbered(given, own, known=known, num_classes=None, source=where)
    return _image_set(pixels, found, where, transparency_note(where, transparent, len(pixels)))


def _renumbered(data: ImageSet, known: ClassNames) -> ImageSet:
    """The same images, with the classes counted as ``known`` has them."""
    names = None if data.classes == tuple(map(str, range(data.num_classes))) else data.classes
    names = data.own if data.own and {*data.own} == {*known.names} else names
    labels = data.labels.cpu().numpy()
    found = numbered(labels, names, known=known, num_classes=None, source=data.source)
    return _image_set(data.images, found, data.source, data.notes)


def _collected(data: Any, where: str) -> tuple[Tensor, np.ndarray, int]:
    """uint8 ``(n, c, h, w)``, the labels as they are, and how many images had transparent pixels."""
    images: list[Tensor] = []
    labels: list[np.ndarray] = []
    transparent, left = 0, MOST_BYTES if _may_be_endless(data) else math.inf
    for item in _read(data, where):
        image, label = _pair(item, where)
        values = label_array(label, where)
        image = _with_channel(image, values)
        pixels, seen_through = _bytes(image, where)
        transparent += seen_through
        images.append(pixels)
        left -= pixels.numel() + 1_000  # a tensor takes some memory itself
        if left < 0:
            raise BadInputError(
                f"{where}: gives more than {MOST_BYTES >> 30} GiB of images, perhaps without end; give the first ones, "
                "as in itertools.islice(data, 500)"
            )
        batch = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
        labels.append(values if batch and (values.ndim or len(pixels) > 1) else values[None])
        if labels[-1].ndim and len(labels[-1]) != len(pixels):
            raise BadInputError(f"{where}: a batch has {len(pixels)} images, but {len(labels[-1])} labels")
    if not sum(map(len, images)):
        raise BadInputError(f"{where}: the data set is empty; a generator or zip gives its images only once")
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise BadInputError(f"{where}: images of several shapes ({sizes[:3]}); resize them to one")
    if len({values.ndim for values in labels}) > 1:
        raise BadInputError(f"{where}: labels of several forms; give one class number an image")
    try:
        together = np.concatenate(labels)
    except ValueError:
        raise BadInputError(f"{where}: labels of several lengths; give one class number an image") from None
    pixels = torch.cat(images)
    if len(pixels) > 1 and int(pixels.max()) <= 1:
        raise BadInputError(
            f"{where}: no pixel is brighter than 1 of 255; give uint8 from 0 to 255, or floats from 0 to 1"
        )
    return pixels, together, transparent


def _may_be_endless(data: Any) -> bool:
    try:
        return len(data) < 0
    except (TypeError, NotImplementedError):  # a stream does not know its length
        return True


def _image_set(images: Tensor, found: Numbered, source: str, notes: tuple[str, ...] = ()) -> ImageSet:
    labels = torch.from_numpy(found.labels.copy())
    return ImageSet(images, labels, found.classes, source, (*notes, *found.notes), found.own)


def _read(data: Any, where: str) -> Iterable[Any]:
    """The items; an error in the user's own code, such as a collate function, is kept as the cause of ours."""
    try:
        yield from _items(data, where)
    except Exception as error:
        if isinstance(error, NeuralPolarizerError) or out_of_memory(error):
            raise
        raise BadInputError(f"{where}: cannot be read ({cause(error)})") from error


def _items(data: Any, where: str) -> Iterable[Any]:
    if isinstance(data, (str, PathLike)):
        raise BadInputError(f"{where}: expected images, not where they are; neural_polarizer.read_images reads them")
    if isinstance(data, Mapping) and not (data.keys() & set(IMAGE_KEYS) and data.keys() & set(LABEL_KEYS)):
        raise BadInputError(
            f"{where}: expected one data set of (image, label), got {shown(list(data)[:6])}; give a split of it, or "
            "(images, labels)"
        )
    columns = isinstance(data, (tuple, list)) and len(data) == 2
    if isinstance(data, Mapping) or (columns and (isinstance(data[0], _ARRAYS) or _are_pictures(data[0]))):
        return [data]  # all of it in one batch
    if isinstance(data, (*_ARRAYS, bytes)):
        raise BadInputError(f"{where}: expected a data set of (image, label); images need their labels beside them")
    if isinstance(data, Iterable):
        return data
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    raise BadInputError(f"{where}: expected an ImageSet, a data set or a loader of (image, label)")


def _pair(item: Any, where: str) -> tuple[Any, Any]:
    item = vars(item) if is_dataclass(item) else item
    if isinstance(item, Mapping):
        keys = list(item)
        image = next((key for key in IMAGE_KEYS if key in item), None)
        label = next((key for key in LABEL_KEYS if key in item), None)
        if image is None or label is None:
            missing = f"an image ({', '.join(IMAGE_KEYS)})" if image is None else f"a label ({', '.join(LABEL_KEYS)})"
            raise BadInputError(
                f"{where}: its samples have the keys {shown(keys[:10])}, none of which is {missing}; rename one, or "
                "give (image, label) pairs"
            )
        return item[image], item[label]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        parts = f" of {len(item)} parts" if isinstance(item, (tuple, list)) else ""
        remedy = "; give two of them, as [(item[0], item[1]) for item in data]" if len(parts) and len(item) > 2 else ""
        raise BadInputError(f"{where}: expected (image, label) pairs, got {type(item).__name__}{parts}{remedy}")
    return item[0], item[1]


def _are_pictures(data: Any) -> bool:
    listed = isinstance(data, (list, tuple))
    return listed and all(isinstance(each, Image.Image) or getattr(each, "ndim", 0) > 1 for each in data)


def _with_channel(image: Any, values: np.ndarray) -> Any:
    """A batch of grey images without a dimension of channels, ``(n, h, w)`` beside n labels, with it."""
    if not (isinstance(image, _ARRAYS) and image.ndim == 3 and values.ndim == 1):
        return image
    coloured = {image.shape[0], image.shape[-1]} & set(_CHANNELS)
    one_hot = len(values) > 1 and (values == 1).sum() == 1 and (values == 0).sum() == len(values) - 1
    batch = len(values) == len(image) and not (coloured and (one_hot or image.shape[-1] in _CHANNELS))
    return image[:, None] if batch else image


def _bytes(image: Any, where: str) -> tuple[Tensor, int]:
    """uint8 ``(n, c, h, w)`` of a batch or of a single image, and how many had transparent pixels."""
    if isinstance(image, (list, tuple)) and image and not isinstance(image[0], (int, float, list, tuple)):
        parts, transparent = zip(*(_bytes(one, where) for one in image), strict=True)
        if len({part.shape for part in parts}) > 1:
            raise BadInputError(f"{where}: images of several shapes in a batch; resize them to one")
        return torch.cat(parts), sum(transparent)
    if isinstance(image, Mapping):  # a row of Hugging Face whose images were not decoded
        image = image.get("bytes") or image
    if isinstance(image, (Image.Image, bytes)):
        found = decoded(image, size=None, where=where)
        return torch.from_numpy(found.values.copy()).permute(2, 0, 1)[None].contiguous(), int(found.transparent)
    if not isinstance(image, (Tensor, np.ndarray)):
        raise BadInputError(f"{where}: images must be pictures, arrays or tensors, got {type(image).__name__}")
    pixels = _channels_first(image, where)
    if pixels.dtype == torch.uint8:
        return pixels, 0
    if not pixels.is_floating_point():
        raise BadInputError(f"{where}: images must be uint8 or float, got {pixels.dtype}; convert them to 8 bits")
    _check_unit_range(pixels, where)
    return to_bytes(pixels.float()), 0


def _channels_first(image: Tensor | np.ndarray, where: str) -> Tensor:
    """``(n, c, h, w)``: tensors have their channels first, arrays last, unless only the other reading makes sense."""
    last = isinstance(image, np.ndarray)
    try:
        if isinstance(image, np.ndarray):
            pixels = torch.from_numpy(image.astype(image.dtype.newbyteorder("=")))  # HDF5 and FITS have others
        else:
            pixels = image.detach().cpu().to_dense()
    except (TypeError, RuntimeError):  # no numbers, or on the device meta
        raise BadInputError(
            f"{where}: images must be uint8 or float, got {type(image).__name__}s of {image.dtype}"
        ) from None
    if pixels.ndim == 2:
        return pixels[None, None]
    if pixels.ndim not in (3, 4):
        raise BadInputError(
            f"{where}: images must be uint8 of shape (n, c, h, w), or floats in [0, 1], got {tuple(pixels.shape)}"
        )
    first = pixels.shape[-3] in _CHANNELS
    if (pixels.shape[-1] in _CHANNELS) != first:
        last = not first
    pixels = pixels.movedim(-1, -3) if last else pixels
    return pixels if pixels.ndim == 4 else pixels[None]


def _check_unit_range(pixels: Tensor, where: str) -> None:
    """Refuse floats that are no pixels in [0, 1], with what they look like."""
    if not bool(pixels.isfinite().all()):
        raise BadInputError(f"{where}: float images must lie in [0, 1], but some values are NaN or infinite")
    low, high = (float(edge) for edge in pixels.aminmax()) if pixels.numel() else (0.0, 0.0)
    if low >= 0 and high <= 1:
        return
    said = f"{where}: float images must lie in [0, 1], found {low:.4g} to {high:.4g}"
    if low >= 0 and high <= 255:
        raise BadInputError(f"{said}, which looks like 8-bit pixels; divide them by 255, or give them as uint8")
    if low >= 0:
        raise BadInputError(f"{said}; divide them by the highest value that a pixel can have")
    raise BadInputError(
        f"{said}, which looks normalised; give them without normalisation and put it into the model: "
        "neural_polarizer.Normalized(model, mean, std)"
    )


def _names_of(data: Any) -> tuple[str, ...] | None:
    """The class names that a data set of torchvision or Hugging Face has, also through loaders, subsets and joins."""
    for _ in range(8):
        parts = getattr(data, "datasets", None)  # of a ConcatDataset
        if isinstance(parts, (list, tuple)):
            found = {_names_of(part) for part in parts}
            return found.pop() if len(found) == 1 else None
        names = getattr(data, "classes", None)
        features = getattr(data, "features", None)
        if isinstance(features, Mapping):
            key = next((key for key in LABEL_KEYS if key in features), None)
            names = getattr(features.get(key), "names", names)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(shown(name) for name in names) if len(set(names)) == len(names) else None
        data = getattr(data, "dataset", None)
    return None
