"""Where the commands print to, and what several of them print."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.style import Style
from rich.table import Column
from rich.text import Text

from neural_polarizer.progress import Progress, silent

console = Console(emoji=False)  # or "digits:train: ..." would show a train
errors = Console(stderr=True, emoji=False)


def right(*heads: str) -> list[Column]:
    """Columns of a table with their texts on the right, as numbers have them."""
    return [Column(head, justify="right") for head in heads]


def show(text: str) -> None:
    """Print a line as it is, wrapped at the terminal's width."""
    console.print(text, markup=False, highlight=False)


def show_whole(text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_warnings(warnings: Iterable[str], notes: Iterable[str] = ()) -> None:
    """Print what limits a result, and what else its reader must know; before the result itself."""
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))
    for note in notes:
        show(f"note: {note}")


def show_report(path: Path, label: str = "report") -> None:
    """Print where a page is, as a link (OSC 8) where the terminal takes links."""
    link = Text(str(path), Style(link=path.resolve().as_uri() if console.is_terminal else None))
    console.print(Text.assemble(f"{label}: ", link), soft_wrap=True)


@contextmanager
def bars(*, quiet: bool) -> Iterator[Progress]:
    """A ``Progress`` that draws one bar a phase, with the time left, while the block runs; silent if ``quiet``."""
    if quiet:
        yield silent
        return
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as display:
        tasks: dict[str, TaskID] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks or display.tasks[tasks[phase]].finished:
                tasks[phase] = display.add_task(phase, total=total)
            display.update(tasks[phase], completed=done)

        yield show
