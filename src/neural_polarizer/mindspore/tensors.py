"""Between the two frameworks: by way of NumPy, always as a copy."""

from collections.abc import Callable, Sequence

import mindspore as ms
import torch
from torch import Tensor


def to_mindspore(values: Tensor) -> ms.Tensor:
    """Of the same type."""
    return ms.Tensor(values.detach().numpy().copy())


def to_torch(values: ms.Tensor) -> Tensor:
    """Of the same type, on the CPU, apart from any graph."""
    return torch.from_numpy(values.asnumpy().copy())


def with_gradient_of(loss: Callable[..., Tensor], logits: Sequence[ms.Tensor]) -> ms.Tensor:
    """A number of MindSpore's whose gradient is that of PyTorch's ``loss(*logits)``; its value means nothing.

    Logits are few, so that the losses need not be written twice, and are rounded alike: the gradient of a saturated
    softmax consists of little but rounding.
    """
    leaves = [to_torch(each).requires_grad_() for each in logits]
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    parts = [(each * to_mindspore(gradient)).sum() for each, gradient in zip(logits, gradients, strict=True)]
    return sum(parts[1:], start=parts[0])
