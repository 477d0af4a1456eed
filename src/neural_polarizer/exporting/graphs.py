"""The whole computation from pixels to logits, for any number of images of one size."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from neural_polarizer.errors import BadInputError, needing
from neural_polarizer.exporting.portable import Portable, as_texts

DESCRIPTION = "model.json"
"""The extra file of a .pt2 that holds the description."""
_ONNX_LIMIT = 2_000_000_000  # bytes; protobuf has no more


def program_bytes(portable: Portable, about: Mapping[str, Any]) -> bytes:
    """A program of ``torch.export``, with the description as its extra file ``model.json``."""
    program = _captured(portable.model, portable.image_shape)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(about)})
    return buffer.getvalue()


def read_program(path: Path, _portable: Portable) -> nn.Module:
    """The program in such a file."""
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def require_onnx() -> None:
    """Refuse early where the converter or the runtime is missing."""
    with needing("export"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def onnx_bytes(portable: Portable, about: Mapping[str, Any]) -> bytes:
    """ONNX in one file, input ``pixels`` and output ``logits``, with the description as its metadata."""
    size = sum(value.nbytes for value in portable.model.state_dict().values())
    if size > _ONNX_LIMIT:
        raise BadInputError(f"{size:,} bytes of weights do not fit into one ONNX file; export to pt2")
    # below a module, as a buffer "mean" and a step "mean" would share a name, and the step's shape be the buffer's
    captured = _captured(nn.Sequential(portable.model), portable.image_shape)
    try:
        made = torch.onnx.export(
            captured,
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
        )
    except Exception as error:  # the converter has kinds of its own
        raise BadInputError(f"the network cannot be converted to ONNX ({reason(error)}); export to pt2") from None
    assert made is not None
    graph = made.model.graph
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()  # names of our classes, paths of this machine
    made.model.metadata_props.update(as_texts(about))
    return made.model_proto.SerializeToString()


def read_onnx(path: Path, _portable: Portable) -> Callable[[Tensor], Tensor]:
    """What runs such a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


def _captured(model: nn.Module, image_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The program for any number of images, without those it was captured on and without paths of this machine."""
    pixels = torch.zeros(2, *image_shape)
    try:
        program = torch.export.export(model, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # a foreign network may raise anything while it is traced
        raise BadInputError(
            f"the network cannot be captured as a graph ({reason(error)}); export its weights (safetensors or "
            "state-dict)"
        ) from None
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def reason(error: Exception) -> str:
    """The first line of what a foreign library says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
