"""Parquet and arrow files, whose library is read only where one is: most of its half second is of no use otherwise."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.rows import LABEL_COLUMNS, Rows
from neural_polarizer.errors import needing


def parquet_rows(paths: Sequence[Path], label_columns: Sequence[str] = LABEL_COLUMNS) -> Rows:
    """``data.parquet.parquet_rows``, or which extra brings it."""
    with needing("parquet", "parquet files"):
        from neural_polarizer.data import parquet
    return parquet.parquet_rows(paths, label_columns)


def write_images(path: Path, images: ImageSet, **extra: Tensor) -> None:
    """``data.parquet.write_images``, or which extra brings it."""
    with needing("parquet", "parquet files"):
        from neural_polarizer.data import parquet
    parquet.write_images(path, images, **extra)


def arrow_rows(folder: Path) -> Rows:
    """``data.parquet.arrow_rows``, or which extra brings it."""
    with needing("parquet", "arrow files"):
        from neural_polarizer.data import parquet
    return parquet.arrow_rows(folder)
