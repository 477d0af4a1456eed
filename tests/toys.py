"""Networks and images so small that their answers can be worked out on paper or in milliseconds."""

import copy
import os
from collections.abc import Mapping

import torch
from hypothesis import settings
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import called
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.rng import stream

SAME = os.environ.get("NEURAL_POLARIZER_EXAMPLES") != "new"
"""Whether Hypothesis takes the same examples each time; ``make nightly`` draws new ones."""

quick = settings(max_examples=25, deadline=None, derandomize=SAME, database=None)
"""Hypothesis without a clock or memory: the same examples on every machine, unless new ones are asked for."""


class TwoPixels(nn.Module):
    """Pixels (a, b) to the logits (0, a - b): class 1 wants a up and b down."""

    def forward(self, pixels: Tensor) -> Tensor:
        margin = pixels[:, 0, 0, 0] - pixels[:, 0, 0, 1]
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


class TinyNet(nn.Module):
    """Two convolutions with batch norm, pooling and a linear head."""

    def __init__(self, num_classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.features(images)).flatten(1))


class Residual(nn.Module):
    """A shortcut leads around ``inner``, a second one from the stem to the very end; ``scale`` serves on both sides."""

    def __init__(self, num_classes: int = 4, width: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images * self.scale).relu()
        middle = self.inner(stem).relu() + stem
        return self.head((self.last(middle) + self.scale * stem).mean(dim=(2, 3)))


class Untraceable(TinyNet):
    """Looks at its data in plain Python, which no tracer can follow."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.mean() < 2 else images / 255)


def made(network: nn.Module, seed: int = 0) -> nn.Module:
    """``network`` in evaluation mode with weights and batch-norm statistics of its own, the same on every call."""
    generator = stream(seed, "toy")
    with torch.no_grad():
        for parameter in network.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            centre = 0.0 if parameter.ndim > 1 else 0.5
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(0.2 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return network.eval()


def tiny_model(seed: int = 0) -> nn.Module:
    """A TinyNet behind a normalisation."""
    return made(Normalized(TinyNet(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), seed)


def with_features_scaled(model: nn.Module, factor: float) -> nn.Module:
    """A copy of ``tiny_model`` of the same logits whose first features are ``factor`` times as large."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("weight", "bias"):
            scaled.get_parameter(f"network.features.1.{name}").mul_(factor)
        scaled.get_parameter("network.features.3.weight").div_(factor)
    return scaled


def tiny_images(n: int = 24, num_classes: int = 4, size: int = 8, seed: int = 0) -> ImageSet:
    """Noise in which each class has a colour of its own; classes in turn."""
    generator = stream(seed, "toy images")
    labels = torch.arange(n) % num_classes
    colours = torch.rand(num_classes, 3, 1, 1, generator=stream(0, "toy colours"))
    pixels = 0.5 * colours[labels] + 0.5 * torch.rand(n, 3, size, size, generator=generator)
    return ImageSet((pixels * 255).to(torch.uint8), labels, tuple(f"class {k}" for k in range(num_classes)), "toy")


def polarizers(seed: int, channels: int) -> Polarizer:
    """A polarizer that is far from the identity."""
    polarizer = made(Polarizer(channels), seed)
    assert isinstance(polarizer, Polarizer)
    return polarizer


def backbone_state(polarized: nn.Module) -> dict[str, Tensor]:
    """The state of a purified model without its polarizer, under the names of the network as it was."""
    state = polarized.state_dict()
    wrapped = {name.partition("polarizer.")[0] for name in state if ".polarizer." in name}
    (place,) = wrapped or {"-"}
    return {
        name.replace(f"{place}module.", place): value
        for name, value in state.items()
        if not name.startswith(f"{place}polarizer.")
    }


def hooks(model: nn.Module) -> list[object]:
    """Every hook on any module but the one that a polarized module has by itself."""
    return [
        hook
        for module in model.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        for hook in table.values()
        if hook is not called
    ]


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[tuple[bool, ...]], list[object], list[object]]:
    """All that a call might change about a model: values, modes, flags, gradients, hooks, modules."""
    flags = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    modes = [(module.training,) for module in model.modules()]
    modules: list[object] = list(model.modules())
    return copy.deepcopy(dict(model.state_dict())), [*flags, *modes], hooks(model), modules


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Equal to the last bit, name by name."""
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=0.0, atol=0.0)


def largest_gap(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest difference between two modules' values."""
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)
