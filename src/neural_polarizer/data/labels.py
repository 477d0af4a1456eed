"""Labels in whatever form they come: as class numbers, or as texts that still need the class names."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from neural_polarizer.errors import BadInputError, shown

_NUMBER = re.compile(r"[+-]?\d{1,18}(\.0*)?")
_MAX_LETTERS, _MAX_TOGETHER = 1_000, 100_000_000  # of one label in words, and of so many as long as the longest


def class_labels(values: Any, where: str) -> np.ndarray:
    """One class number an image, or one text an image where the labels are words.

    Whole floats (1.0), booleans and numbers in text ("3") are taken for class numbers, one-hot rows for the place of
    their 1.

    Shape: int64 ``(n,)``, or text ``(n,)``.

    Args:
        values: a list or array of n labels, or of n one-hot rows; a tensor will do.
        where: names the data in errors.

    Raises:
        BadInputError: a label is no whole number, a row is not one-hot, or the labels are of another kind.
    """
    if isinstance(values, (list, tuple)):
        check_texts(max((len(each) for each in values if isinstance(each, str)), default=0), len(values), where)
    array = label_array(values, where)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim not in (1, 2) or array.dtype.kind not in "iubfU":
        found = type(values[0]).__name__ if array.dtype.kind == "O" and len(values) else str(array.dtype)
        found += "" if array.ndim in (1, 2) else f" of shape {array.shape[1:]}"
        raise BadInputError(f"{where}: labels must be whole numbers, class names or one-hot rows, got {shown(found)}")
    if array.dtype.kind == "U":
        return _from_texts(array, where)
    if array.ndim == 2:
        return _from_rows(array, where)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        broken = ~(np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) < 2**53))
        if broken.any():
            raise BadInputError(f"{where}: label {array[broken][0]:g} is no whole number, so it names no class")
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise BadInputError(f"{where}: label {int(array.max())} is no class number")
    return array.astype(np.int64)


def check_texts(longest: int, count: int, where: str) -> None:
    """Refuse words that are too long for names of classes, before each takes as much memory as the longest."""
    if longest > _MAX_LETTERS or longest * count > _MAX_TOGETHER:
        raise BadInputError(f"{where}: its labels are texts of up to {longest:,} letters, too long for class names")


def joined(parts: Sequence[np.ndarray], where: str) -> np.ndarray:
    """The labels of all parts, one after the other, unless ``check_texts`` refuses them."""
    letter = np.dtype("U1").itemsize
    longest = max((part.dtype.itemsize // letter for part in parts if part.dtype.kind == "U"), default=0)
    check_texts(longest, sum(map(len, parts)), where)
    return np.concatenate(parts)


def label_array(values: Any, where: str) -> np.ndarray:
    """Labels as an array of any kind; rows of several lengths are refused."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().to_dense()
        values = (values.double() if values.is_floating_point() else values).numpy()
    try:
        return np.asarray(values)
    except ValueError:
        raise BadInputError(f"{where}: labels must be one class an image, got lists of several lengths") from None


def turns(labels: np.ndarray) -> np.ndarray:
    """Of each label, how many of the same come before it, int64 ``(n,)``."""
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return turn


def _from_texts(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim != 1:
        raise BadInputError(f"{where}: each image must have one class, got {array.shape[1]} texts an image")
    texts = np.char.strip(array)
    empty = np.flatnonzero(texts == "")
    if len(empty):
        raise BadInputError(f"{where}: the label of image {empty[0]} is empty; leave such images out")
    if all(_NUMBER.fullmatch(text) for text in np.unique(texts)):
        return np.array([int(text.partition(".")[0]) for text in texts], dtype=np.int64)
    return texts


def _from_rows(array: np.ndarray, where: str) -> np.ndarray:
    ones = (array == 1).sum(axis=1) == 1
    fits = ones & ((array == 0).sum(axis=1) == array.shape[1] - 1)
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        raise BadInputError(
            f"{where}: labels are rows of {array.shape[1]} numbers, but that of image {row} is not one-hot (a single "
            "1, else 0); give one class an image"
        )
    return (array == 1).argmax(axis=1).astype(np.int64)
