"""Parquet and arrow files of encoded images and labels, in the layout that Hugging Face uses."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from neural_polarizer.data.decode import Source
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.labels import check_texts, class_labels, joined
from neural_polarizer.data.parquet_pages import largest_page
from neural_polarizer.data.rows import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    STATE,
    TRUE_LABEL,
    Rows,
    attacked_note,
    label_in,
    pick,
)
from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError, one_line, refusing, shown
from neural_polarizer.files import LFS_POINTER, atomic_path

MAX_ROWS = 10_000_000  # a few bytes can stand for any number of labels
MAX_METADATA_BYTES = 8 << 20  # the names of 21,000 classes need 1 MB
_MAX_TEXTS, _MAX_TEXT_BYTES = 1_000_000, 64 << 20  # different labels in words
_BATCH_ROWS, _BATCH_BYTES = 512, 32 << 20  # in memory at once


def write_images(path: Path, images: ImageSet, **extra: Tensor) -> None:
    """Write a parquet file in the Hugging Face layout, atomically; ``read_images`` gives the same bits back.

    Args:
        path: the file; its name must end in ``.parquet`` to be read again.
        images: three channels; stored as PNG.
        extra: further int64 columns ``(n,)``, such as ``true_label``.

    Raises:
        BadInputError: not three channels, or an extra column of another shape, dtype or a name in use.
        EnvironmentFaultError: the file cannot be written.
    """
    if images.images.shape[1] != 3:
        raise BadInputError(f"{path}: only images of 3 channels can be written, got {images.images.shape[1]}")
    for name, column in extra.items():
        if column.dtype != torch.int64 or column.shape != images.labels.shape or name in ("image", "label"):
            raise BadInputError(
                f"{path}: extra column {name!r} must be int64 of shape ({len(images)},) and not named image "
                f"or label, got {column.dtype} {tuple(column.shape)}"
            )
    encoded = [{"bytes": _png(image), "path": None} for image in images.images.permute(0, 2, 3, 1).cpu().numpy()]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features["label"] = {"names": list(images.classes), "_type": "ClassLabel"}
    features |= {name: {"dtype": "int64", "_type": "Value"} for name in extra}
    columns = {"image": pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    columns |= {name: pa.array(each.cpu().numpy()) for name, each in {"label": images.labels, **extra}.items()}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="none")  # PNG bytes do not shrink further


def parquet_rows(paths: Sequence[Path], label_columns: Sequence[str] = LABEL_COLUMNS) -> Rows:
    """The rows of all files, one file after the other, with the first of ``label_columns`` that is there.

    Raises:
        BadInputError: a file, its columns or its labels cannot be used, or the files name different classes.
    """
    labels, names, images, attacked = [], set(), [], list[Path]()
    for path in paths:
        with _parquet(path) as file:
            image = pick(file.schema_arrow.names, IMAGE_COLUMNS, path)
            leaf, one = _image_leaf(file.schema_arrow, image, path), label_in(path)
            if one is None or set(label_columns) & set(file.schema_arrow.names):
                label = pick(file.schema_arrow.names, label_columns, path, taken=image)
                labels.append(_labels(file, label, path))
            else:
                label = path.parent.name.partition("=")[0]
                labels.append(class_labels([one], shown(path)).repeat(file.metadata.num_rows))
            if TRUE_LABEL in file.schema_arrow.names and label != TRUE_LABEL:
                attacked.append(path)
            named = (_names_in_metadata(file.schema_arrow.metadata, column, path) for column in (label, "label"))
            names.add(next(filter(None, named), None))  # a second column of labels counts by the names of the first
            images.append((path, leaf, largest_page(path, file, leaf)))
    if len(names) > 1:
        raise BadInputError(f"{shown(paths[0].parent)}: its parquet files name different classes; read them one by one")
    items = (item for path, leaf, most in images for item in _encoded(path, _parquet_cells(path, leaf, most)))
    notes = tuple(map(attacked_note, attacked))
    return Rows(items, joined(labels, shown(paths[0].parent)), names.pop(), notes=notes)


def _parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise BadInputError(f"{shown(path)}: no such file, or not a regular one")
    with reading(f"{shown(path)}: cannot be read as parquet"):
        with path.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise BadInputError(f"{shown(path)}: a Git LFS pointer, not the data; run 'git lfs pull'")
        file = pq.ParquetFile(path)
    if file.metadata.num_rows > MAX_ROWS:
        file.close()
        raise BadInputError(f"{shown(path)}: holds more than {MAX_ROWS:,} rows; split it, or use fewer")
    return file


def _labels(file: pq.ParquetFile, name: str, path: Path) -> np.ndarray:
    for leaf in (file.schema.column(number).path for number in range(len(file.schema))):
        if leaf == name or leaf.startswith(f"{name}."):  # a column of lists has a leaf for their elements
            largest_page(path, file, leaf)
    with reading(f"{shown(path)}: column {name!r} cannot be read"):
        return _label_column(file.read(columns=[name], use_threads=False).column(name), name, path)


def arrow_rows(folder: Path) -> Rows:
    """The rows of the arrow files that the state of ``folder`` names, in its order.

    Raises:
        BadInputError: several splits, or a file, its columns or its labels cannot be used.
    """
    if not (folder / STATE).is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / STATE).is_file())
        named = " or ".join(shown(folder / split) for split in splits[:6])
        raise BadInputError(f"{shown(folder)}: holds splits of a data set; name one of them: {named or 'it has none'}")
    paths = _data_files(folder)
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BadInputError(f"{shown(path)}: missing, or not a regular file; copy it into the folder")
    with _stream(paths[0]) as reader:
        schema = reader.schema
    image = pick(schema.names, IMAGE_COLUMNS, folder)
    label = pick(schema.names, LABEL_COLUMNS, folder, taken=image)
    leaf = _image_leaf(schema, image, folder)
    labels = [np.array([], dtype=np.int64)]
    for path in paths:
        columns = [batch.column(label) for batch in _batches(path, [image, label])]
        if columns:
            with reading(f"{shown(path)}: column {label!r} cannot be read"):
                labels.append(_label_column(pa.chunked_array(columns), label, path))
    if sum(map(len, labels)) > MAX_ROWS:
        raise BadInputError(f"{shown(folder)}: holds more than {MAX_ROWS:,} rows; use fewer")
    found = joined(labels[1:] or labels, shown(folder))
    items = (item for path in paths for item in _encoded(path, _arrow_cells(path, image, leaf)))
    return Rows(items, found, _names_in_metadata(schema.metadata, label, folder))


def _data_files(folder: Path) -> list[Path]:
    """Those that hold the data; beside them lie caches of ``map`` and ``filter``, which do not."""
    path, again = folder / STATE, "save the data set again"
    said = f"{shown(path)}: does not name the files of the data"
    with refusing(said, OSError, ValueError, KeyError, TypeError, RecursionError, then=f"; {again}"):
        if path.is_symlink() or path.stat().st_size > MAX_METADATA_BYTES:
            raise BadInputError(f"{shown(path)}: not a regular file of reasonable size; {again}")
        named = json.loads(path.read_bytes())["_data_files"]
        files = [folder / Path(each["filename"]).name for each in named]
    if not files:
        raise BadInputError(f"{shown(path)}: names no file of data; {again}")
    return files


@contextmanager
def _stream(path: Path) -> Iterator[Any]:
    with (
        reading(f"{shown(path)}: cannot be read as an arrow stream"),
        pa.memory_map(str(path)) as file,
        pa.ipc.open_stream(file) as reader,
    ):
        yield reader


def _batches(path: Path, needed: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _stream(path) as reader:
        for name in needed:
            if reader.schema.names.count(name) != 1:
                raise BadInputError(f"{shown(path)}: has no column {name!r}, as the files beside it have")
        for batch in reader:
            batch.validate(full=True)  # offsets of a hostile file may lead anywhere
            yield batch


def _parquet_cells(path: Path, leaf: str, longest: int) -> Iterator[Any]:
    """A column, in small parts; ``longest`` bounds the length of each value."""
    row, count = 0, min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, longest)))
    with _parquet(path) as file:
        batches = file.iter_batches(batch_size=count, columns=[leaf], use_threads=False)
        while True:
            with reading(f"{shown(path)}: damaged near row {row}"):
                batch = next(batches, None)
            if batch is None:
                return
            yield from batch.column(0).to_pylist()
            row += len(batch)


def _arrow_cells(path: Path, image: str, leaf: str) -> Iterator[Any]:
    for batch in _batches(path, [image]):
        column = batch.column(image)
        yield from (cell.as_py() for cell in (column.field("bytes") if leaf != image else column))


def _encoded(path: Path, cells: Iterable[Any]) -> Iterator[tuple[Source, str]]:
    """The image bytes of a file, row by row."""
    for row, cell in enumerate(cells):
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise BadInputError(
                f"{shown(path)}: row {row} has no image bytes; save the data set with its images inside "
                "(Dataset.to_parquet does so)"
            )
        yield data, f"{shown(path)} row {row}"


def _image_leaf(schema: pa.Schema, image: str, where: object) -> str:
    """The column with the bytes of the images: ``image`` itself, or its part ``bytes``; others are refused."""
    kind = schema.field(image).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return image
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{image}.bytes"
    raise BadInputError(
        f"{shown(where)}: column {image!r} must hold bytes or a struct of bytes and path, not {shown(kind)}"
    )


def _label_column(column: pa.ChunkedArray, name: str, where: object) -> np.ndarray:
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


def _names_in_metadata(metadata: Any, label: str, where: object) -> tuple[str, ...] | None:
    """The class names in the Hugging Face metadata of a schema, or None; damaged metadata is refused."""
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


@contextmanager
def reading(told: str) -> Iterator[None]:
    """Say, as ``told``, what the library cannot read in the block; where memory is short, the file is not to blame.

    Raises:
        BadInputError: the library gave up.
        MemoryError: for want of memory.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if out_of_memory(error):
            raise MemoryError(str(error)) from None
        raise BadInputError(f"{told} ({one_line(error)})") from None


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
