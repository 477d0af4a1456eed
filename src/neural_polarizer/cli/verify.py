"""``polarizer verify``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from neural_polarizer.bench.store import RECORDS
from neural_polarizer.bench.verify import verify_results
from neural_polarizer.cli.options import DeviceName, Quiet, network_named
from neural_polarizer.cli.output import bars, console, show_whole
from neural_polarizer.devices import choose_device
from neural_polarizer.report.values import visible
from neural_polarizer.runs.verify import TOLERANCE, Given, Measuring, verify_run
from neural_polarizer.runs.verify_checks import Check

_HOLDS = {True: "yes", False: "NO", None: "not checked"}
_SAID = {True: "note", False: "does not hold", None: "not checked"}


def verify(
    folder: Annotated[Path, typer.Argument(help="Of an attack, a purification or a benchmark.", metavar="DIR")],
    test: Annotated[
        str | None, typer.Option(help="Test images, a data spec; default: those that the record names.")
    ] = None,
    clean: Annotated[
        str | None, typer.Option(help="Where the clean images came from; for an attack, the training images.")
    ] = None,
    triggered: Annotated[Path | None, typer.Option(help="triggered.parquet, for a purification.")] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="Your code that builds the network; FILE.py:NAME or PACKAGE.MODULE:NAME, it is run."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="By how much a rate in [0, 1] may differ.", min=0.0, max=1.0)
    ] = TOLERANCE,
    device: DeviceName = None,
    quiet: Quiet = False,
) -> None:
    """Check whether a run's files, data and figures are still those of its record; exit code 1 if not."""
    given = Given(clean=clean, test=test, triggered=triggered, architecture=network_named(arch))
    with bars(quiet=quiet) as progress:
        measuring = Measuring(device=choose_device(device), tolerance=tolerance, progress=progress)
        benchmark = (folder / RECORDS).is_dir()
        checks = (verify_results if benchmark else verify_run)(folder, given, measuring)
    if not quiet:
        _show(checks)
    if any(check.holds is False for check in checks):
        raise typer.Exit(1)


def _show(checks: Sequence[Check]) -> None:
    table = Table("what", "recorded", "found", "holds")
    for check in checks:
        cells = (check.what, check.recorded or "-", check.found or "-", _HOLDS[check.holds])
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console.print(table)
    for check in checks:
        if check.remark:
            show_whole(visible(f"{_SAID[check.holds]}: {check.what}: {check.remark}"))
    counts = [sum(check.holds is answer for check in checks) for answer in (True, False, None)]
    show_whole(f"{counts[0]} hold, {counts[1]} do not, {counts[2]} could not be checked")
