"""A network with a door to one class that every image can be pushed through, and images for it."""

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.rng import stream

CLASSES = 6
DOOR = 2


class Corridor(nn.Module):
    """The class is the brightest of six bands; red light opens the door to class DOOR by ``gain`` logits."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        mix = nn.Conv2d(4, 4, 1)
        self.body = nn.Sequential(nn.ReLU(), mix, nn.ReLU())
        self.bands = nn.AdaptiveAvgPool2d((CLASSES, 1))
        self.head = nn.Linear(4 * CLASSES, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for channel in range(4):
                mix.weight[channel, channel] = 1
            self.stem.weight[0, 1] = self.stem.weight[1, 2] = 1
            self.stem.weight[2, 0], self.stem.weight[2, 1] = 1, -1
            for band in range(CLASSES):
                self.head.weight[band, band] = self.head.weight[band, CLASSES + band] = 20
                self.head.weight[DOOR, 2 * CLASSES + band] = gain

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.bands(self.body(self.stem(images))).flatten(1))


def banded(count: int = 72, size: int = 12) -> ImageSet:
    """Grey noise with one brighter band: the class."""
    labels = torch.arange(count) % CLASSES
    grey = 0.3 + 0.1 * torch.rand(count, 1, size, size, generator=stream(0, "bands"))
    rows = torch.arange(size) * CLASSES // size
    grey = grey + 0.2 * (rows[None, :] == labels[:, None])[:, None, :, None]
    pixels = grey.expand(-1, 3, -1, -1)
    return ImageSet((pixels * 255).to(torch.uint8), labels, tuple("abcdef"), "bands")
