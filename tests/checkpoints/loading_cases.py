"""A small network, and what it is loaded and compared with."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.preact_resnet import PreActResNet18

ONE = torch.ones(1)
PIXELS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> PreActResNet18:
    torch.manual_seed(seed)
    return PreActResNet18(4, 2).eval()


def load(path: Path, **options: Any) -> Any:
    return load_model(path, architecture="preactresnet18", profile=options.pop("profile", "none"), **options)


def same(loaded: Any, wanted: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(loaded.model(PIXELS), wanted(PIXELS))
