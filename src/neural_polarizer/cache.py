"""Where trained things are kept for later runs: one folder each, named by a hash of all that they depend on."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from neural_polarizer.files import output_folder, write_bytes

VARIABLE = "POLARIZER_HOME"


def home() -> Path:
    """``$POLARIZER_HOME``, or ``~/.cache/neural_polarizer``."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "neural_polarizer")


def key_of(request: Mapping[str, Any]) -> str:
    """A hash of a JSON object, whatever the order of its names."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def entry(kind: str, request: Mapping[str, Any]) -> Path:
    """The folder for what ``request`` describes, made if need be.

    Args:
        kind: the sort of thing, such as "clean"; the folder above.
        request: all that the result depends on, as JSON.

    Raises:
        BadInputError: the folder cannot be written to.
    """
    return output_folder(home() / kind / key_of(request)[:24])


def cached_tensors(kind: str, request: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` gives, computed at most once for the same ``request``; a damaged file is computed anew."""
    path = entry(kind, request) / "tensors.safetensors"
    if path.exists():
        try:
            return load_file(path)
        except (SafetensorError, OSError):
            path.unlink()
    tensors = {name: value.detach().cpu().contiguous() for name, value in make().items()}
    write_bytes(path, save(tensors))
    return tensors
