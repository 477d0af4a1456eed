"""Cross-fitting: each image judges a layer that was not learned from it."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from neural_polarizer.defenses.stand_ins.settings import Guard


@dataclass(frozen=True, eq=False)
class Fold:
    """One part of the clean images judges the layer that is learned from the others."""

    fit: Int64[Tensor, " f"]  # rows to learn from
    judge: Int64[Tensor, " j"]  # rows that judge


def cross_fitted(labels: Int64[Tensor, " n"], guard: Guard, generator: torch.Generator) -> list[Fold]:
    """Parts of about equal size, stratified by class.

    A single image judges and is learned from.
    """
    count = len(labels)
    parts = min(guard.folds, count)
    order = torch.randperm(count, generator=generator).to(labels.device)
    order = order[labels[order].argsort(stable=True)]
    part = torch.empty_like(order)
    part[order] = torch.arange(count, device=labels.device) % parts
    rows = torch.arange(count, device=labels.device)
    return [Fold(rows[part != each] if parts > 1 else rows, rows[part == each]) for each in range(parts)]
