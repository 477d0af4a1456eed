"""CLP (Zheng et al., 2022): prune the channels that can enlarge their input most; no images needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.result import Audit, Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import watching


@dataclass(frozen=True, kw_only=True)
class CLP(Defense):
    """Zero the batch-norm channels whose bound of the Lipschitz constant is an outlier of their layer.

    The bound of channel c is the largest singular value of its kernel, as a matrix of input channels times positions,
    times ``|gamma_c| / sigma_c`` of the batch norm behind it.

    Source: Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022; u of BackdoorBench.
    Departures from the reference: a batch norm belongs to the convolution that ran last before it, if it has as many
    channels (the reference goes by the order in which modules are defined); sigma includes the norm's epsilon, so that
    a dead channel has a finite bound.  The clean images tell nothing but the size of an image.

    Args:
        deviations: u, how many standard deviations above the layer's mean a channel must lie.
    """

    title: ClassVar[str] = "CLP"
    story: ClassVar[tuple[str, ...]] = (
        "Channel Lipschitzness pruning (CLP): channels that can enlarge their input far more than others of their "
        "layer were switched off, judged by the weights only. No other weight was changed.",
    )

    deviations: float = 3.0

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("prune"):
            count, total = self._prune(model, clean, run)
        summary = f"Pruned {count} of {total} channels, by the bound of their Lipschitz constant."
        return Outcome(model, Audit(summary, {}))

    def _prune(self, model: nn.Module, clean: ImageSet, run: Run) -> tuple[int, int]:
        """Zero channels of ``model`` in place; how many of how many."""
        pairs = convolutions_with_norms(model, to_pixels(clean.images[:1].to(run.device)))
        if not pairs:
            raise BadInputError(
                "CLP prunes channels of batch norms behind convolutions, but this network has none; use another defense"
            )
        count = 0
        with torch.no_grad():
            for number, (convolution, norm) in enumerate(pairs):
                gone = outliers(lipschitz_bounds(convolution, norm), self.deviations)
                norm.weight[gone] = 0
                norm.bias[gone] = 0
                count += int(gone.sum())
                run.progress("bounds", number + 1, len(pairs))
        return count, sum(norm.num_features for _, norm in pairs)


@torch.no_grad()
def convolutions_with_norms(
    model: nn.Module, pixels: Float[Tensor, "n c h w"]
) -> Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each batch norm with weights and running statistics, and the convolution that ran last before it.

    Args:
        model: in evaluation mode.
        pixels: anything that it can see.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)}
    order: list[nn.Module] = []

    def note(name: str, _inputs: tuple[Any, ...], _output: Any) -> None:
        order.append(layers[name])

    with watching(model, layers, note):
        model(pixels)
    found: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    last: nn.Conv2d | None = None
    for layer in order:
        if isinstance(layer, nn.Conv2d):
            last = layer
        elif (
            isinstance(layer, nn.BatchNorm2d)
            and last is not None
            and last.out_channels == layer.num_features
            and layer.affine
            and layer.running_var is not None
        ):
            found.setdefault(layer, last)
    return [(convolution, norm) for norm, convolution in found.items()]


@torch.no_grad()
def lipschitz_bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Float[Tensor, " k"]:
    """``|W_c| |gamma_c| / sigma_c`` of each output channel, with the spectral norm of ``W_c`` (inputs x positions)."""
    assert norm.running_var is not None
    kernels = convolution.weight.flatten(2).float()
    scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return torch.linalg.matrix_norm(kernels, ord=2) * scale


def outliers(bounds: Float[Tensor, " k"], deviations: float) -> Bool[Tensor, " k"]:
    """True where a bound lies more than so many standard deviations above the layer's mean."""
    if len(bounds) < 2:
        return torch.zeros_like(bounds, dtype=torch.bool)
    return bounds > bounds.mean() + deviations * bounds.std()
