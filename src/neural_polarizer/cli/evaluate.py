"""``polarizer evaluate``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from neural_polarizer.cli import options
from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.output import bars, console, right, show_warnings
from neural_polarizer.devices import choose_device
from neural_polarizer.files import write_json
from neural_polarizer.metrics import Metrics
from neural_polarizer.metrics import evaluate as measure
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.plausibility.examine import DOUBTFUL, examine


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of attack or purify.")]
    test: Annotated[str, typer.Option(help="Test images, a data spec.")]
    triggered: Annotated[
        Path | None,
        typer.Option(
            help="Images with the trigger, for ASR and RA; triggered.parquet, or a folder with --poison-label."
        ),
    ] = None
    json: Annotated[
        Path | None, typer.Option(help="Write the figures to this file, too.", callback=options.json_file)
    ] = None
    reading: options.Reading
    classes: options.Classes = None
    poison_label: options.PoisonLabelText = None
    device: options.DeviceName = None
    quiet: options.Quiet = False


@from_options(_Options)
def evaluate(asked: _Options) -> None:
    """Measure ACC, and ASR and RA where there is a triggered set."""
    loaded = asked.reading.model(asked.model)
    evidence = options.read_evidence(
        asked.test,
        options.triggered_path(asked.model, asked.triggered),
        size=asked.reading.image_size(loaded),
        num_classes=loaded.record.num_classes,
        classes=options.classes_of(loaded, asked.classes),
        poison_label=options.parse_label(asked.poison_label, "--poison-label"),
    )
    if evidence.test is not None:
        check_takes(loaded, evidence.test.image_size)
    place = choose_device(asked.device)
    with bars(quiet=asked.quiet) as progress:
        metrics = measure(loaded.model, evidence.test, evidence.triggered, device=place, progress=progress)
    remarks = (*loaded.findings, *evidence.notes)
    if evidence.test is not None and metrics.acc is not None and metrics.acc < DOUBTFUL:
        remark = examine(loaded.model, evidence.test, device=place).remark
        remarks = (*remarks, *(() if remark is None else (remark,)))
    if asked.json is not None:
        write_json(asked.json, {**asdict(metrics), "model": str(loaded.path), "model_sha256": loaded.sha256})
    if not asked.quiet:
        console.print(_table(metrics))
        show_warnings(loaded.threats, remarks)


def _table(metrics: Metrics) -> Table:
    table = Table(*right("ACC", "ASR", "RA", "test images", "triggered images"))
    rates = (metrics.acc, metrics.asr, metrics.ra)
    shown = ["-" if rate is None else f"{100 * rate:.2f} %" for rate in rates]
    table.add_row(*shown, str(metrics.n_test), str(metrics.n_triggered))
    return table
