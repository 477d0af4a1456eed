"""A command whose options are the fields of one dataclass: declared once, handed on as one value."""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from inspect import Parameter, Signature
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def from_options(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Turn a function of one value of the dataclass ``options`` into one of its fields, as Typer reads commands.

    The annotations of the fields say what Typer shows; a field of type ``typer.Context`` gets the context.
    """
    hints = get_type_hints(options, include_extras=True)
    told = fields(options)  # type: ignore[arg-type]

    def spread(command: Callable[[Options], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            command(options(**given))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {each.name: hints[each.name] for each in told}
        run.__signature__ = Signature(  # type: ignore[attr-defined]
            [
                Parameter(each.name, Parameter.KEYWORD_ONLY, annotation=hints[each.name], default=_default(each))
                for each in told
            ]
        )
        return run

    return spread


def _default(field: Field[Any]) -> Any:
    return Parameter.empty if field.default is MISSING else field.default
