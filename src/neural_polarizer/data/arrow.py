"""Data sets that Hugging Face's ``save_to_disk`` wrote: a folder of arrow streams beside their description."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neural_polarizer.data.columns import MAX_ROWS, image_leaf, label_column, names_in_metadata, unreadable
from neural_polarizer.data.decode import Source, shown
from neural_polarizer.data.labels import joined
from neural_polarizer.data.rows import IMAGE_COLUMNS, LABEL_COLUMNS, STATE, Rows, pick
from neural_polarizer.errors import BadInputError


def arrow_rows(folder: Path) -> Rows:
    """The rows of the arrow files in ``folder``, in the order of their names.

    Raises:
        BadInputError: several splits, or a file, its columns or its labels cannot be used.
    """
    if not (folder / STATE).is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / STATE).is_file())
        named = " or ".join(shown(folder / split) for split in splits[:6])
        raise BadInputError(f"{shown(folder)}: holds splits of a data set; name one of them: {named or 'it has none'}")
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".arrow")
    if not paths:
        raise BadInputError(f"{shown(folder)}: has a {STATE}, but no arrow file; save the data set again")
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BadInputError(f"{shown(path)}: not a regular file; copy it into the folder")
    with _stream(paths[0]) as reader:
        schema = reader.schema
    image, label = pick(schema.names, IMAGE_COLUMNS, folder), pick(schema.names, LABEL_COLUMNS, folder)
    leaf = image_leaf(schema, image, folder)
    labels = [np.array([], dtype=np.int64)]
    for path in paths:
        columns = [batch.column(label) for batch in _batches(path, [image, label])]
        if columns:
            labels.append(_labels(pa.chunked_array(columns), label, path))
    if sum(map(len, labels)) > MAX_ROWS:
        raise BadInputError(f"{shown(folder)}: holds more than {MAX_ROWS:,} rows; use fewer")
    found = joined(labels[1:] or labels, shown(folder))
    items = (item for path in paths for item in _encoded(path, image, leaf))
    return Rows(items, found, names_in_metadata(schema.metadata, label, folder))


def _labels(column: pa.ChunkedArray, label: str, path: Path) -> np.ndarray:
    try:
        return label_column(column, label, path)
    except pa.ArrowException as error:
        raise unreadable(f"{shown(path)}: column {label!r} cannot be read", error) from None


@contextmanager
def _stream(path: Path) -> Iterator[Any]:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            yield reader
    except (OSError, pa.ArrowException) as error:
        raise unreadable(f"{shown(path)}: cannot be read as an arrow stream", error) from None


def _batches(path: Path, needed: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _stream(path) as reader:
        for name in needed:
            if reader.schema.names.count(name) != 1:
                raise BadInputError(f"{shown(path)}: has no column {name!r}, as the files beside it have")
        for batch in reader:
            batch.validate(full=True)  # offsets of a hostile file may lead anywhere
            yield batch


def _encoded(path: Path, image: str, leaf: str) -> Iterator[tuple[Source, str]]:
    row = 0
    for batch in _batches(path, [image]):
        column = batch.column(image)
        for cell in column.field("bytes") if leaf != image else column:
            data = cell.as_py()
            if not isinstance(data, bytes):
                raise BadInputError(
                    f"{shown(path)}: row {row} has no image bytes; save the data set with its images inside "
                    "(Dataset.to_parquet does so)"
                )
            yield data, f"{shown(path)} row {row}"
            row += 1
