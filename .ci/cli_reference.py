"""Writes the reference of the command line from the options themselves.

python .ci/cli_reference.py docs/reference/cli.md
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from neural_polarizer.cli.main import app

HEAD = """# Command line

This page is made from the options by `.ci/cli_reference.py`. `polarizer COMMAND --help` shows the first sentence of
each, `--help-all` everything. Options that several commands share stand at the end.
"""


TABLE = "| option | default | meaning |\n|---|---|---|"
_MANY = 2
"""An option of more commands than these is told once, at the end of the page."""


def page() -> str:
    """The whole page."""
    found = list(_commands(typer.main.get_command(app), "polarizer"))
    count = Counter(_row(option) for _, command in found for option in _options(command))
    shared = {row for row, times in count.items() if times > _MANY}
    sections = [_section(command, path, shared) for path, command in found]
    rows = [row for row in count if row in shared]
    together = ["## Options of several commands\n", TABLE, *rows, ""]
    return "\n".join([HEAD, *(line for section in sections for line in section), *together])


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield path, command
    for name, each in subcommands.items():
        yield from _commands(each, f"{path} {name}")


def _options(command: Any) -> list[Any]:
    return [each for each in command.params if each.param_type_name == "option" and each.name != "help"]


def _names(param: Any) -> str:
    options = [*param.opts, *param.secondary_opts]
    return param.name.upper() if param.param_type_name == "argument" else ", ".join(options)


def _row(param: Any) -> str:
    return f"| `{_names(param)}` | {_default(param)} | {_cell(param.help)} |"


def _section(command: Any, path: str, shared: set[str]) -> Iterator[str]:
    named = [each for each in command.params if each.param_type_name == "argument"]
    places = [each.name.upper() if each.required else f"[{each.name.upper()}]" for each in named]
    text = "\n".join(line.strip() for line in (command.help or "").splitlines())
    yield f"## {path}\n\n{text}\n\n```text\n{' '.join([path, *places])} [OPTIONS]\n```\n"
    own = [*(_row(each) for each in named), *(_row(each) for each in _options(command) if _row(each) not in shared)]
    yield from [TABLE, *own] if own else []
    also = [f"`{_names(each)}`" for each in _options(command) if _row(each) in shared]
    yield f"\nAlso: {', '.join(also)}.\n" if also else ""


def _default(param: Any) -> str:
    if param.required:
        return "required"
    plain = isinstance(param.default, str | int | float | Path) and not isinstance(param.default, bool)
    return f"`{param.default}`" if plain else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
