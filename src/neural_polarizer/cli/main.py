"""The command ``polarizer``: parse, call, print, and turn errors into one line and an exit code."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from neural_polarizer import __version__
from neural_polarizer.cli.attack import attack
from neural_polarizer.cli.bench import COMMANDS as BENCH_COMMANDS
from neural_polarizer.cli.demo import demo
from neural_polarizer.cli.evaluate import evaluate
from neural_polarizer.cli.export import export
from neural_polarizer.cli.output import errors
from neural_polarizer.cli.purify import purify
from neural_polarizer.cli.sites import sites
from neural_polarizer.devices import keep_freed_memory
from neural_polarizer.errors import NeuralPolarizerError

FAULT, INTERRUPTED = 4, 130


class _InterruptError(NeuralPolarizerError):
    """Ctrl-C, in a form that typer does not turn into a silent exit."""

    exit_code = INTERRUPTED


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except KeyboardInterrupt:
            raise _InterruptError("interrupted; start the same command again to go on") from None

    return run


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Purify an image classifier that may carry a backdoor, with the evidence.",
)
for command in (attack, sites, purify, evaluate, export, demo):
    app.command()(_interruptible(command))
bench = typer.Typer(no_args_is_help=True, help="Tables and figures: run suites of cells, look at them, publish them.")
for name, part in BENCH_COMMANDS.items():
    bench.command(name)(_interruptible(part))
app.add_typer(bench, name="bench")


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"neural-polarizer {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Purify an image classifier that may carry a backdoor, with the evidence."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code (docs/cli.md lists them)."""
    keep_freed_memory()
    try:
        app(arguments, standalone_mode=True)
    except NeuralPolarizerError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("out of memory; try a smaller --batch-size or fewer images", FAULT)


def _fail(message: str, code: int) -> None:
    errors.print(f"error: {' '.join(message.split())}", markup=False, emoji=False, highlight=False, soft_wrap=True)
    sys.exit(code)
