"""The formats by name: how a file of each is written and how it is run again."""

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from neural_polarizer.errors import BadInputError, cause, needing
from neural_polarizer.exporting.portable import Portable, as_texts
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import model_bytes, network_tensors

DESCRIPTION = "model.json"
"""The extra file of a .pt2 that holds the description."""
_ONNX_LIMIT = 2_000_000_000  # bytes; protobuf has no more

FormatName = Literal["safetensors", "state-dict", "onnx", "pt2"]
Run = Callable[[Tensor], Tensor]
"""Float pixels in [0, 1], ``(n, c, h, w)``, to logits ``(n, k)``."""


@dataclass(frozen=True)
class Format:
    """One kind of file."""

    suffixes: tuple[str, ...]  # what its readers expect a file's name to end in
    encode: Callable[[Portable, Mapping[str, Any]], bytes]  # the bytes of the file, from a model and its description
    reader: Callable[[Path, Portable], Run]  # the model in a file that ``encode`` made
    is_graph: bool = False  # whether it holds the computation, normalisation included; otherwise the network's weights
    holds_metadata: bool = True  # whether the description goes into the file itself
    require: Callable[[], None] = lambda: None  # refuses early where a package that it needs is missing


def _safetensors_bytes(portable: Portable, about: Mapping[str, Any]) -> bytes:
    """safetensors; its metadata hold the description, and our own record so that this package can load it too."""
    metadata = {"format": "pt", **as_texts(about)}  # transformers demands a word on the framework
    return model_bytes(portable.model, portable.record, metadata)


def _read_safetensors(path: Path, portable: Portable) -> Run:
    """The model in such a file: by its own record, where that names a network that can be built."""
    return portable.in_form(load_model(path).model) if portable.buildable else _read_state_dict(path, portable)


def _state_dict_bytes(portable: Portable, _about: Mapping[str, Any]) -> bytes:
    """What ``torch.save(network.state_dict(), path)`` writes; nothing else may be in it for ``strict=True``."""
    state = portable.network.state_dict()  # knows the versions of its modules, for which some of them ask
    tensors = network_tensors(portable.network)
    state.clear()
    state.update(tensors)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _read_state_dict(path: Path, portable: Portable) -> Run:
    return portable.refilled(read_checkpoint(path).tensors, path)


def _program_bytes(portable: Portable, about: Mapping[str, Any]) -> bytes:
    """A program of ``torch.export``, with the description as its extra file ``model.json``."""
    program = _captured(portable.model, portable.image_shape)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(about)})
    return buffer.getvalue()


def _read_program(path: Path, _portable: Portable) -> Run:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _require_onnx() -> None:
    with needing("export"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def _onnx_bytes(portable: Portable, about: Mapping[str, Any]) -> bytes:
    """ONNX in one file, input ``pixels`` and output ``logits``, with the description as its metadata."""
    size = sum(value.nbytes for value in portable.model.state_dict().values())
    if size > _ONNX_LIMIT:
        raise BadInputError(f"{size:,} bytes of weights do not fit into one ONNX file; export to pt2")
    # below a module, as a buffer "mean" and a step "mean" would share a name, and the step's shape be the buffer's
    captured = _captured(nn.Sequential(portable.model), portable.image_shape)
    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["logits"]}
    try:
        made = torch.onnx.export(captured, dynamo=True, verbose=False, dynamic_shapes=({0: "batch"},), **names)
    except Exception as error:  # the converter has kinds of its own
        first: BaseException = error
        while first.__cause__ is not None:  # the last one explains how to report an error of the converter
            first = first.__cause__
        raise BadInputError(f"the network cannot be converted to ONNX ({cause(first)}); export to pt2") from None
    assert made is not None
    graph = made.model.graph
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()  # names of our classes, paths of this machine
    made.model.metadata_props.update(as_texts(about))
    return made.model_proto.SerializeToString()


def _read_onnx(path: Path, _portable: Portable) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


@contextmanager
def _quietly() -> Iterator[None]:
    """Let torch keep to itself what it logs and prints of a network that it cannot capture: the error says it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _captured(model: nn.Module, image_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The program for any number of images, without those it was captured on and without paths of this machine."""
    pixels = torch.zeros(2, *image_shape)
    try:
        with _quietly():
            program = torch.export.export(model, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # a foreign network may raise anything while it is traced
        remedy = "export its weights (safetensors or state-dict)"
        raise BadInputError(f"the network cannot be captured as a graph ({cause(error)}); {remedy}") from None
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


FORMATS: Mapping[FormatName, Format] = MappingProxyType(
    {
        "safetensors": Format((".safetensors",), _safetensors_bytes, _read_safetensors),
        "state-dict": Format((".pt", ".pth"), _state_dict_bytes, _read_state_dict, holds_metadata=False),
        "onnx": Format((".onnx",), _onnx_bytes, _read_onnx, is_graph=True, require=_require_onnx),
        "pt2": Format((".pt2",), _program_bytes, _read_program, is_graph=True),
    }
)
