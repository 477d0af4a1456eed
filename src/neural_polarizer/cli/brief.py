"""``--help`` on one screen: a line for each option; ``--help-all`` has the whole texts."""

import shutil
from typing import Any

from typer.core import TyperCommand

FULL = "--help-all"
_LEFT = 30
_WIDEST = 110


class BriefCommand(TyperCommand):
    """A command whose help has one line an option, the first sentence of its text."""

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
