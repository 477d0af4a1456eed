"""Where the commands print to."""

from rich.console import Console
from rich.table import Table

console = Console()
errors = Console(stderr=True)


def show_table(table: Table) -> None:
    """Print a table on standard output."""
    console.print(table)
