"""Putting the polarizer into a MindSpore network; always on a copy."""

import copy
from typing import Any, Literal

import mindspore as ms
from mindspore import nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.surgery import Site, nearest
from neural_polarizer.mindspore.polarizer import Polarizer


class PolarizedCell(nn.Cell):
    """A cell of the network with the polarizer before or behind it, in that cell's place."""

    def __init__(self, cell: nn.Cell, polarizer: Polarizer, side: Literal["before", "after"]) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.polarizer = polarizer
        self.first = side == "before"

    def construct(self, features: ms.Tensor, *args: Any) -> ms.Tensor:
        if self.first:
            return self.cell(self.polarizer(features), *args)
        return self.polarizer(self.cell(features, *args))


def insert(cell: nn.Cell, site: str, polarizer: Polarizer) -> nn.Cell:
    """A copy of ``cell`` with ``polarizer`` (the very object) at ``site``; ``cell`` is untouched.

    The site is ``before:NAME`` or ``after:NAME`` of a cell in it, spelt as in ``cells_and_names()``. Parameters keep
    their names and those of the layer begin with "polarizer.": a checkpoint of one such network fits any other.
    """
    place = Site.parse(site)
    polarized = copy.deepcopy(cell)
    chosen = cell_named(polarized, place)
    names = [(parameter, parameter.name) for parameter in polarized.get_parameters()]
    if any(name.startswith("polarizer.") for _, name in names):
        raise BadInputError("the network holds a polarizer already; give the network without it")
    names += [(parameter, parameter.name) for parameter in polarizer.get_parameters()]
    pair = PolarizedCell(chosen, polarizer, place.side)
    parents = [parent for _, parent in polarized.cells_and_names() if parent is not pair]
    for parent in parents:
        for index, (name, child) in enumerate(list(parent.name_cells().items())):
            if child is not chosen:
                continue
            if isinstance(parent, (nn.SequentialCell, nn.CellList)):
                parent[index] = pair
            else:
                setattr(parent, name, pair)
    for parameter, name in names:  # MindSpore has put the place in front
        parameter.name = name
    return polarized


def feature_shape(cell: nn.Cell, site: str, pixels: ms.Tensor) -> tuple[int, ...]:
    """``(c, h, w)`` of the feature map at ``site``, found by one forward pass in evaluation mode."""
    place = Site.parse(site)
    chosen, seen = cell_named(cell, place), []
    if place.side == "before":
        handle = chosen.register_forward_pre_hook(lambda _cell, args: seen.append(args[0] if args else None))
    else:
        handle = chosen.register_forward_hook(lambda _cell, _args, output: seen.append(output))
    try:
        cell(pixels)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise BadInputError(f"site {site!r}: runs {len(seen)} times in a forward pass; it must run exactly once")
    if not isinstance(seen[0], ms.Tensor) or seen[0].ndim != 4:
        found = tuple(seen[0].shape) if isinstance(seen[0], ms.Tensor) else type(seen[0]).__name__
        raise BadInputError(f"site {site!r}: needs a feature map N x C x H x W, found {found}")
    return tuple(seen[0].shape[1:])


def cell_named(cell: nn.Cell, site: Site) -> nn.Cell:
    """The cell that the site names; where there is none, the nearest names are listed."""
    cells = {name: inner for name, inner in cell.cells_and_names() if name}
    if site.name not in cells:
        raise BadInputError(f"site {str(site)!r}: no such cell; {nearest(site.name, list(cells))}")
    return cells[site.name]
