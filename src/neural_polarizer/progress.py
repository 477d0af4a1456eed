"""How a long computation tells where it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(phase, steps done, steps in all)``; the library itself never prints."""


def silent(phase: str, done: int, total: int) -> None:
    """The default ``Progress``: nothing."""
