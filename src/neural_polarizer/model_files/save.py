"""Models to disk: safetensors with a JSON record of all that is needed to use them again."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from safetensors.torch import save
from torch import Tensor, nn

from neural_polarizer.files import write_bytes
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.model_files.foreign import names_in_files
from neural_polarizer.model_files.record import POLARIZER_PREFIX, ModelRecord, metadata_of, with_structure
from neural_polarizer.models.normalize import bare


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with the backbone's own names, and the polarizer's tensors under ``polarizer.``."""
    wrapped = [name for name, module in network.named_modules() if isinstance(module, PolarizedModule)]
    tensors = {}
    for name, value in network.state_dict().items():
        for outer in wrapped:
            if name.startswith(f"{outer}.{POLARIZER_PREFIX}"):
                name = name.removeprefix(f"{outer}.")
            elif name.startswith(f"{outer}.module."):
                name = f"{outer}.{name.removeprefix(f'{outer}.module.')}"
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors


def save_model(path: Path, model: nn.Module, record: ModelRecord) -> None:
    """Write the weights of ``model`` (the normalisation goes into the record) as safetensors, atomically."""
    write_bytes(path, model_bytes(model, record))


def model_bytes(model: nn.Module, record: ModelRecord, also: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The safetensors file from which ``load_model`` makes ``model`` again; ``also`` is metadata for other readers."""
    names, tensors = names_in_files(record), network_tensors(bare(model))
    tensors = {names.get(name, name): value for name, value in tensors.items()}
    return save(tensors, metadata={**also, **metadata_of(with_structure(record, model))})


def save_polarizer(path: Path, polarizer: Polarizer, record: ModelRecord) -> None:
    """Write the layer alone."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in polarizer.state_dict().items()}
    write_bytes(path, save(tensors, metadata=metadata_of(replace(record, structure=polarizer.structure))))
