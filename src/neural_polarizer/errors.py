"""The exceptions that callers may catch, with their exit codes, and the words for foreign text in messages."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

AGAIN = "get the file again"


class NeuralPolarizerError(Exception):
    """Root of all errors that this package raises on purpose."""

    exit_code = 1


class BadInputError(NeuralPolarizerError, ValueError):
    """A file, data set, model or setting cannot be used; the message says what, where and what to do."""

    exit_code = 3


class WrongUsageError(BadInputError):
    """An option that makes no sense together with another one."""

    exit_code = 2


class EnvironmentFaultError(NeuralPolarizerError, OSError):
    """The machine failed us: disk full, no permission to write, out of memory."""

    exit_code = 4


class NeuralPolarizerWarning(UserWarning):
    """What the user of a result must know, such as what was assumed, or that a trigger may still work."""


@contextmanager
def needing(extra: str, what: str = "") -> Iterator[None]:
    """Say of an import that fails in the block which ``extra``, such as "parquet", brings the package.

    ``what`` cannot be used without it, such as "parquet files".

    Raises:
        BadInputError: the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "a part of it").partition(".")[0]
        reason = f"{what} cannot be used, as " if what else ""
        raise BadInputError(f"{reason}{package} is not installed: pip install 'neural-polarizer[{extra}]'") from None


def shown(name: object) -> str:
    """A file name or other foreign text, with all that cannot be printed escaped."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str, limit: int = 120) -> str:
    """``text`` as ``shown``, and cut to ``limit``; a name of 16 MB is itself an attack."""
    return shown(text[:limit]) + ("..." if len(text) > limit else "")


def listing(items: Collection[str], most: int = 10) -> str:
    """The first ``items``, and how many more there are."""
    return ", ".join([*items][:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def one_line(error: BaseException) -> str:
    """An error's text on one line of at most 200 characters, without control characters; its kind if it has none."""
    return _flat(str(error)) or type(error).__name__


def cause(error: BaseException, renamed: tuple[str, str] = ("", "")) -> str:
    """The kind and the text of an error of foreign code, on one line; with the second of ``renamed`` for the first."""
    kind, text = type(error).__name__, _flat(str(error).replace(*renamed))
    return f"{kind}: {text}" if text else kind


def _flat(text: str) -> str:
    return shown(" ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())[:200])  # without a terminal's colours


@contextmanager
def refusing(said: str, *kinds: type[BaseException], then: str = "") -> Iterator[None]:
    """Say of an error of these ``kinds`` in the block what it prevents: ``said (its text)then``; ours pass.

    Raises:
        BadInputError: there was one.
    """
    try:
        yield
    except NeuralPolarizerError:
        raise
    except kinds as error:
        raise BadInputError(f"{said} ({one_line(error)}){then}") from None
