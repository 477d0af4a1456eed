"""The networks of classifiers that other groups have published, with the names of their tensors.

Each function gives a network from pixels, normalised as its authors did, ``(n, 3, 32, 32)``, to logits ``(n, k)``.
"""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional


def small_vgg(num_classes: int = 10) -> nn.Module:
    """Six convolutions and a linear layer, as in YiZeng623/I-BAU."""
    return SmallVgg(num_classes)


def wrn_16_1(num_classes: int = 10) -> nn.Module:
    """Wide ResNet of depth 16 and width 1, as in bboylyg/NAD; only the logits are given, not the maps."""
    return WideResNet(num_classes)


def resnet20(num_classes: int = 10) -> nn.Module:
    """ResNet-20 for CIFAR, as in akamaster/pytorch_resnet_cifar10."""
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> nn.Module:
    """ResNet-56 for CIFAR, likewise."""
    return CifarResNet(9, num_classes)


class SmallVgg(nn.Module):
    """Three stages of two convolutions, each stage with half the pixels of the one before."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*self._layers())
        self.classifier = nn.Linear(128 * 4 * 4, num_classes)

    @staticmethod
    def _layers() -> Iterator[nn.Module]:
        before = 3
        for width, dropout in ((32, 0.3), (64, 0.4), (128, 0.4)):
            for inputs in (before, width):
                yield nn.Conv2d(inputs, width, 3, padding=1)
                yield nn.BatchNorm2d(width)
                yield nn.ELU()
            yield nn.MaxPool2d(2)
            yield nn.Dropout(dropout)
            before = width

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).flatten(1))


class WideResNet(nn.Module):
    """A convolution, three groups of two pre-activation blocks, and a linear layer on the mean of the map."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _group(16, 16, 1)
        self.block2 = _group(16, 32, 2)
        self.block3 = _group(32, 64, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.block3(self.block2(self.block1(self.conv1(pixels))))
        return self.fc(functional.relu(self.bn1(maps)).mean(dim=(2, 3)))


class PreActivation(nn.Module):
    """Batch norm and ReLU in front of each convolution; a 1x1 shortcut, behind the first ReLU, for other widths."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = functional.relu(self.bn1(maps))
        shortcut = maps if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(functional.relu(self.bn2(self.conv1(active))))


def _group(inputs: int, outputs: int, stride: int) -> nn.Module:
    blocks = nn.Sequential(PreActivation(inputs, outputs, stride), PreActivation(outputs, outputs, 1))
    return nn.Sequential(OrderedDict(layer=blocks))


class CifarResNet(nn.Module):
    """A convolution, three stages of basic blocks without parameters in their shortcuts, and a linear layer."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = functional.relu(self.bn1(self.conv1(pixels)))
        return self.linear(self.layer3(self.layer2(self.layer1(maps))).mean(dim=(2, 3)))


class BasicBlock(nn.Module):
    """Two convolutions; where the size changes, the shortcut takes every second pixel and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps
        if self.padding:
            taken = maps[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(taken, (0, 0, 0, 0, self.padding, self.padding))
        branch = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(maps)))))
        return torch.relu(branch + shortcut)


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Module:
    rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)
