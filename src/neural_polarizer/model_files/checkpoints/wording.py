"""Text from an untrusted file, made safe to show."""

from collections.abc import Collection

_LISTED = 10


def printable(text: str, limit: int = 120) -> str:
    """``text`` on one line, with control characters and escape codes spelled out, and cut to ``limit``."""
    shown = repr(text[:limit])[1:-1]  # cut first: repr of a 16 MB name is itself an attack
    return shown + "..." if len(text) > limit else shown


def listing(items: Collection[str]) -> str:
    """The first ten ``items``, and how many more there are."""
    shown = ", ".join(list(items)[:_LISTED])
    return shown + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")
