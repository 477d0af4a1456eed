"""The formats by name: how a file of each is written and how it is run again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from neural_polarizer.exporting.graphs import ExportedProgramFile, OnnxFile
from neural_polarizer.exporting.portable import Portable
from neural_polarizer.exporting.weights import SafetensorsFile, StateDictFile

FormatName = Literal["safetensors", "state-dict", "onnx", "pt2"]
Run = Callable[[Tensor], Tensor]
"""Float pixels in [0, 1], ``(n, c, h, w)``, to logits ``(n, k)``."""


@runtime_checkable
class Format(Protocol):
    """One kind of file.

    Args:
        suffixes: what its readers expect a file's name to end in.
        is_graph: whether it holds the computation, normalisation included; otherwise it holds the network's weights.
        holds_metadata: whether the description goes into the file itself.
    """

    suffixes: ClassVar[tuple[str, ...]]
    is_graph: ClassVar[bool]
    holds_metadata: ClassVar[bool]

    def require(self) -> None:
        """Raise a BadInputError if a package that the format needs is missing."""

    def encode(self, portable: Portable, about: Mapping[str, Any]) -> bytes:
        """The bytes of the file."""

    def reader(self, path: Path, portable: Portable) -> Run:
        """The model in a file that ``encode`` made."""


FORMATS: Mapping[FormatName, Format] = MappingProxyType(
    {
        "safetensors": SafetensorsFile(),
        "state-dict": StateDictFile(),
        "onnx": OnnxFile(),
        "pt2": ExportedProgramFile(),
    }
)
