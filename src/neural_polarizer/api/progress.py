"""What a user is told while something runs: a line on the terminal, and a logger."""

import logging
import sys
import warnings
from collections.abc import Iterable
from typing import TextIO

from neural_polarizer.errors import NeuralPolarizerWarning
from neural_polarizer.progress import Progress, silent

LOG = logging.getLogger("neural_polarizer")
"""Says at level INFO which phase begins; Python's own settings decide whether that is shown."""


def told(progress: bool | Progress) -> Progress:
    """What is called for each step: the log, and the user's function, a line on stderr (True) or nothing (False)."""
    show = line(sys.stderr) if progress is True else progress if callable(progress) else silent
    latest = ""

    def note(phase: str, done: int, total: int) -> None:
        nonlocal latest
        if phase != latest:
            latest = phase
            LOG.info("%s: %d steps", phase, total)
        show(phase, done, total)

    return note


def warn(notes: Iterable[str]) -> None:
    """Warn the caller of the public function that calls this, which is within ``plain_torch``."""
    for each in notes:
        warnings.warn(each, NeuralPolarizerWarning, stacklevel=4)


def line(stream: TextIO) -> Progress:
    """One line that is written over: the phase, and how much of it is done, in percent."""
    shown = ""

    def show(phase: str, done: int, total: int) -> None:
        nonlocal shown
        text = f"{phase} {100 * done // max(1, total)} %"
        if text != shown:
            stream.write("\r" + text.ljust(len(shown)) + ("\n" if done >= total else ""))
            stream.flush()
            shown = "" if done >= total else text

    return show
