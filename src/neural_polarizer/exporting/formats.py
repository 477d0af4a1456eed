"""The formats by name: how a file of each is written and how it is run again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from neural_polarizer.exporting.graphs import onnx_bytes, program_bytes, read_onnx, read_program, require_onnx
from neural_polarizer.exporting.portable import Portable
from neural_polarizer.exporting.weights import read_safetensors, read_state_dict, safetensors_bytes, state_dict_bytes

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


FORMATS: Mapping[FormatName, Format] = MappingProxyType(
    {
        "safetensors": Format(
            suffixes=(".safetensors",),
            is_graph=False,
            encode=safetensors_bytes,
            reader=read_safetensors,
        ),
        "state-dict": Format(
            suffixes=(".pt", ".pth"),
            is_graph=False,
            holds_metadata=False,
            encode=state_dict_bytes,
            reader=read_state_dict,
        ),
        "onnx": Format(
            suffixes=(".onnx",),
            is_graph=True,
            encode=onnx_bytes,
            reader=read_onnx,
            require=require_onnx,
        ),
        "pt2": Format(suffixes=(".pt2",), is_graph=True, encode=program_bytes, reader=read_program),
    }
)
