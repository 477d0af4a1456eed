"""Tensors of other tools under the names that the network gives them."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from neural_polarizer.errors import BadInputError, listing, printable

Value = TypeVar("Value")

USUAL = frozenset(("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"))
"""What the model itself is called where other weights lie beside it."""

# Of each rule, the first pattern that a name fits is replaced.
_RULES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "": (),
    "as pytorch-cifar names a ResNet": ((r"\.shortcut\.", ".downsample."),),
    "as torchvision once named a DenseNet": ((r"(\.denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2"),),
    "by their places among the layers of a ResNet": (
        *((r"^0\.", "conv1."), (r"^1\.", "bn1.")),
        *((rf"^{place}\.", f"layer{place - 3}.") for place in range(4, 8)),
    ),
    "without the position in a Sequential": ((r"^", "1."),),
}
# Heads for training alone, tables that are computed anew, losses and metrics, and what thop and averaging count.
SPARE = re.compile(
    r"^(\d+\.)?(AuxLogits|aux1|aux2)\.|(^|\.)(relative_position_index|position_ids|attn_mask|total_ops|total_params)$"
    r"|^(\w*(loss|criterion|metrics?)(_fn|_func)?|(train|val|valid|test)_(acc|accuracy|f1|auroc)\w*)\.|^n_averaged$"
)
_MAX_PREFIXES = 16  # that are tried
_MAX_DEPTH = 6  # of modules in a prefix
_OF_HEAD = 2  # tensors: weight and bias
_COUNTS = "num_batches_tracked"
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # inside names
_ORIGINAL, _MASK = "_orig", "_mask"


def fit_names(tensors: Mapping[str, Value], wanted: Collection[str]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """``tensors`` under the ``wanted`` names, if a known renaming leads to exactly these, and remarks on it.

    Nothing is guessed from shapes or positions: where no rule gives all names, they stay as they are. Where all wanted
    names stand behind one prefix, what is not behind it is left out; of several such prefixes, one that is a usual name
    of a model counts.

    Args:
        tensors: by the file's names.
        wanted: names in the network; counts of batches may be missing in the file.

    Raises:
        BadInputError: the network is there several times, behind several prefixes of which none is usual.
    """
    found = _fitting(tensors, wanted)
    if found is not None:
        return found
    plain, wrappers = _without_wrappers(tensors, wanted)
    found = _fitting(plain, wanted) if wrappers else None
    if found is None:
        return dict(tensors), ()
    told = [f"{name}. was removed from names: what wraps a part of a network puts it there" for name in wrappers]
    return found[0], (*told, *found[1])


def _fitting(tensors: Mapping[str, Value], wanted: Collection[str]) -> tuple[dict[str, Value], tuple[str, ...]] | None:
    """What ``fit_names`` returns, if a rule leads to the ``wanted`` names."""
    spare = {name: value for name, value in tensors.items() if name not in wanted and SPARE.search(name)}
    kept = {name: value for name, value in tensors.items() if name not in spare}
    prefixes = ["", *_prefixes(kept, wanted)]
    inside = {
        prefix: {name[len(prefix) :]: value for name, value in kept.items() if name.startswith(prefix)}
        for prefix in prefixes
    }
    for description, rule in _RULES.items():
        made = {prefix: _by_rule(values, rule, wanted) for prefix, values in inside.items()}
        fitting = {prefix: renamed for prefix, renamed in made.items() if renamed is not None}
        if fitting:
            plain_names = [name for name in kept if not name.startswith(tuple(fitting))]
            bare = {_renamed(name, rule): kept[name] for name in plain_names}
            if len(bare) == len(plain_names) and _fits(bare, wanted):  # the model, and copies of it behind prefixes
                fitting, inside[""] = {"": bare}, {name: kept[name] for name in plain_names}
            prefix = _meant(list(fitting))
            taken = {prefix + name for name in inside[prefix]}
            outside = [name for name in kept if name not in taken]
            told = [f"the prefix {printable(prefix)} was removed from all names"] if prefix else []
            told += _told(description, {_renamed(name, rule) for name in inside[prefix]}, fitting[prefix])
            return fitting[prefix], (*_left_out(spare), *told, *_left_out(outside))
    return _without_body(kept, wanted, _left_out(spare))


def _without_body(
    tensors: Mapping[str, Value], wanted: Collection[str], told: tuple[str, ...]
) -> tuple[dict[str, Value], tuple[str, ...]] | None:
    """What ``fit_names`` returns, if all but the head stands behind a prefix, as in ``backbone.conv1``, ``head.fc``."""
    for prefix in _prefixes(tensors, wanted, without=_OF_HEAD):
        plain = {name.removeprefix(prefix): value for name, value in tensors.items()}
        for description, rule in _RULES.items():
            renamed = _by_rule(plain, rule, wanted)
            if renamed is not None and len(renamed) == len(tensors):
                removed = f"the prefix {printable(prefix)} was removed from the names that have it"
                before = {_renamed(name, rule) for name in plain}
                return renamed, (*told, removed, *_told(description, before, renamed))
    return None


def _by_rule(
    tensors: Mapping[str, Value], rule: tuple[tuple[str, str], ...], wanted: Collection[str]
) -> dict[str, Value] | None:
    """The tensors under the ``wanted`` names, if the rule leads there, and no two of them become one."""
    renamed = _with_own_head({_renamed(name, rule): value for name, value in tensors.items()}, wanted)
    return renamed if len(renamed) == len(tensors) and _fits(renamed, wanted) else None


def _told(description: str, before: Collection[str], after: Collection[str]) -> list[str]:
    """Remarks on a rule that was followed, and on the head."""
    rule = [f"its tensors were named {description}; they were renamed"] if description else []
    theirs = [printable(_module(name)) for name in before if name not in after]
    ours = [_module(name) for name in after if name not in before]
    return [*rule, *([f"its layer {theirs[0]} was taken for {ours[0]} and renamed"] if ours else [])]


def fits(names: Collection[str], wanted: Collection[str]) -> bool:
    """Whether ``fit_names`` leads from these names, of a pruned model, too, to the ``wanted`` ones."""
    try:
        return _fits(fit_names(unpruned(dict.fromkeys(names), wanted, lambda *_: None)[0], wanted)[0], wanted)
    except BadInputError:
        return False


def unpruned(
    tensors: Mapping[str, Value], wanted: Collection[str], product: Callable[[Value, Value], Value]
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """``X_orig`` and ``X_mask`` of ``torch.nn.utils.prune`` as their ``product`` X unless wanted, and a remark."""
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


def _without_wrappers(tensors: Mapping[str, Value], wanted: Collection[str]) -> tuple[dict[str, Value], list[str]]:
    """Without what wraps parts of a network, unless two names become one, and what that was; prefixes stay."""
    own = {part for name in wanted for part in name.split(".")}
    inside = {part for name in tensors for part in name.split(".")[1:]}
    found = [part for part in _WRAPPERS if part in inside and part not in own]
    plain = {_without(found, name): value for name, value in tensors.items()}
    return (plain, found) if len(plain) == len(tensors) else (dict(tensors), [])


def _without(parts: Collection[str], name: str) -> str:
    first, dot, rest = name.partition(".")
    return first + dot + ".".join(part for part in rest.split(".") if part not in parts)


def _prefixes(names: Collection[str], wanted: Collection[str], *, without: int = 0) -> list[str]:
    """The prefixes behind which there are as many names as are wanted, or a few less, the shortest first."""
    needed = sum(name.rpartition(".")[2] != _COUNTS for name in wanted) - without
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".", _MAX_DEPTH)[:-1]
        found.update(".".join(parts[: depth + 1]) + "." for depth in range(len(parts)))
    return sorted((prefix for prefix, count in found.items() if count >= needed), key=len)[:_MAX_PREFIXES]


def _meant(prefixes: list[str]) -> str:
    """The only prefix, or the one of a usual name."""
    usual = [each for each in prefixes if not each or each.removesuffix(".") in USUAL]
    if len(prefixes) == 1 or len(usual) == 1:
        return (usual or prefixes)[0]
    shown = listing([*map(printable, prefixes)])
    raise BadInputError(
        f"it holds this network several times, behind the prefixes {shown}; name the one you mean, as in --weights "
        f"{printable(prefixes[0].removesuffix('.'))}"
    )


def _with_own_head(tensors: dict[str, Value], wanted: Collection[str]) -> dict[str, Value]:
    """With the only layer that is not the network's (``head.1``) under the name of the only one that it lacks."""
    missing = {name.rpartition(".")[2]: name for name in wanted if name not in tensors}
    missing = {kind: name for kind, name in missing.items() if kind != _COUNTS}
    extra = {name: name.rpartition(".")[2] for name in tensors if name not in wanted}
    layers = [{_module(name) for name in names} for names in (missing.values(), extra)]
    rest = any(name in tensors for name in wanted)
    if not rest or sorted(missing) != sorted(extra.values()) or [*map(len, layers)] != [1, 1]:
        return tensors
    return {missing[extra[name]] if name in extra else name: value for name, value in tensors.items()}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


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
