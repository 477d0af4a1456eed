"""The formats by name: how a file of each is written and how it is run again."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from neural_polarizer.exporting.graphs import onnx_bytes, program_bytes, read_onnx, read_program, require_onnx
from neural_polarizer.exporting.portable import Portable, as_texts
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import model_bytes, network_tensors

FormatName = Literal["safetensors", "state-dict", "onnx", "pt2"]
Run = Callable[[Tensor], Tensor]
"""Float pixels in [0, 1], ``(n, c, h, w)``, to logits ``(n, k)``."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of file."""

    suffixes: tuple[str, ...]  # what its readers expect a file's name to end in
    is_graph: bool  # whether it holds the computation, normalisation included; otherwise the network's weights
    holds_metadata: bool = True  # whether the description goes into the file itself
    encode: Callable[[Portable, Mapping[str, Any]], bytes]  # the bytes of the file, from a model and its description
    reader: Callable[[Path, Portable], Run]  # the model in a file that ``encode`` made
    require: Callable[[], None] = lambda: None  # refuses early where a package that it needs is missing


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


_SAFETENSORS = Format(suffixes=(".safetensors",), is_graph=False, encode=safetensors_bytes, reader=read_safetensors)
_STATE_DICT = Format(
    suffixes=(".pt", ".pth"), is_graph=False, holds_metadata=False, encode=state_dict_bytes, reader=read_state_dict
)
_ONNX = Format(suffixes=(".onnx",), is_graph=True, encode=onnx_bytes, reader=read_onnx, require=require_onnx)
_PT2 = Format(suffixes=(".pt2",), is_graph=True, encode=program_bytes, reader=read_program)
FORMATS: Mapping[FormatName, Format] = MappingProxyType(
    {"safetensors": _SAFETENSORS, "state-dict": _STATE_DICT, "onnx": _ONNX, "pt2": _PT2}
)
