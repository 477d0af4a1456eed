"""A progress bar with the time left, for the library's ``Progress`` calls."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from neural_polarizer.train import Progress, silent


@contextmanager
def bars(console: Console, *, quiet: bool) -> Iterator[Progress]:
    """A ``Progress`` that draws one bar a phase on ``console`` while the block runs; silent if ``quiet``."""
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
