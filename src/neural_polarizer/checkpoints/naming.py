"""Tensors of other tools under the names that the network gives them."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

from neural_polarizer.checkpoints.wording import listing, printable
from neural_polarizer.errors import BadInputError

Value = TypeVar("Value")

# Of each rule, the first pattern that a name fits is replaced.
_RULES: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "as TrojanZoo names a ResNet": ((r"^features\.", ""), (r"^classifier\.", "")),
        "as TrojanZoo names a DenseNet": ((r"^classifier\.fc\.", "classifier."),),
        "as pytorch-cifar names a ResNet": ((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc.")),
        "as mmpretrain does": ((r"^backbone\.", ""), (r"^head\.", "")),
        "with a head inside a Sequential": ((r"^(fc|classifier|head)\.\d+\.(weight|bias)$", r"\1.\2"),),
        "without the position in a Sequential": ((r"^", "1."),),
    }
)
# Heads for training alone, tables that are computed anew, and what thop counts.
_SPARE = re.compile(
    r"^(\d+\.)?(AuxLogits|aux1|aux2)\.|(^|\.)(relative_position_index|position_ids|attn_mask|total_ops|total_params)$"
)
_COUNTS = "num_batches_tracked"
_COMPILED = "_orig_mod."
_ORIGINAL, _MASK = "_orig", "_mask"


def fit_names(tensors: Mapping[str, Value], wanted: Collection[str]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """``tensors`` under the ``wanted`` names, if a known renaming leads to exactly these, and remarks on it.

    Nothing is guessed from shapes or positions: where no rule gives all names, they stay as they are. Where all wanted
    names stand behind one prefix, what is not behind it is left out.

    Args:
        tensors: by the file's names.
        wanted: names in the network; counts of batches may be missing in the file.

    Raises:
        BadInputError: the network is there several times, behind several prefixes.
    """
    plain, compiled = _without_compiled(tensors, wanted)
    remarks = [f"{_COMPILED} was removed from names: torch.compile puts it there"] if compiled else []
    spare = [name for name in plain if name not in wanted and _SPARE.search(name)]
    kept = {name: value for name, value in plain.items() if name not in spare}
    for renamed, told in _forms(kept, wanted):
        if _fits(renamed, wanted):
            return renamed, (*remarks, *_left_out(spare), *told)
    return dict(tensors), ()


def fits(names: Collection[str], wanted: Collection[str]) -> bool:
    """Whether ``fit_names`` leads from these names, of a pruned model, too, to the ``wanted`` ones."""
    try:
        return _fits(fit_names(unpruned(dict.fromkeys(names), wanted, lambda *_: None)[0], wanted)[0], wanted)
    except BadInputError:
        return False


def unpruned(
    tensors: Mapping[str, Value], wanted: Collection[str], product: Callable[[Value, Value], Value]
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """``X_orig`` and ``X_mask`` of ``torch.nn.utils.prune`` as their product ``X``, and a remark on it.

    Args:
        tensors: by the file's names.
        wanted: names in the network; those stay.
        product: of the two.
    """
    pairs = [
        name.removesuffix(_ORIGINAL)
        for name in tensors
        if name.endswith(_ORIGINAL) and name not in wanted and name.removesuffix(_ORIGINAL) + _MASK in tensors
    ]
    pairs = [name for name in pairs if name not in tensors]
    if not pairs:
        return dict(tensors), ()
    gone = {name + ending for name in pairs for ending in (_ORIGINAL, _MASK)}
    rest = {name: value for name, value in tensors.items() if name not in gone}
    made = {name: product(tensors[name + _ORIGINAL], tensors[name + _MASK]) for name in pairs}
    return {**rest, **made}, (f"its pruning masks were applied to {listing([*map(printable, pairs)])}",)


def _without_compiled(tensors: Mapping[str, Value], wanted: Collection[str]) -> tuple[dict[str, Value], bool]:
    """Without what ``torch.compile`` puts into names, wherever it stands, unless two names become one."""
    plain = {name if name in wanted else name.replace(_COMPILED, ""): value for name, value in tensors.items()}
    changed = len(plain) == len(tensors) and any(_COMPILED in name for name in tensors)
    return (plain, True) if changed else (dict(tensors), False)


def _forms(tensors: Mapping[str, Value], wanted: Collection[str]) -> Iterator[tuple[dict[str, Value], tuple[str, ...]]]:
    """The tensors as they are, by each rule, and what stands behind a prefix."""
    yield dict(tensors), ()
    for description, rule in _RULES.items():
        renamed = {_renamed(name, rule): value for name, value in tensors.items()}
        if len(renamed) == len(tensors):
            yield renamed, (f"its tensors were named {description}; they were renamed",)
    prefixes = _prefixes(tensors, wanted)
    if len(prefixes) > 1:
        shown = listing([*map(printable, prefixes)])
        raise BadInputError(f"it holds this network several times, behind the prefixes {shown}; save the one you mean")
    for prefix in prefixes:
        inside = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        outside = [name for name in tensors if not name.startswith(prefix)]
        yield inside, (f"the prefix {printable(prefix)} was removed from all names", *_left_out(outside))


def _prefixes(names: Collection[str], wanted: Collection[str]) -> list[str]:
    """The prefixes behind which all wanted names stand, and nothing else."""
    needed = [name for name in wanted if name.rpartition(".")[2] != _COUNTS]
    found = {name.removesuffix(needed[0]) for name in names if needed and name.endswith(f".{needed[0]}")}
    whole = [prefix for prefix in sorted(found) if all(prefix + name in names for name in needed)]
    return [each for each in whole if all(n[len(each) :] in wanted for n in names if n.startswith(each))]


def _left_out(names: Collection[str]) -> tuple[str, ...]:
    shown = listing([*map(printable, names)])
    return (f"tensors that the network has no use for were left out: {shown}",) if names else ()


def _renamed(name: str, rule: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rule:
        renamed, count = re.subn(pattern, replacement, name, count=1)
        if count:
            return renamed
    return name


def _fits(names: Collection[str], wanted: Collection[str]) -> bool:
    missing = [name for name in wanted if name not in names and name.rpartition(".")[2] != _COUNTS]
    return not missing and all(name in wanted for name in names)
