"""Where the commands print to."""

from rich.console import Console
from rich.table import Table

console = Console(emoji=False)  # or "digits:train: ..." would show a train
errors = Console(stderr=True, emoji=False)


def show_table(table: Table) -> None:
    """Print a table on standard output."""
    console.print(table)
