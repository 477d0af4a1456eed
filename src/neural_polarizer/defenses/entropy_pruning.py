"""EP (Zheng et al., 2022): prune channels with two modes on a mixture of clean and poisoned images."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.result import Audit, Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import silence, watching
from neural_polarizer.settings import check_literals


@dataclass(frozen=True, kw_only=True)
class EntropyPruning(Defense):
    """Zero the batch-norm channels whose inputs have the least entropy.

    Source: Zheng et al., "Pre-activation Distributions Expose Backdoor Neurons", NeurIPS 2022.
    Departures from the reference: entropies are averaged over several batches; a channel without variance is skipped.
    **As published it sees poisoned training images**: give those as ``clean``, and say so with ``data="mixture"``.
    With clean images alone, as every other defense has, there is no second mode to find.

    Args:
        data: what ``clean`` holds: the defender's "clean" images, or a "mixture" of clean and poisoned ones. It changes
            nothing but the record.
        deviations: u, how many standard deviations below a layer's mean entropy a channel must lie.
        batch_size: images a batch.
        batches: how many of them.
        bin_width: of the histogram of standardised activations.
    """

    title: ClassVar[str] = "EP"
    story: ClassVar[tuple[str, ...]] = (
        "Entropy-based pruning (EP): channels whose inputs fall into two groups were switched off, since a group of "
        "its own may be that of the triggered images. No other weight was changed.",
    )

    data: Literal["clean", "mixture"] = "clean"
    deviations: float = 3.0
    batch_size: int = 256
    batches: int = 4
    bin_width: float = 0.1

    def __post_init__(self) -> None:
        check_literals(self)
        if self.batch_size < 2 or self.batches < 1 or self.bin_width <= 0:
            raise BadInputError(
                f"EP needs at least 2 images a batch, 1 batch and a positive bin width, got {self.batch_size}, "
                f"{self.batches}, {self.bin_width}"
            )

    @property
    def sees_mixture(self) -> bool:
        """As ``data`` says; its publication gives it a mixture."""
        return self.data == "mixture"

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("prune"):
            count, total = self._prune(model, clean, run)
        summary = f"Pruned {count} of {total} channels, by the entropy of what enters them on {self.data} images."
        return Outcome(model, Audit(summary, {}))

    def _prune(self, model: nn.Module, clean: ImageSet, run: Run) -> tuple[int, int]:
        """Zero channels of ``model`` in place; how many of how many."""
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d) and module.affine
        }
        if not norms:
            raise BadInputError("EP prunes channels of batch norms, but this network has none; use another defense")
        totals = {name: torch.zeros(module.num_features, device=run.device) for name, module in norms.items()}
        for number in range(self.batches):
            rows = torch.randperm(len(clean), generator=run.stream("ep", number))[: self.batch_size]
            for name, peaks in _peaks(model, norms, to_pixels(clean.images[rows].to(run.device))).items():
                totals[name] += entropy(peaks, self.bin_width) / self.batches
            run.progress("entropy", number + 1, self.batches)
        count = sum(silence(norm, outliers(totals[name], self.deviations)) for name, norm in norms.items())
        return count, sum(norm.num_features for norm in norms.values())


@torch.no_grad()
def _peaks(
    model: nn.Module, norms: dict[str, nn.BatchNorm2d], pixels: Float[Tensor, "n c h w"]
) -> dict[str, Float[Tensor, "k n"]]:
    """The spatial maximum of what enters each batch norm, a channel and image."""
    found: dict[str, Tensor] = {}

    def note(name: str, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        found[name] = inputs[0].amax(dim=(2, 3)).T.float()

    with watching(model, norms, note):
        model(pixels)
    return found


def entropy(peaks: Float[Tensor, "k n"], bin_width: float) -> Float[Tensor, " k"]:
    """Entropy of each channel's standardised values over bins from the layer's least to its largest value.

    NaN for a channel without variance.
    """
    deviation = peaks.std(dim=1, keepdim=True)
    values = (peaks - peaks.mean(dim=1, keepdim=True)) / deviation
    usable = deviation[:, 0] > 0
    if not usable.any():
        return torch.full_like(peaks[:, 0], torch.nan)
    low, high = values[usable].min(), values[usable].max()
    bins = int(((high - low) / bin_width).ceil().clamp_min(1))
    places = ((values[usable] - low) / bin_width).long().clamp(0, bins - 1)
    counts = torch.zeros(int(usable.sum()), bins, device=peaks.device).scatter_add_(
        1, places, torch.ones_like(places, dtype=torch.float32)
    )
    shares = counts / counts.sum(dim=1, keepdim=True)
    found = torch.full_like(peaks[:, 0], torch.nan)
    found[usable] = -torch.special.xlogy(shares, shares).sum(dim=1)
    return found


def outliers(entropies: Float[Tensor, " k"], deviations: float) -> Tensor:
    """True where a channel's entropy lies more than so many standard deviations below the layer's mean."""
    known = entropies[entropies.isfinite()]
    if len(known) < 2:
        return torch.zeros_like(entropies, dtype=torch.bool)
    return entropies.nan_to_num(torch.inf) < known.mean() - deviations * known.std()
