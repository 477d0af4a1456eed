"""Tensors of other tools under the names that the network gives them."""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TypeVar

from neural_polarizer.checkpoints.wording import listing, printable

Value = TypeVar("Value")

# The first prefix of a rule that a name begins with is replaced.
_RULES: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "as TrojanZoo names a ResNet": (("features.", ""), ("classifier.", "")),
        "as TrojanZoo names a DenseNet": (("classifier.fc.", "classifier."),),
        "without the position in a Sequential": (("", "1."),),
    }
)
# Heads for training alone, and tables that are computed anew.
_SPARE = re.compile(r"^(\d+\.)?(AuxLogits|aux1|aux2)\.|(^|\.)(relative_position_index|position_ids|attn_mask)$")
_COUNTS = "num_batches_tracked"


def fit_names(tensors: Mapping[str, Value], wanted: Collection[str]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """``tensors`` under the ``wanted`` names, if a known renaming leads to exactly these, and remarks on it.

    Nothing is guessed from shapes or positions: where no rule gives all names, they stay as they are.

    Args:
        tensors: by the file's names.
        wanted: names in the network; counts of batches may be missing in the file.
    """
    spare = [name for name in tensors if name not in wanted and _SPARE.search(name)]
    kept = {name: value for name, value in tensors.items() if name not in spare}
    remarks = [f"tensors that the network has no use for were left out: {listing([*map(printable, spare)])}"]
    remarks = remarks if spare else []
    if _fits(kept, wanted):
        return kept, tuple(remarks)
    for description, rule in _RULES.items():
        renamed = {_renamed(name, rule): value for name, value in kept.items()}
        if len(renamed) == len(kept) and _fits(renamed, wanted):
            return renamed, (*remarks, f"its tensors were named {description}; they were renamed")
    return dict(tensors), ()


def _renamed(name: str, rule: tuple[tuple[str, str], ...]) -> str:
    return next((new + name.removeprefix(old) for old, new in rule if name.startswith(old)), name)


def _fits(names: Collection[str], wanted: Collection[str]) -> bool:
    missing = [name for name in wanted if name not in names and name.rpartition(".")[2] != _COUNTS]
    return not missing and all(name in wanted for name in names)
