"""The command ``polarizer``: parse, call, print, and turn errors into one line and an exit code."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from threading import current_thread, main_thread
from types import FrameType
from typing import Annotated, Any

import typer

from neural_polarizer import __version__
from neural_polarizer.cli.attack import attack
from neural_polarizer.cli.audit import audit
from neural_polarizer.cli.bench import COMMANDS as BENCH_COMMANDS
from neural_polarizer.cli.command import FULL, BriefCommand
from neural_polarizer.cli.demo import demo
from neural_polarizer.cli.evaluate import evaluate
from neural_polarizer.cli.export import export
from neural_polarizer.cli.output import errors
from neural_polarizer.cli.purify import purify
from neural_polarizer.cli.sites import sites
from neural_polarizer.cli.verify import verify
from neural_polarizer.devices import keep_freed_memory, out_of_memory
from neural_polarizer.errors import BadInputError, NeuralPolarizerError
from neural_polarizer.files import DISK_FULL, at_home

FAULT, INTERRUPTED, TERMINATED = 4, 130, 143
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)  # what is wrong with a path itself


class _StoppedError(NeuralPolarizerError):
    """Ctrl-C or SIGTERM, in a form that typer does not turn into a silent exit."""

    def __init__(self, how: str, exit_code: int) -> None:
        super().__init__(f"{how}; start the same command again to go on")
        self.exit_code = exit_code


class _TerminationInterrupt(KeyboardInterrupt):
    """What SIGTERM raises: no code between it and the command takes it for an error of its own."""


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except _TerminationInterrupt:
            raise _StoppedError("terminated", TERMINATED) from None
        except KeyboardInterrupt:
            raise _StoppedError("interrupted", INTERRUPTED) from None

    return run


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Purify an image classifier that may carry a backdoor, with the evidence.",
)
for command in (demo, purify, audit, evaluate, export, verify, sites, attack):  # the most used ones first
    app.command(cls=BriefCommand)(_interruptible(command))
bench = typer.Typer(no_args_is_help=True, help="Tables and figures: run suites of cells, look at them, publish them.")
for name, part in BENCH_COMMANDS.items():
    bench.command(name, cls=BriefCommand)(_interruptible(part))
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
    """Run the command line and leave with its exit code (docs/reference/exit-codes.md lists them)."""
    keep_freed_memory()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _orderly_termination():
            app([_expanded(word) for word in given], standalone_mode=True, obj=given)  # the words as they were given
    except NeuralPolarizerError as error:
        _fail(str(error), error.exit_code)
    except (MemoryError, OSError, RuntimeError) as error:
        if out_of_memory(error):
            _fail("out of memory; try a smaller --batch-size or fewer images", FAULT)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            _leave_output()
            _fail("cannot write the output: the disk is full; make room and start the same command again", FAULT)
        if not isinstance(error, OSError) or error.errno not in _UNUSABLE:
            raise
        _fail(f"{error.filename}: cannot be used: {error.strerror}; choose another path", BadInputError.exit_code)


def _leave_output() -> None:
    """Let what could not be printed go, or Python would try again at its end and complain, with a code of its own."""
    with suppress(OSError):  # where standard output is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _expanded(word: str) -> str:
    """A word of the command line as the commands understand it: ``~`` is the home folder, after ``--option=``, too."""
    if word == FULL:
        return "--help"
    option, equals, value = word.partition("=")
    return f"{option}={at_home(value)}" if equals and option.startswith("--") else at_home(word)


@contextmanager
def _orderly_termination() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with its temporary files removed."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise _TerminationInterrupt

    if current_thread() is not main_thread():  # where no signal arrives
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> None:
    errors.print(f"error: {' '.join(message.split())}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
