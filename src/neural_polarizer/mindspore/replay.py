"""Passes that differ at the polarizer alone, without computing again what comes before it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mindspore as ms
from mindspore import nn


@contextmanager
def replayed(network: nn.Cell, polarizer: nn.Cell, pixels: ms.Tensor) -> Iterator[None]:
    """While it lasts, cells of ``network`` in front of ``polarizer`` give what they give for ``pixels``.

    There is no graph to be cut in MindSpore's eager mode, but a cell that has finished before the layer begins cannot
    depend on it. Those that run once in a pass are bypassed; all else runs as ever, shortcuts included.
    """
    outputs = _before(network, polarizer, pixels)
    cells = dict(network.cells_and_names())
    for name, output in outputs.items():
        # A copy, as the network may change it in place.
        cells[name].construct = lambda *_args, output=output, **_kwargs: output.copy()
    try:
        yield
    finally:
        for name in outputs:
            del cells[name].construct  # the class's own is back


def _before(network: nn.Cell, polarizer: nn.Cell, pixels: ms.Tensor) -> dict[str, ms.Tensor]:
    """The outputs of the outermost cells that run once, give a tensor, and are through before the layer begins."""
    finished: dict[str, ms.Tensor] = {}
    runs: Counter[str] = Counter()
    begun = False

    def begin(_cell: nn.Cell, _args: Any) -> None:
        nonlocal begun
        begun = True

    def finish(name: str, output: Any) -> None:
        runs[name] += 1
        if not begun and isinstance(output, ms.Tensor):
            finished[name] = output.copy()

    handles = [polarizer.register_forward_pre_hook(begin)]
    for name, cell in network.cells_and_names():
        handles.append(cell.register_forward_hook(lambda _cell, _args, output, name=name: finish(name, output)))
    try:
        network(pixels)
    finally:
        for handle in handles:
            handle.remove()
    once = [name for name in finished if runs[name] == 1]
    return {name: finished[name] for name in once if not any(name.startswith(f"{outer}.") for outer in once)}
