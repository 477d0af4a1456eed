"""Parquet files of encoded images and labels, in the layout that Hugging Face uses."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from neural_polarizer.data.arrow import MAX_ROWS, image_leaf, label_column, names_in_metadata, reading
from neural_polarizer.data.decode import Source
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.labels import class_labels, joined
from neural_polarizer.data.parquet_pages import largest_page
from neural_polarizer.data.rows import IMAGE_COLUMNS, LABEL_COLUMNS, TRUE_LABEL, Rows, attacked_note, label_in, pick
from neural_polarizer.errors import BadInputError, shown
from neural_polarizer.files import LFS_POINTER, atomic_path

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
            leaf, one = image_leaf(file.schema_arrow, image, path), label_in(path)
            if one is None or set(label_columns) & set(file.schema_arrow.names):
                label = pick(file.schema_arrow.names, label_columns, path)
                labels.append(_labels(file, label, path))
            else:
                label = path.parent.name.partition("=")[0]
                labels.append(class_labels([one], shown(path)).repeat(file.metadata.num_rows))
            if TRUE_LABEL in file.schema_arrow.names and label != TRUE_LABEL:
                attacked.append(path)
            named = (names_in_metadata(file.schema_arrow.metadata, column, path) for column in (label, "label"))
            names.add(next(filter(None, named), None))  # a second column of labels counts by the names of the first
            images.append((path, leaf, largest_page(path, file, leaf)))
    if len(names) > 1:
        raise BadInputError(f"{shown(paths[0].parent)}: its parquet files name different classes; read them one by one")
    items = (item for each in images for item in _encoded(*each))
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
    """The column of labels, of whatever kind they are."""
    for leaf in (file.schema.column(number).path for number in range(len(file.schema))):
        if leaf == name or leaf.startswith(f"{name}."):  # a column of lists has a leaf for their elements
            largest_page(path, file, leaf)
    with reading(f"{shown(path)}: column {name!r} cannot be read"):
        return label_column(file.read(columns=[name], use_threads=False).column(name), name, path)


def _encoded(path: Path, leaf: str, longest: int) -> Iterator[tuple[Source, str]]:
    """The image bytes of a parquet file, row by row; ``longest`` bounds the length of each."""
    row = 0
    rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, longest)))
    with _parquet(path) as file:
        batches = file.iter_batches(batch_size=rows, columns=[leaf], use_threads=False)
        while True:
            with reading(f"{shown(path)}: damaged near row {row}"):
                batch = next(batches, None)
            if batch is None:
                return
            for cell in batch.column(0).to_pylist():
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                if not isinstance(data, bytes):
                    raise BadInputError(f"{shown(path)}: row {row} has no image bytes")
                yield data, f"{shown(path)} row {row}"
                row += 1


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
