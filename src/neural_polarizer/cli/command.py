"""Commands: options that are the fields of one dataclass, handed on as one value, and help on one screen."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature
from typing import Any, TypeVar, get_type_hints

from typer.core import TyperCommand

Options = TypeVar("Options")
FULL = "--help-all"
_LEFT = 30
_WIDEST = 110


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


class BriefCommand(TyperCommand):
    """A command whose ``--help`` has one line an option, the first sentence of its text; ``--help-all`` has all."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; whole texts where the command line asked for them."""
        if FULL in (ctx.find_root().obj or ()):
            super().format_help(ctx, formatter)
            return
        width = min(shutil.get_terminal_size((_WIDEST, 50)).columns, _WIDEST)
        params = list(self.get_params(ctx))
        arguments = [each for each in params if each.param_type_name == "argument"]
        options = [each for each in params if each.param_type_name == "option"]
        names = " ".join(_value(each) if each.required else f"[{_value(each)}]" for each in arguments)
        lines = [f"Usage: {ctx.command_path} {names}{' ' if names else ''}[OPTIONS]", "", first_sentence(self.help), ""]
        lines += [_line(_value(each), each, width) for each in arguments]
        lines += [_line(_names(each), each, width) for each in options]
        lines += ["", f"{ctx.command_path} {FULL} says more about each."]
        formatter.write("\n".join(lines) + "\n")


def first_sentence(text: str | None) -> str:
    """The text up to its first full stop or semicolon."""
    whole = " ".join((text or "").split())
    ends = [place for sign in (". ", "; ") if (place := whole.find(sign)) >= 0]
    return whole[: min(ends)] + "." if ends else whole


def _names(option: Any) -> str:
    value = "" if option.is_flag or not option.expose_value else f" {_value(option)}"
    return "/".join([option.opts[-1], *option.secondary_opts]) + value


def _value(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _line(name: str, param: Any, width: int) -> str:
    text = first_sentence(getattr(param, "help", None))
    default = param.default
    if param.required:
        text = f"(required) {text}"
    elif isinstance(default, str | int | float) and not isinstance(default, bool) and "efault" not in text:
        text += f" Default: {default}."
    line = f"  {name:<{_LEFT}}  {text}"
    return line if len(line) <= width else line[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
