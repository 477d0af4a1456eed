"""Weights alone, under the names that the network itself has for them."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import nn

from neural_polarizer.exporting.portable import Portable
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import model_bytes, network_tensors


class SafetensorsFile:
    """safetensors; its metadata hold the description, and our own record so that this package can load it too."""

    is_graph: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)
    holds_metadata: ClassVar[bool] = True

    def require(self) -> None:
        """Nothing beyond what is always there."""

    def encode(self, portable: Portable, about: Mapping[str, Any]) -> bytes:
        metadata = {"format": "pt", **as_texts(about)}  # transformers demands a word on the framework
        if portable.buildable:
            return model_bytes(portable.model, portable.record, metadata)
        return save(network_tensors(portable.network), metadata=metadata)

    def reader(self, path: Path, portable: Portable) -> nn.Module:
        if portable.buildable:
            return load_model(path).model
        return portable.refilled(read_checkpoint(path).tensors, path)


class StateDictFile:
    """What ``torch.save(network.state_dict(), path)`` writes; nothing else may be in it for ``strict=True``."""

    is_graph: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth")
    holds_metadata: ClassVar[bool] = False

    def require(self) -> None:
        """Nothing beyond what is always there."""

    def encode(self, portable: Portable, about: Mapping[str, Any]) -> bytes:  # noqa: ARG002
        state = portable.network.state_dict()  # knows the versions of its modules, for which some of them ask
        tensors = network_tensors(portable.network)
        state.clear()
        state.update(tensors)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def reader(self, path: Path, portable: Portable) -> nn.Module:
        return portable.refilled(read_checkpoint(path).tensors, path)


def as_texts(about: Mapping[str, Any]) -> dict[str, str]:
    """The description for formats whose metadata are texts: JSON, but for what is a text already."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
