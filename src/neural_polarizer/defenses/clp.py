"""CLP (Zheng et al., 2022): prune the channels that can enlarge their input most; no images needed."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.result import Audit, Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import convolutions_with_norms, lipschitz_bounds, outliers, silence


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
        for number, (convolution, norm) in enumerate(pairs):
            count += silence(norm, outliers(lipschitz_bounds(convolution, norm), self.deviations))
            run.progress("bounds", number + 1, len(pairs))
        return count, sum(norm.num_features for _, norm in pairs)
