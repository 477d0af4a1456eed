"""``polarizer sites``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Column, Table

from neural_polarizer.cli.command import from_options
from neural_polarizer.cli.options import Quiet, Reading, json_file
from neural_polarizer.cli.output import console, right, show_warnings, show_whole
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import write_json
from neural_polarizer.layer.sites import Candidate, Choice, candidates, choose_site
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.rng import stream


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of an attack.")]
    reading: Reading
    everything: Annotated[bool, typer.Option("--all", help="Also the places that something bypasses.")] = False
    json: Annotated[Path | None, typer.Option(help="Write the list to this file, too.", callback=json_file)] = None
    quiet: Quiet = False


@from_options(_Options)
def sites(asked: _Options) -> None:
    """List the places where the layer can go, from the pixels to the logits; one is marked, which --site auto takes."""
    loaded = asked.reading.model(asked.model)
    shape = asked.reading.image_size(loaded)
    if shape is None:
        raise BadInputError(f"{loaded.path}: does not say how large its images are; give --size")
    check_takes(loaded, shape)
    found = candidates(loaded.model, torch.rand(2, 3, *shape, generator=stream(0, "sites")))
    choice = choose_site(found)
    shown = [each for each in found if asked.everything or not each.bypassed]
    if asked.json is not None:
        listed = [{**asdict(each), "site": str(each.site), "channels": each.features.channels} for each in shown]
        write_json(asked.json, {"recommended": str(choice.site), "reason": choice.reason, "sites": listed})
    if not asked.quiet:
        show_warnings(loaded.threats)
        console.print(_table(shown, choice, asked.everything))
        show_whole(choice.reason)


def _table(shown: list[Candidate], choice: Choice, everything: bool) -> Table:
    more = ["bypassed"] if everything else []
    table = Table("", Column("site", overflow="fold"), "features", *right("channels", "behind it"), *more)
    for each in shown:
        mark = "auto" if each.site == choice.site else ""
        features = f"{each.features.layout} {'x'.join(map(str, each.features.shape))}"
        row = [mark, str(each.site), features, str(each.features.channels), f"{each.behind:.1%}"]
        table.add_row(*row, *(["yes" if each.bypassed else "no"] if everything else []))
    return table
