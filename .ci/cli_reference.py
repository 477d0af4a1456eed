"""Writes the reference of the command line from the options themselves.

python .ci/cli_reference.py docs/reference/cli.md
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from neural_polarizer.cli.main import app

HEAD = """# Command line

This page is made from the options by `.ci/cli_reference.py`. `polarizer COMMAND --help` shows the first sentence of each,
`--help-all` everything.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_commands(typer.main.get_command(app), "polarizer")])


def _commands(command: Any, path: str) -> Iterator[str]:
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield from _section(command, path)
    for name, each in subcommands.items():
        yield from _commands(each, f"{path} {name}")


def _section(command: Any, path: str) -> Iterator[str]:
    named = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    places = [each.name.upper() if each.required else f"[{each.name.upper()}]" for each in named]
    text = "\n".join(line.strip() for line in (command.help or "").splitlines())
    yield f"## {path}\n\n{text}\n\n```text\n{' '.join([path, *places])} [OPTIONS]\n```\n"
    yield "| option | default | meaning |\n|---|---|---|"
    for each in (*named, *options):
        if each.name != "help":
            names = each.name.upper() if each in named else ", ".join((*each.opts, *each.secondary_opts))
            yield f"| `{names}` | {_default(each)} | {_cell(each.help)} |"
    yield ""


def _default(param: Any) -> str:
    if param.required:
        return "required"
    plain = isinstance(param.default, str | int | float | Path) and not isinstance(param.default, bool)
    return f"`{param.default}`" if plain else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
