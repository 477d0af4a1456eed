"""Pre-activation ResNet-18 for small images, with the parameter names of BackdoorBench's checkpoints."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class StridedPointwise(nn.Conv2d):
    """1x1 convolution with a stride, computed as one without on every stride-th pixel, which is the same.

    oneDNN's own way to do so on CPUs with AVX2 alone writes past its memory in the backward pass if images are
    channels-last and have fewer than 8 channels (github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, input: Float[Tensor, "n c h w"]) -> Tensor:  # noqa: A002, its name in torch
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias)


class PreActBlock(nn.Module):
    """BN, ReLU, convolution, twice; the identity shortcut leaves before the first BN.

    Where the shape changes, the shortcut is a 1x1 convolution (no BN) of the activated input.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels_in != channels:
            pointwise = nn.Conv2d if channels_in >= 8 else StridedPointwise
            self.shortcut = nn.Sequential(pointwise(channels_in, channels, 1, stride, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class PreActResNet18(nn.Module):
    """PreAct-ResNet18 (He et al., 2016) with a 3x3 stem and no batch norm before the pooling.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.
    Departures: no final BN and ReLU, as in the networks of the paper's tables.
    Shape: float ``(n, 3, h, w)``, normalised, h and w at least 8, to logits ``(n, num_classes)``.

    Args:
        num_classes: K.
        width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        stages = [
            nn.Sequential(PreActBlock(before, after, stride), PreActBlock(after, after, 1))
            for (before, after), stride in zip(pairwise(widths), (1, 2, 2, 2), strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        return self.linear(features.mean(dim=(2, 3)))
