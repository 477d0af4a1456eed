"""The functions that users call, ``purify`` and what comes before and after it; what they hand in is named here."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from torch.utils.data import DataLoader, Dataset

from neural_polarizer.data.images import ImageSet

Images: TypeAlias = ImageSet | Dataset[object] | DataLoader[object] | Iterable[object]
"""An ``ImageSet``, or a data set or loader of (image, label), or of rows as {"image": ..., "label": ...}."""

Classes: TypeAlias = Sequence[str] | Mapping[str, int] | Mapping[int, str]
"""Class names in the model's order: a list, {name: number} or {number: name}."""
