"""Columns of tables in the layout that Hugging Face uses: which holds the images, and what the labels are."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from neural_polarizer.data.decode import one_line, shown
from neural_polarizer.data.labels import check_texts, class_labels
from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError

MAX_ROWS = 10_000_000  # a few bytes can stand for any number of labels
MAX_METADATA_BYTES = 8 << 20  # the names of 21,000 classes need 1 MB
_MAX_TEXTS, _MAX_TEXT_BYTES = 1_000_000, 64 << 20  # different labels in words


def image_leaf(schema: pa.Schema, image: str, where: object) -> str:
    """The column with the bytes of the images: ``image`` itself, or its part ``bytes``.

    Raises:
        BadInputError: it holds neither bytes nor such a struct.
    """
    kind = schema.field(image).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return image
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{image}.bytes"
    raise BadInputError(
        f"{shown(where)}: column {image!r} must hold bytes or a struct of bytes and path, not {shown(kind)}"
    )


def label_column(column: pa.ChunkedArray, name: str, where: object) -> np.ndarray:
    """Labels of any kind that ``class_labels`` takes, from a column of one value, or one list, a row.

    Raises:
        BadInputError: empty cells, a type that cannot be labels, or values that are none.
    """
    said, kind = f"{shown(where)}: column {name!r}", column.type
    if column.null_count:
        raise BadInputError(f"{said} has {column.null_count} empty cells")
    if pa.types.is_integer(kind):
        return column.cast(pa.int64()).to_numpy().copy()
    if pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        return class_labels(column.to_numpy(), said)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return _texts(column, said)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = column.combine_chunks()
        flat = values.flatten()
        whole = pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)
        width = len(flat) // max(1, len(values))
        if whole and not flat.null_count and all(n == width for n in values.value_lengths().unique().to_pylist()):
            return class_labels(flat.to_numpy(zero_copy_only=False).reshape(len(values), width), said)
    raise BadInputError(
        f"{said} holds {shown(kind)}, which cannot be labels; they are whole numbers, class names or one-hot lists"
    )


def _texts(column: pa.ChunkedArray, said: str) -> np.ndarray:
    coded = (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).unify_dictionaries()
    words = coded.chunk(0).dictionary if coded.num_chunks else pa.array([], pa.string())
    if not (pa.types.is_string(words.type) or pa.types.is_large_string(words.type)) or words.null_count:
        raise BadInputError(f"{said} holds {shown(column.type)}, which cannot be labels")
    names = words.to_pylist() if len(words) <= _MAX_TEXTS and words.nbytes <= _MAX_TEXT_BYTES else None
    if names is None:
        raise BadInputError(f"{said} holds too many different texts, or too long ones, for class names")
    check_texts(max(map(len, names), default=0), len(column), said)
    if not names:
        return np.array([], dtype=np.int64)
    places = np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks])
    return class_labels(np.array(names)[places], said)


def names_in_metadata(metadata: Any, label: str, where: object) -> tuple[str, ...] | None:
    """The class names in the Hugging Face metadata of a schema, or None.

    Raises:
        BadInputError: the metadata is damaged.
    """
    text = (metadata or {}).get(b"huggingface", b"{}")
    if len(text) > MAX_METADATA_BYTES:
        raise BadInputError(f"{shown(where)}: its Hugging Face metadata is larger than {MAX_METADATA_BYTES:,} bytes")
    try:
        info: Any = json.loads(text)
        for key in ("info", "features", label, "names"):
            info = info.get(key) or {}
    except (ValueError, AttributeError, RecursionError):
        raise BadInputError(f"{shown(where)}: its Hugging Face metadata is damaged") from None
    if not info:
        return None
    if not isinstance(info, list) or not all(isinstance(name, str) for name in info):
        raise BadInputError(f"{shown(where)}: the class names in its metadata are not a list of texts")
    return tuple(info)


def unreadable(told: str, error: BaseException) -> Exception:
    """The error for what the library cannot read; where memory is short, the file is not to blame.

    Args:
        told: what cannot be read.
        error: of the library.
    """
    if out_of_memory(error):
        return MemoryError(str(error))
    return BadInputError(f"{told} ({one_line(error)})")
