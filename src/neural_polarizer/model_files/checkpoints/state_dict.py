"""Which of the things in a checkpoint are the model's weights."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from types import NoneType
from typing import Any, TypeVar

from neural_polarizer.errors import BadInputError, listing, printable
from neural_polarizer.model_files.checkpoints.naming import USUAL
from neural_polarizer.model_files.checkpoints.pickle_values import Number, Opaque, TensorRecord

_NOT_THE_MODEL = re.compile("optim(?!al|i[sz]ed|um)|sched(?!uled)|scaler")
_WRAPPERS = ("module.", "_orig_mod.")
_MAX_WRAPPERS = 8  # one before another; a name that is nothing but a million of them would never end
_MAX_LEVELS = 8
_MAX_RIVALS = 20
_MAX_LETTERS = 4_000_000
_RESAVE = "save the state_dict alone"
_QUANTISED = re.compile(r"(^|\.)(_packed_params(\.|$)|(SCB|qweight|zero_point)$)")
_FLOAT = "give the float model that it was made from"
_EXTRA = "._extra_state"  # of a module's get_extra_state, which may be anything
_STATISTIC = re.compile(r"(\w{0,40}_)?(mean|std)s?")
_QUANTISED_CALL = "torch._utils._rebuild_qtensor"

Fits = Callable[[Collection[str]], bool]
"""Whether the names of some weights are those of the network that is wanted."""
Value = TypeVar("Value")


def find_state_dict(
    value: Any, entry: str | None = None, fits: Fits | None = None
) -> tuple[dict[str, TensorRecord], tuple[str, ...]]:
    """The weights in a walked pickle, under their names in the model, and remarks on where they were.

    ``entry`` and ``fits`` tell which of several sets is meant; ``read_checkpoint`` calls them ``weights`` and ``fits``.

    Raises:
        BadInputError: there are none, several sets of them, or tensors of a kind that cannot be read.
    """
    levels = _candidates(value)
    parts = _in_parts(levels, fits) if fits is not None and entry is None else {}
    if parts:
        levels = [{" and ".join(parts): _together(parts)}]
    path, inner = _choose(levels, value, entry, fits)
    found = {name: item for level in levels for name, item in level.items()}
    holder = found[path]
    remarks = [f"the weights were taken from its entr{'ies' if parts else 'y'} {path}"] if path else []
    near = found if inner or path not in levels[0] else levels[0]
    far = [other for other in [*found][:_MAX_RIVALS] if fits and other not in near and fits(_names(found[other]))]
    others = [other for other in (*near, *far) if other != path]
    if others:
        remarks.append(f"it holds other weights, too: {listing(others)}; --weights takes those of another entry")
    if isinstance(holder, Opaque):
        weights, told = _module_weights(holder)
        remarks += [f"a whole pickled module of class {printable(holder.name)}; only its weights were read", *told]
    else:
        weights, beside = _split(holder)
        if beside:
            remarks.append(f"entries beside the weights that are no tensors were left out: {listing(beside)}")
    for name, record in weights.items():
        if not isinstance(record, TensorRecord):
            kind = printable(record.name) if isinstance(record, Opaque) else type(record).__name__
            remedy = _FLOAT if kind == _QUANTISED_CALL else "save it as an ordinary tensor, dense and with its values"
            raise BadInputError(f"tensor {printable(name)} is of a kind that cannot be read ({kind}); {remedy}")
    stripped, prefix = strip_wrappers(weights)
    remarks += prefix_remarks(prefix)
    if inner:
        stripped, said = behind(stripped, inner)
        remarks.append(said)
    return stripped, tuple(remarks)


def behind(tensors: Mapping[str, Value], prefix: str) -> tuple[dict[str, Value], str]:
    """What stands behind ``prefix.`` in a set of weights, and a remark on it; nothing there is refused."""
    start = f"{_in_names(prefix, tensors)}."
    inside = {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
    if not inside:
        raise BadInputError(
            f"it has one set of weights, and none of its names begins with {printable(start)}; leave --weights out, or "
            "give the beginning of the names"
        )
    return inside, f"of its weights only those behind {printable(start)} were taken"


def _in_names(prefix: str, names: Collection[str]) -> str:
    """``prefix`` as it stands in names from which ``strip_wrappers`` took what was before all of them."""
    wrapper = next((each for each in _WRAPPERS if prefix.startswith(each)), None)
    if wrapper is None or any(name.startswith(f"{prefix}.") for name in names):
        return prefix
    return _in_names(prefix.removeprefix(wrapper), names)


def strip_wrappers(tensors: Mapping[str, Value]) -> tuple[dict[str, Value], str]:
    """Remove what DataParallel and ``torch.compile`` put before every name; also return what was removed."""
    removed = ""
    for _ in range(_MAX_WRAPPERS if tensors else 0):
        prefix = next((each for each in _WRAPPERS if all(name.startswith(removed + each) for name in tensors)), "")
        removed += prefix
    return {name.removeprefix(removed): value for name, value in tensors.items()}, removed


def prefix_remarks(prefix: str) -> list[str]:
    """What is said of what ``strip_wrappers`` removed."""
    return [f"the prefix {prefix} was removed from all names"] if prefix else []


def _candidates(value: Any) -> list[dict[str, Any]]:
    """All state dicts and modules by path, level by level; levels without any are left out."""
    level = {"": _opened(value)}
    levels: list[dict[str, Any]] = []
    seen: set[int] = set()  # a dict that holds itself, or one thousand times the same, is looked at once
    for _ in range(_MAX_LEVELS):
        found = {path: item for path, item in level.items() if _is_state_dict(item) or _is_module(item)}
        if found:
            levels.append(found)
        below = {}
        for path, item in level.items():
            for key, held in _entries(item):
                child = _opened(held)
                if id(child) not in seen:
                    seen.add(id(child))
                    below[f"{path}.{printable(key)}".lstrip(".")] = child
        level = below
    return levels


def _opened(item: Any) -> Any:
    """What may lead to weights in an object that is no module: what it holds as a dict, its attributes or arguments."""
    if not isinstance(item, Opaque) or _is_module(item):
        return item
    return item.items or (item.state if isinstance(item.state, dict) and item.state else item.args)


def _entries(item: Any) -> Iterable[tuple[str, Any]]:
    """What may lead to weights in a dict or a list."""
    pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, (list, tuple)) else ()
    for key, child in pairs:
        name = str(key) if isinstance(key, (str, int, Number)) else ""
        if name and isinstance(child, (dict, list, tuple, Opaque)) and not _NOT_THE_MODEL.search(name.lower()):
            yield name, child


def _choose(levels: list[dict[str, Any]], top: Any, entry: str | None, fits: Fits | None) -> tuple[str, str]:
    """The path of what is meant, and the prefix in it; what lies deeper counts only where it is named or alone fits."""
    if not levels:
        raise BadInputError(f"no weights found in it: {_describe(top)}; {_RESAVE}")
    everywhere = {path: item for level in levels for path, item in level.items()}
    if entry is not None:
        return (entry, "") if entry in everywhere else _inside(everywhere, entry)
    found = levels[0]
    if fits is not None and len(everywhere) > 1:
        fitting = {path: item for path, item in [*everywhere.items()][:_MAX_RIVALS] if fits(_names(item))}
        found = {path: item for path, item in found.items() if path in fitting} or fitting or found
    if len(found) == 1:
        return next(iter(found)), ""
    usual = [path for path in found if path.rpartition(".")[2] in USUAL]
    # Beside its state dict a whole module is what the weights are loaded into.
    usual = [path for path in usual if isinstance(found[path], dict)] or usual
    if len(usual) == 1 and len(found) <= _MAX_RIVALS:
        names = _names(found[usual[0]])
        if fits is not None or not any(names & _names(item) for path, item in found.items() if path != usual[0]):
            return usual[0], ""
    raise BadInputError(
        f"it holds several sets of weights ({listing(found)}); name the one you mean, as in --weights "
        f"{next(iter(found))}"
    )


def _in_parts(levels: list[dict[str, Any]], fits: Fits) -> dict[str, Any]:
    """The two sets that only together are the network, as its body in one entry and its head in another; or none."""
    everywhere = [item for level in levels for item in level.values()][:_MAX_RIVALS]
    if not levels or len(levels[0]) < 2 or any(fits(_names(item)) for item in everywhere):
        return {}
    largest, *others = sorted([*levels[0].items()][:_MAX_RIVALS], key=lambda part: -len(_weights(part[1])))
    fitting = [pair for other in others if fits(_together(pair := dict((largest, other))))]
    return fitting[0] if len(fitting) == 1 else {}


def _together(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{path}.{name}": value for path, item in parts.items() for name, value in _weights(item).items()}


def _inside(found: dict[str, Any], entry: str) -> tuple[str, str]:
    """The one set of weights that has names behind ``entry``, with or without its own path in front, and the prefix."""
    places = []
    for path, item in [*found.items()][:_MAX_RIVALS]:
        inner = _in_names(entry.removeprefix(f"{path}.") if path else entry, _names(item))
        if any(name.startswith(f"{inner}.") for name in _names(item)):
            places.append((path, inner))
    if len(places) == 1:
        return places[0]
    named = [path for path in found if path]
    remedy = f"--weights takes one of {listing(named)}" if named else "it has one set of weights: leave --weights out"
    raise BadInputError(f"it has no weights {printable(entry)!r}; {remedy}")


def _names(holder: Any) -> set[str]:
    """The names of the weights in it; none where they could not be read."""
    return set(strip_wrappers(_weights(holder))[0])


def _weights(holder: Any) -> dict[str, Any]:
    """The weights in it by name; none where they could not be read."""
    try:
        return (_module_weights if isinstance(holder, Opaque) else _split)(holder)[0]
    except BadInputError:
        return {}


def _key(key: Any) -> str:
    plain = key.value if isinstance(key, Number) else key
    return printable(str(plain), 40) if isinstance(plain, (str, int, float)) else "(names that are no text)"


def _describe(top: Any) -> str:
    if isinstance(top, dict):
        if not top:
            return "its top is an empty dict"
        held = [*top.values(), *chain.from_iterable(each.values() for each in top.values() if isinstance(each, dict))]
        arrays = any(isinstance(each, Opaque) and each.name.startswith("numpy.") for each in held)
        told = " (NumPy arrays; torch.from_numpy makes tensors of them)" if arrays else ""
        return f"its top is a dict with the entries {listing(list(dict.fromkeys(map(_key, top))))}{told}"
    if isinstance(top, Opaque):
        return f"its top is an object made by {printable(top.name)}"
    return "its top is " + ("a single tensor" if isinstance(top, TensorRecord) else f"a {type(top).__name__}")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorRecord) or (
        isinstance(value, Opaque) and value.name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_"))
    )


def _is_state_dict(value: Any) -> bool:
    """Tensors by name; numbers, texts and the like may stand beside them, and anything beside names of layers."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return False
    tensors = [key for key, item in value.items() if _is_tensor(item)]
    aside = (bool, int, float, str, bytes, NoneType)
    plain = all(_is_tensor(item) or isinstance(item, aside) or _QUANTISED.search(key) for key, item in value.items())
    return bool(tensors) and (plain or sum("." in key for key in tensors) > 1)


def _split(holder: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tensors, and the printable names of what is none; a quantised model is refused."""
    packed = [printable(name) for name in holder if _QUANTISED.search(name)]
    if packed:
        raise BadInputError(f"a quantised model, by its entries {listing(packed)}; {_FLOAT}")
    tensors = {
        name: item
        for name, item in holder.items()  # what code makes under the name of a layer's tensor cannot be read
        if _is_tensor(item) or (isinstance(item, Opaque) and "." in name and not name.endswith(_EXTRA))
    }
    return tensors, [printable(name) for name in holder if name not in tensors]


def _is_module(value: Any) -> bool:
    return (
        isinstance(value, Opaque)
        and isinstance(value.state, dict)
        and all(isinstance(value.state.get(part), dict) for part in ("_parameters", "_buffers", "_modules"))
        and isinstance(value.state.get("_non_persistent_buffers_set", []), list)
    )


def _module_weights(module: Any) -> tuple[dict[str, Any], list[str]]:
    """What ``state_dict()`` of the module would have returned, and a remark on attributes that may normalise."""
    weights: dict[str, Any] = {}
    statistics: list[str] = []
    queue: list[tuple[str, Any]] = [("", module)]
    letters = 0  # of all names: a module that holds itself, or one thousand times the same, would never end
    for prefix, part in queue:
        if not _is_module(part):
            raise BadInputError(f"its module {printable(prefix)} is not a plain torch module; {_RESAVE}")
        if "quantized" in part.name.split("."):
            raise BadInputError(f"a quantised model, by its {printable(part.name)} {printable(prefix)}; {_FLOAT}")
        state = part.state
        hidden = state.get("_non_persistent_buffers_set", [])
        names = [str(name) for kind in ("_parameters", "_buffers", "_modules") for name in state[kind]]
        letters += 1 + len(hidden) + len(state) + sum(len(prefix) + len(name) + 1 for name in names)
        if letters > _MAX_LETTERS:
            raise BadInputError(f"its module contains itself or far too many others; {_RESAVE}")
        hidden = {name for name in hidden if isinstance(name, str)}
        plain = [name for name in (*state, *sorted(hidden)) if isinstance(name, str) and _STATISTIC.fullmatch(name)]
        statistics += [printable(prefix + name) for name in plain]
        kept = {name: value for name, value in state["_buffers"].items() if name not in hidden}
        for name, value in (*state["_parameters"].items(), *kept.items()):
            if value is not None:
                weights[f"{prefix}{name}"] = value
        queue += [(f"{prefix}{name}.", child) for name, child in state["_modules"].items() if child is not None]
    told = (
        f"its attributes {listing(statistics)} are no weights and were not read; if images are normalised by them, and "
        "not by --arch, say it with --profile"
    )
    return weights, [told] if statistics else []
