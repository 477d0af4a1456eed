"""Checks that frozen settings have in common."""

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from neural_polarizer.errors import BadInputError


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a ``value`` that is not one of ``choices``, naming the nearest one.

    Raises:
        BadInputError: it is not.
    """
    options = [str(choice) for choice in choices]
    if value in options:
        return
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(options)}"
    raise BadInputError(f"{name} cannot be {value!r}: {hint}")


def check_literals(settings: Any) -> None:
    """Refuse text in a field of the dataclass ``settings`` whose type allows certain words only.

    Raises:
        BadInputError: a field holds another word.
    """
    for name, hint in get_type_hints(type(settings)).items():
        words = _words(hint)
        value = getattr(settings, name)
        if words and isinstance(value, str):
            check_choice(name, value, words)


def _words(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) for word in _words(part))
