"""The state of a training run on disk, from which it goes on: its networks and optimizers after an epoch."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from neural_polarizer.cache import keep_tensors, kept_tensors
from neural_polarizer.errors import BadInputError


def save_state(
    path: Path,
    run: str,
    epochs_done: int,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Write the values of ``networks``, by name, and the state of ``optimizers``, by prefixes such as ``model.``.

    ``run`` is a hash of all that the result depends on.
    """
    tensors = {
        f"{kind}.{name}": value for kind, network in networks.items() for name, value in network.state_dict().items()
    }
    for kind, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{kind}{index}.{name}"] = value
    keep_tensors(path, tensors, {"run": run, "epochs_done": str(epochs_done)})


def resume(
    path: Path, run: str, networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> int:
    """Load the state of ``path`` and return the number of finished epochs; 0 if there is none that is whole.

    A state of another run than ``run`` is refused.
    """
    kept = kept_tensors(path)
    if kept is None:
        return 0
    if kept.about.get("run") != run:
        raise BadInputError(
            f"{path}: belongs to a run with another model, other data, settings or seed; remove it or choose another "
            "folder"
        )
    for kind, network in networks.items():
        network.load_state_dict(_below(f"{kind}.", kept.tensors))
    for kind, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in _below(f"optimizer.{kind}", kept.tensors).items():
            index, _, slot = name.partition(".")
            if index.isdecimal():
                state[int(index)][slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})
    return int(kept.about["epochs_done"])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
