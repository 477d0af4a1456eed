"""A command whose options are the fields of one dataclass: declared once, handed on as one value."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def from_options(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Turn a function of one value of the dataclass ``options`` into one of its fields, as Typer reads commands.

    The annotations of the fields say what Typer shows; a field of type ``typer.Context`` gets the context. A field that
    is a dataclass itself stands for the fields of that; a name in both is one option, where it comes first.
    """
    parameters = _parameters(options)

    def spread(command: Callable[[Options], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            command(_made(options, given))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {name: each.annotation for name, each in parameters.items()}
        run.__signature__ = Signature(list(parameters.values()))  # type: ignore[attr-defined]
        return run

    return spread


def _parameters(options: Any) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        hint = hints[field.name]
        default = Parameter.empty if field.default is MISSING else field.default
        one = {field.name: Parameter(field.name, Parameter.KEYWORD_ONLY, annotation=hint, default=default)}
        found |= _parameters(hint) if is_dataclass(hint) else one
    return found


def _made(options: Any, given: Mapping[str, Any]) -> Any:
    hints = get_type_hints(options)
    names = [field.name for field in fields(options)]
    return options(**{name: _made(hints[name], given) if is_dataclass(hints[name]) else given[name] for name in names})
