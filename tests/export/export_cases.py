"""Networks with a layer, and where they are exported to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from neural_polarizer import ImageSet, Normalized
from neural_polarizer.data.images import to_pixels
from neural_polarizer.exporting.export import Exported, export_model
from neural_polarizer.exporting.formats import FORMATS, FormatName
from neural_polarizer.layer.polarizer import Structure
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.structures import make_polarizer
from neural_polarizer.layer.surgery import Site, insert
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.build import build
from run_files import coloured
from toys import made

NAMES: tuple[FormatName, ...] = get_args(FormatName)
SUFFIX: Mapping[str, str] = {name: kind.suffixes[0] for name, kind in FORMATS.items()}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
IMAGES = coloured(5, 0, (32, 32))


def needs(name: FormatName) -> None:
    if name == "onnx":
        for package in ("onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="the extra 'export' is not installed")


def pixels_of(images: ImageSet = IMAGES) -> Tensor:
    return to_pixels(images.images)


@torch.no_grad()
def logits(model: Callable[[Tensor], Tensor], images: ImageSet = IMAGES) -> Tensor:
    return model(pixels_of(images))


def record_of(architecture: str, site: str | None, width: int | None = None) -> ModelRecord:
    return ModelRecord(
        architecture=architecture, num_classes=3, width=width, mean=MEAN, std=STD, site=site, classes=IMAGES.classes
    )


def model_of(architecture: str, site: str | None, width: int | None = None, images: ImageSet = IMAGES) -> nn.Module:
    """A network whose weights are torch's own, with a polarizer that matters."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Normalized(build(architecture, 3, width=width), MEAN, STD).eval()
    if site is None:
        return model
    return with_layer(model, site, "conv-bn", images)


def with_layer(model: nn.Module, site: str, structure: Structure, images: ImageSet = IMAGES) -> nn.Module:
    """``model`` with a layer of that structure, far from the identity."""
    place = Site.parse(site)
    layer = make_polarizer(structure, features_at(model, place, pixels_of(images)), torch.Generator())
    return insert(model, place, made(layer, 3))


def exported(model: nn.Module, folder: Path, name: FormatName, record: ModelRecord | None = None) -> Exported:
    return export_model(model, folder / f"exported{SUFFIX[name]}", name, IMAGES, record)
