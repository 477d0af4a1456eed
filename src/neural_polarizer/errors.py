"""The exceptions that callers may catch, each with the exit code it has on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager


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
