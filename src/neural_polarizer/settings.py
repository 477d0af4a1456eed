"""What frozen settings have in common: their checks, and copies with other values."""

import difflib
import importlib
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from neural_polarizer.errors import BadInputError


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a ``value`` that is not one of ``choices``, naming the nearest one."""
    options = [str(choice) for choice in choices]
    if value in options:
        return
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(options)}"
    raise BadInputError(f"{name} cannot be {value!r}: {hint}")


def plain(value: Any) -> Any:
    """A whole number of NumPy or torch as Python's own, which records can hold; anything else as it is."""
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def check_literals(settings: Any) -> None:
    """Refuse text in a field of the dataclass ``settings`` whose type allows certain words only."""
    for name, hint in get_type_hints(type(settings)).items():
        words = _words(hint)
        value = getattr(settings, name)
        if words and isinstance(value, str):
            check_choice(name, value, words)


def check_values(settings: Any) -> None:
    """Refuse values of another type than their field's, and NaN and infinite numbers; inner dataclasses, too."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            check_values(value)
            continue
        numbers = [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, float)]
        if not _fits(value, hints[field.name]) or not all(map(math.isfinite, numbers)):
            raise BadInputError(f"{field.name} of {type(settings).__name__} cannot be {value!r}")


def _words(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) for word in _words(part))


def told(settings: Any) -> Any:
    """A dataclass of settings as a dictionary, as ``asdict`` has it, but without *later* fields at their default.

    A field that came later than files and keys made of these settings is marked so (``metadata={"later": True}``): what
    does not use it keeps its old key.
    """
    if isinstance(settings, (tuple, list)):
        return type(settings)(map(told, settings))
    if not is_dataclass(settings):
        return settings
    values = {field: getattr(settings, field.name) for field in fields(settings)}
    return {
        field.name: told(value)
        for field, value in values.items()
        if not (field.metadata.get("later") and value == field.default)
    }


def setting_names(settings: Any) -> list[str]:
    """The fields of a dataclass, those of dataclasses in them included, as in ``schedule.epochs``."""
    found = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        inner = setting_names(value) if is_dataclass(value) else []
        found += [f"{field.name}.{name}" for name in inner] or [field.name]
    return found


def places(settings: Any, name: str) -> list[str]:
    """All settings that end in ``name``: ``epochs`` may be that of the method or that of its schedule."""
    return [place for place in setting_names(settings) if place.rpartition(".")[2] == name]


def changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a frozen dataclass with other values; names are those of ``setting_names``, or of whole fields.

    A dictionary for a field with settings of its own changes those that it names: ``{"schedule": {"epochs": 3}}``.

    Raises:
        BadInputError: there is no such setting, or the value is of another type.
    """
    kind = type(settings)
    own: dict[str, Any] = {}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        check_choice(f"a setting of {kind.__name__}", head, [field.name for field in fields(settings)])
        if dot:
            inner = own.get(head, getattr(settings, head))
            if not is_dataclass(inner):
                raise BadInputError(f"{head} of {kind.__name__} has no settings of its own, such as {rest!r}")
            own[head] = changed(inner, {rest: value})
            continue
        if isinstance(value, Mapping) and is_dataclass(getattr(settings, head)):
            own[head] = changed(own.get(head, getattr(settings, head)), value)
            continue
        own[head] = tuple(map(plain, value)) if isinstance(value, list) else plain(value)
        hint = get_type_hints(kind)[head]
        if not _fits(own[head], hint):
            raise BadInputError(f"{name} cannot be {value!r}: expected {_plainly(hint)}")
    return replace(settings, **own)


def _plainly(hint: Any) -> str:
    """A type in the words of somebody who writes a value of it."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_plainly(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(repr(option) for option in get_args(hint))
    if hint is NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a simple type; other types are left to the settings' own checks."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        wanted = options[:1] * len(value) if isinstance(value, tuple) and options[-1] is Ellipsis else options
        return (
            isinstance(value, tuple)
            and len(value) == len(wanted)
            and all(_fits(one, option) for one, option in zip(value, wanted, strict=True))
        )
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, NoneType) or is_dataclass(hint) else True


def class_named(what: str, name: str, known: Mapping[str, type]) -> Any:
    """What ``known`` has under ``name``, or what stands at a dotted path such as ``my_lab.mine:Mine``.

    ``what`` is the word for it in messages, such as "attack".

    Raises:
        BadInputError: neither is there; whether it is a fitting class is the caller's to say.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise BadInputError(f"unknown {what} {name!r}: choose one of {', '.join(known)}, or give MODULE:CLASS")
    if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
        meant = f"{PurePath(module.lstrip('.')).stem}:{attribute}"
        raise BadInputError(
            f"cannot load the {what} {name!r}: give MODULE:CLASS, which Python can import, not a file (such as {meant})"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInputError(f"cannot load the {what} {name!r}: {error}") from None
