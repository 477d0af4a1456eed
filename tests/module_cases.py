"""A small model purified by each of the methods."""

from typing import Any

from torch import nn

import neural_polarizer as npz
from neural_polarizer import Purified
from toys import tiny_images

CLEAN = tiny_images(16)
ONE: dict[str, Any] = {"device": "cpu", "force": True}
METHODS: dict[str, dict[str, Any]] = {
    "npd": {"epochs": 1, "batch_size": 8, "site": "after:features"},
    "ft": {"schedule.epochs": 1},
    "fp": {"schedule.epochs": 1},
    "nad": {"teacher.epochs": 1, "student.epochs": 1},
    "nc": {"epochs": 1, "schedule.epochs": 1},
    "anp": {"iterations": 1},
    "i-bau": {"rounds": 1},
    "ep": {"batches": 1},
}


def purified(model: nn.Module, method: str = "npd", **more: Any) -> Purified:
    return npz.purify(model, CLEAN, method, **{**METHODS[method], **ONE, **more})
