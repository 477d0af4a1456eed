"""The peak of this process's memory, for one cell at a time."""

import re
import sys
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Let the peak begin at what is used now, where the system can do so (Linux)."""
    with suppress(OSError):
        _CLEAR.write_text("5")


def peak_memory() -> int | None:
    """The largest resident size since the last reset, in bytes; of the process's whole life where none is possible.

    None where the system does not tell (Windows).
    """
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # no such module on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
