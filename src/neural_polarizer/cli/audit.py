"""``polarizer audit``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from neural_polarizer.cli import options
from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.output import bars, show, show_report, show_warnings
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses.stand_ins.looks import cost_of_looks
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.devices import choose_device
from neural_polarizer.files import result_folder
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.report.run.advice import after_audit
from neural_polarizer.report.run.audit_page import judge_audit, purified_part
from neural_polarizer.runs.audit import REPORT, run_audit
from neural_polarizer.settings import changed, setting_names

FailOn = Literal["backdoor", "cannot-say"]
REFUSED = 5
_REFUSED = {None: (), "backdoor": ("backdoor",), "cannot-say": ("backdoor", "cannot say")}


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of attack or transformers.")]
    clean: Annotated[str, typer.Option(help="Clean images, a data spec.")]
    out: options.Out
    purified: Annotated[
        Path | None, typer.Option(help="The same model after a defense; a folder of purify, or a file.")
    ] = None
    n_clean: Annotated[int | None, typer.Option(help="How many of the clean images to use; default: all.", min=1)] = (
        None
    )
    reading: options.Reading
    classes: options.Classes = None
    device: options.DeviceName = None
    seed: options.Seed = 0
    own: options.OwnSettings = None
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            help="Exit code 5 on this verdict; of the purified model if there is one, 'cannot-say' refuses both."
        ),
    ] = None
    quiet: options.Quiet = False


@from_options(_Options)
def audit(asked: _Options) -> None:
    """Look for a backdoor with clean images only; writes audit.json and report.html."""
    place = choose_device(asked.device)
    loaded, after, pool = _read(asked)
    settings = changed(Settings(), options.parse_settings(asked.own or (), setting_names(Settings())))
    cost = cost_of_looks(settings, loaded.record.num_classes)
    if cost is not None and not asked.quiet:
        show_warnings((), (cost,))
    with result_folder(asked.out), bars(quiet=asked.quiet) as progress:
        record = run_audit(
            loaded,
            pool,
            asked.out,
            purified=after,
            n_clean=asked.n_clean,
            seed=asked.seed,
            settings=settings,
            device=place,
            sources={"clean": asked.clean},
            progress=progress,
        )
    if not asked.quiet:
        _show(record, pool, asked.out)
    if (record["purified"] or record)["verdict"] in _REFUSED[asked.fail_on]:
        raise typer.Exit(REFUSED)


def _read(asked: _Options) -> tuple[LoadedModel, LoadedModel | None, ImageSet]:
    """The model, the purified one if it was named, and the clean images, which both can take."""
    reading, after = asked.reading, None
    loaded = reading.model(asked.model)
    if asked.purified is not None:
        after = replace(reading, weights=None).model(asked.purified)
    shape, known = reading.image_size(loaded), options.classes_of(loaded, asked.classes)
    pool = read_images(asked.clean, size=shape, num_classes=loaded.record.num_classes, classes=known)
    check_takes(loaded, pool.image_size)
    if after is not None:
        check_takes(after, pool.image_size)
    return loaded, after, pool


def _show(record: dict[str, Any], pool: ImageSet, out: Path) -> None:
    show_warnings(record["threats"], (*record["findings"], *pool.notes))
    for name, part in (("", record), ("after purification: ", purified_part(record))):
        if part is not None:
            found = judge_audit(part)
            show(f"{name}{found.headline}. {found.text}")
    show(f"What now: {' '.join(after_audit(record))}")
    show_report(out / REPORT)
