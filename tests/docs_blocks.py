"""The blocks of README and site that can be run, and a comparison of what they print with what the page says."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e-?\d+)?")
SETUP = ("make ", "pip ", "git ", "cd ", "python -m venv")
"""What only makes an environment."""


@dataclass(frozen=True)
class Step:
    """A command with the output that the page shows, or a Python block; ``...`` in an output stands for any lines."""

    kind: str
    text: str
    output: str = ""


def steps_of(page: Path) -> list[Step]:
    """The blocks that start with a prompt or an import, in their order."""
    return [
        step for language, block in _FENCE.findall(page.read_text(encoding="utf-8")) for step in _steps(language, block)
    ]


def _steps(language: str, block: str) -> Iterator[Step]:
    if language == "python" and block.startswith(("import ", "from ")):
        yield Step("python", block)
    if block.startswith("$ "):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield Step("shell", command, output)


def run_steps(steps: list[Step], folder: Path) -> None:
    """Run them in ``folder``, the Python blocks as one program, after all commands that stand before them.

    Raises:
        AssertionError: a command failed, or printed something else than the page says, numbers aside.
    """
    program = ""
    for step in steps:
        if step.kind == "python":
            program += step.text
            continue
        if step.text.startswith(SETUP):
            continue
        words = shlex.split(step.text, comments=True)
        if words[0] == "polarizer":
            words[:1] = [sys.executable, "-c", "from neural_polarizer.cli.main import main; main()"]
        if words[0] == "python":
            words[0] = sys.executable
        missing = difference(step.output, _ran(words, folder))
        assert missing is None, f"$ {step.text}\n{missing}"
    if program:
        _ran([sys.executable, "-c", program], folder)


def _ran(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"{words[-1][:200]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def difference(shown: str, printed: str) -> str | None:
    """The first passage that the page shows and that was not printed at its place; None if all were.

    ``...`` stands for anything. Numbers count as equal, since other hardware gives other ones; so do other widths of
    tables and lines that break elsewhere.
    """
    have, place = _words(printed), 0
    for passage in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE):
        wanted = _words(passage)
        starts = (at for at in range(place, len(have) - len(wanted) + 1) if have[at : at + len(wanted)] == wanted)
        found = next(starts, None)
        if found is None:
            return f"the page shows\n{passage.strip()}\nbut the command printed:\n{printed}"
        place = found + len(wanted)
    return None


def _words(text: str) -> list[str]:
    return re.sub(r"[─━]+", "─", _NUMBER.sub("#", text)).split()
