"""Weights alone, under the names that the network itself has for them."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from neural_polarizer.exporting.portable import Portable
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import model_bytes, network_tensors


def safetensors_bytes(portable: Portable, about: Mapping[str, Any]) -> bytes:
    """safetensors; its metadata hold the description, and our own record so that this package can load it too."""
    metadata = {"format": "pt", **as_texts(about)}  # transformers demands a word on the framework
    if portable.buildable:
        return model_bytes(portable.model, portable.record, metadata)
    return save(network_tensors(portable.network), metadata=metadata)


def read_safetensors(path: Path, portable: Portable) -> nn.Module:
    """The model in such a file: by its own record, where that names a network that can be built."""
    return load_model(path).model if portable.buildable else read_state_dict(path, portable)


def state_dict_bytes(portable: Portable, _about: Mapping[str, Any]) -> bytes:
    """What ``torch.save(network.state_dict(), path)`` writes; nothing else may be in it for ``strict=True``."""
    state = portable.network.state_dict()  # knows the versions of its modules, for which some of them ask
    tensors = network_tensors(portable.network)
    state.clear()
    state.update(tensors)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_state_dict(path: Path, portable: Portable) -> nn.Module:
    """A network like ``portable``'s with the weights of a file."""
    return portable.refilled(read_checkpoint(path).tensors, path)


def as_texts(about: Mapping[str, Any]) -> dict[str, str]:
    """The description for formats whose metadata are texts: JSON, but for what is a text already."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
