"""Gradient descent on the parameters of a polarizer, with a way back from where they are not finite."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.train.fit import is_finite


class Descent:
    """SGD on a polarizer, with momentum and weight decay as ``torch.optim.SGD`` has them.

    A gradient of all parameters together that is longer than ``max_gradient`` is shortened to this length.
    ``unit_rate`` is the share of the learning rate for the parameters that have the unit of the features
    (``schedule.feature_units_rate``). What the layer is at first is kept (``keep``).
    """

    def __init__(
        self,
        polarizer: Polarizer,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        max_gradient: float | None = None,
        unit_rate: float = 1.0,
    ) -> None:
        in_units = set(polarizer.in_feature_units)
        self._polarizer, self._max_gradient = polarizer, max_gradient
        self._shares = [unit_rate if each in in_units else 1.0 for each in polarizer.parameters()]
        groups = [{"params": [each]} for each in polarizer.parameters()]
        self._sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, weight_decay=weight_decay)
        self.keep()

    def step(self, loss: Float[Tensor, ""], lr: float) -> None:
        """One step down the gradient of ``loss``."""
        for group, share in zip(self._sgd.param_groups, self._shares, strict=True):
            group["lr"] = share * lr
        self._sgd.zero_grad()
        loss.backward()
        self._shorten()
        self._sgd.step()

    def _shorten(self) -> None:
        """Lengths are measured in the metric of the step, which knows nothing of the features' unit either."""
        if self._max_gradient is None:
            return
        pairs = zip(self._shares, self._polarizer.parameters(), strict=True)
        found = [(share, each.grad) for share, each in pairs if each.grad is not None]
        length = torch.stack([share * gradient.square().sum() for share, gradient in found]).sum().sqrt()
        for _, gradient in found:
            gradient.mul_((self._max_gradient / length.clamp_min(1e-12)).clamp_max(1.0))

    def keep(self) -> None:
        """Remember the layer as it is now."""
        self._kept = copy.deepcopy(self._polarizer.state_dict())

    def restore(self) -> None:
        """Make the layer what it was when ``keep`` was called."""
        self._polarizer.load_state_dict(self._kept)

    def is_finite(self) -> bool:
        """Whether the layer holds finite numbers only."""
        return is_finite(self._polarizer)
