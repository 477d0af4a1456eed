"""``polarizer export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.options import Quiet, Reading, parse_size
from neural_polarizer.cli.output import show_warnings, show_whole
from neural_polarizer.errors import BadInputError
from neural_polarizer.exporting.export import TOLERANCE, Exported, export_model, format_of
from neural_polarizer.exporting.formats import FORMATS, FormatName
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.runs.export import comparison_images, is_noted, note_export


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: Annotated[Path, typer.Argument(help="What purify or attack wrote, or a model file.")]
    to: Annotated[FormatName, typer.Option(help="safetensors, state-dict (weights), onnx, pt2 (graph).")]
    out: Annotated[Path | None, typer.Option(help="The file to write; default: exported.* beside the model.")] = None
    images: Annotated[
        str | None,
        typer.Option(help="Images to compare the logits on, a data spec; default: the run's clean ones, or random."),
    ] = None
    tolerance: Annotated[float, typer.Option(help="By how much a logit may differ.", min=0.0)] = TOLERANCE
    reading: Reading
    quiet: Quiet = False


@from_options(_Options)
def export(asked: _Options) -> None:
    """Write a model for use elsewhere, with the polarizer folded into other layers; check what was written."""
    if asked.out is not None:
        format_of(asked.out, asked.to)  # wrong usage is told before anything is read
    loaded = asked.reading.model(asked.model)
    path = asked.out or loaded.path.with_name(f"exported{FORMATS[asked.to].suffixes[0]}")
    if path.resolve() == loaded.path.resolve():
        raise BadInputError(f"{path}: is the model itself; choose another --out")
    if asked.out is None and path.exists() and not is_noted(path):
        raise BadInputError(f"{path}: is there already; to write over it, name it with --out")
    shown = comparison_images(loaded, asked.images, parse_size(asked.reading.size))
    check_takes(loaded, shown.image_size)
    done = export_model(loaded.model, path, asked.to, shown, loaded.record, tolerance=asked.tolerance)
    note_export(done, loaded)
    if not asked.quiet:
        for line in _lines(done, shown.source):
            show_whole(line)
        show_warnings(loaded.threats, loaded.findings)


def _lines(done: Exported, source: str) -> list[str]:
    lines = [] if done.layer is None else [f"polarizer: {done.layer}"]
    beside = "" if done.beside is None else f", {done.beside}"
    lines.append(f"written: {done.path}{beside}")
    if done.obstacle is not None:
        lines.append(f"note: the original architecture does not load it, as {done.obstacle}")
    compared = f"{done.n_images} image{'' if done.n_images == 1 else 's'} ({source})"
    lines.append(
        f"checked: read back and run on {compared}: logits differ by at most {done.deviation:.2g}, where the largest "
        f"is {done.largest_logit:.3g}"
    )
    return lines
