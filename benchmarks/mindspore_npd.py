"""NPD on one victim in PyTorch and in MindSpore: perturbations, losses and layer after one epoch, ACC and ASR.

    python benchmarks/mindspore_npd.py ATTACK --clean TRAIN.parquet --test TEST.parquet

ATTACK is the folder of an attack on a preactresnet18. Needs the extra "mindspore".
docs/research/mindspore.md has results.
"""

import argparse
import copy
import json
import time
from itertools import pairwise
from pathlib import Path

import mindspore as ms
import torch
from mindspore import nn, ops
from torch import Tensor

import neural_polarizer as npz
import neural_polarizer.mindspore as npm
from neural_polarizer import perturb
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.data.poison import TriggeredSet, read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.losses import runner_up
from neural_polarizer.mindspore import perturb as ms_perturb
from neural_polarizer.mindspore.tensors import to_mindspore, to_torch
from neural_polarizer.model_files.load import load_model
from neural_polarizer.perturb import Ball

BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
"""MindSpore's names of parameters, and PyTorch's."""


def torch_name(name: str) -> str:
    place, _, kind = name.rpartition(".")
    return f"{place}.{BATCH_NORM.get(kind, kind)}"


class Normalized(nn.Cell):
    def __init__(self, network: nn.Cell, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = to_mindspore(mean), to_mindspore(std)

    def construct(self, pixels: ms.Tensor) -> ms.Tensor:
        return self.network((pixels - self.mean) / self.std)


class PreActBlock(nn.Cell):
    """Of a pre-activation ResNet-18."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, pad_mode="pad", padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, pad_mode="pad", padding=1)
        self.shortcut = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.SequentialCell(nn.Conv2d(channels_in, channels, 1, stride, pad_mode="valid"))

    def construct(self, features: ms.Tensor) -> ms.Tensor:
        active = ops.relu(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return self.conv2(ops.relu(self.bn2(self.conv1(active)))) + shortcut


class PreActResNet18(nn.Cell):
    """``neural_polarizer.models.preact_resnet.PreActResNet18``."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.conv1 = nn.Conv2d(3, width, 3, pad_mode="pad", padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.SequentialCell(PreActBlock(before, after, stride), PreActBlock(after, after, 1))
            for (before, after), stride in zip(pairwise(widths), (1, 2, 2, 2), strict=True)
        )
        self.linear = nn.Dense(8 * width, num_classes)

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        return self.linear(features.mean(axis=(2, 3)))


def with_weights(cell: nn.Cell, state: dict[str, Tensor]) -> nn.Cell:
    """``cell`` in evaluation mode with the weights of a PyTorch module of the same names; every one must be used."""
    left = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for parameter in cell.get_parameters():
        parameter.set_data(to_mindspore(left.pop(torch_name(parameter.name))))
    assert not left, f"weights that the cell lacks: {sorted(left)}"
    return cell.set_train(False)


def preact_cell(model: npz.Normalized) -> nn.Cell:
    """The normalised PreActResNet18 ``model`` in MindSpore."""
    width, (num_classes, _) = len(model.network.conv1.weight), model.network.linear.weight.shape
    return with_weights(Normalized(PreActResNet18(num_classes, width), model.mean, model.std), model.state_dict())


def predicted(cell: nn.Cell, images: Tensor) -> Tensor:
    """The class of each uint8 image."""
    return torch.cat([to_torch(cell(to_mindspore(to_pixels(batch)))).argmax(dim=1) for batch in images.split(250)])


def measured(cell: nn.Cell, test: ImageSet, triggered: TriggeredSet) -> tuple[float, float]:
    hits = predicted(cell, test.images) == test.labels
    fooled = predicted(cell, triggered.images.images) == triggered.images.labels
    return float(hits.double().mean()), float(fooled.double().mean())


def layer_of(purified: npz.Purified | npm.PurifiedCell) -> dict[str, Tensor]:
    """The layer's values under PyTorch's names."""
    if isinstance(purified, npz.Purified):
        return {name: value for name, value in purified.polarizer.state_dict().items() if value.ndim > 0}
    return {
        torch_name(parameter.name).removeprefix("polarizer."): to_torch(parameter)
        for parameter in purified.polarizer.get_parameters()
    }


def gaps(one: npz.Purified | npm.PurifiedCell, other: npz.Purified) -> dict[str, float]:
    """The largest differences: absolute in the layer and in the shares of images, relative in the losses."""
    ours, theirs = layer_of(one), layer_of(other)
    found = {"layer": max(float((ours[name] - value).abs().max()) for name, value in theirs.items())}
    for mine, yours in zip(one.history, other.history, strict=True):
        for name, value in yours.items():
            kind, unit = ("loss", abs(value)) if name.startswith("loss") else ("share", 1.0)
            found[kind] = max(found.get(kind, 0.0), abs(mine[name] - value) / unit)
    return found


def rounded(model: npz.Normalized) -> npz.Normalized:
    """A copy whose weights differ by about half a unit in the last place: what rounding alone can do."""
    generator, other = torch.Generator().manual_seed(0), copy.deepcopy(model)
    for weight in other.parameters():
        weight.mul_(1 + 6e-8 * torch.randn(weight.shape, generator=generator))
    return other


def differing_perturbations(model: npz.Normalized, cell: nn.Cell, clean: ImageSet) -> dict[str, float]:
    """How many of 100 images get another perturbation than PyTorch's, from MindSpore and from PyTorch in float64.

    They are the paper's, towards the runner-up; another one differs by more than 1e-3 of its length.
    """
    pixels, labels = to_pixels(clean.images[:100]), clean.labels[:100]
    targets = runner_up(model(pixels), labels)
    settings = {"ball": Ball("l2", 3.0), "steps": 2, "step_size": 0.1}
    usual = perturb.perturb(model, pixels, targets, **settings)
    exact = perturb.perturb(copy.deepcopy(model).double(), pixels.double(), targets, **settings).float()
    ours = to_torch(ms_perturb.perturb(cell, to_mindspore(pixels), targets, **settings))

    def differing(found: Tensor) -> int:
        return int(((found - usual).flatten(1).norm(dim=1) > 1e-3 * usual.flatten(1).norm(dim=1)).sum())

    return {"mindspore": differing(ours), "pytorch_float64": differing(exact)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", type=Path)
    parser.add_argument("--clean", required=True, help="where the clean images are drawn from")
    parser.add_argument("--test", required=True)
    parser.add_argument("--n-clean", type=int, default=500)
    parser.add_argument("--site", default="layer4.1", help="the layer goes in front of it")
    parser.add_argument("--method", default="npd")
    parser.add_argument("--target", type=int)
    parser.add_argument("--preset", default="shipped")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int, help="of the test images")
    asked = parser.parse_args()

    loaded = load_model(asked.attack)
    model, size = loaded.model.requires_grad_(False), loaded.record.image_size
    cell = preact_cell(model)
    train = read_images(asked.clean, size=size)
    clean = train.select(clean_subset(train, asked.n_clean, seed=0))
    test = read_images(asked.test, size=size, limit=asked.limit)
    triggered = read_triggered(asked.attack / "triggered.parquet", size=size, num_classes=test.num_classes)
    if asked.limit is not None:
        few = torch.arange(min(asked.limit, len(triggered)))
        triggered = TriggeredSet(triggered.images.select(few), triggered.true_labels[few])

    common = {"name": asked.preset, "target": asked.target}
    if asked.epochs is not None:
        common["epochs"] = asked.epochs

    def torch_purified(network: npz.Normalized) -> npz.Purified:
        settings = {**common, "precision": "fp32", "device": "cpu"}
        return npz.purify(network, clean, asked.method, site=f"before:{asked.site}", **settings)

    print(json.dumps({"differing_perturbations": differing_perturbations(model, cell, clean)}), flush=True)
    started = time.perf_counter()
    theirs = torch_purified(model)
    middle = time.perf_counter()
    ours = npm.purify(cell, clean, asked.method, site=f"before:network.{asked.site}", **common)
    seconds = {"pytorch": round(middle - started, 1), "mindspore": round(time.perf_counter() - middle, 1)}
    compared = {"mindspore": gaps(ours, theirs), "rounding": gaps(torch_purified(rounded(model)), theirs)}
    print(json.dumps({"epochs": len(ours.history), "gaps": compared, "seconds": seconds}), flush=True)
    found = {}
    for when, original, twin in (("before", model, cell), ("after", theirs.model, ours.cell)):
        rates = npz.evaluate(original, test, triggered)
        found[when] = {"pytorch": (rates.acc, rates.asr), "mindspore": measured(twin, test, triggered)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
