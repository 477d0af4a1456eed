"""Networks of ``toys`` as MindSpore cells, with the weights carried over."""

import mindspore as ms
import torch
from mindspore import nn
from torch import Tensor

from benchmark_scripts import script
from neural_polarizer.models.normalize import Normalized
from toys import tiny_model

benchmark = script("mindspore_npd")


class TinyCell(nn.Cell):
    """``toys.TinyNet``."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.SequentialCell(
            nn.Conv2d(3, width, 3, pad_mode="pad", padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, pad_mode="pad", padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.head = nn.Dense(width, num_classes)

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        return self.head(self.features(images).mean(axis=(2, 3)))


class ResidualCell(nn.Cell):
    """A shortcut leads around the blocks, which run twice if ``twice``."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.CellList([nn.Conv2d(4, 4, 3), nn.ReLU()])
        self.end = nn.Identity()
        self.head = nn.Dense(4, 4)
        self.twice = twice

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        features = self.stem(images)
        for _ in range(2 if self.twice else 1):
            features = features + self.blocks[1](self.blocks[0](features))
        return self.head(self.end(features).mean(axis=(2, 3)))


def twin(model: Normalized) -> nn.Cell:
    """The normalised TinyNet ``model`` as a cell."""
    head = model.network.get_submodule("head")
    assert isinstance(head, torch.nn.Linear)
    cell = benchmark.Normalized(TinyCell(head.out_features, head.in_features), model.mean, model.std)
    return benchmark.with_weights(cell, model.state_dict())


def tiny_twins(seed: int = 0) -> tuple[Normalized, nn.Cell]:
    """``toys.tiny_model`` in both frameworks."""
    model = tiny_model(seed)
    assert isinstance(model, Normalized)
    return model, twin(model)


def state_of(cell: nn.Cell) -> dict[str, Tensor]:
    """All values of a cell, as PyTorch's tensors, by the names of the parameters."""
    return {parameter.name: torch.from_numpy(parameter.asnumpy().copy()) for parameter in cell.get_parameters()}


def values_of(polarizer: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a PyTorch polarizer under MindSpore's names."""
    names = {torch_name: name for name, torch_name in benchmark.BATCH_NORM.items()}
    found = {}
    for name, value in polarizer.state_dict().items():
        layer, _, kind = name.partition(".")
        if kind != "num_batches_tracked":
            found[f"polarizer.{layer}.{names[kind] if layer == 'norm' else kind}"] = value
    return found


def logits_of(cell: nn.Cell, pixels: Tensor) -> Tensor:
    return torch.from_numpy(cell(ms.Tensor(pixels.numpy())).asnumpy().copy())
