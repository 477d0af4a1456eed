"""One complete run record and a PNG, shared by the tests of the report."""

from typing import Any

import torch

from neural_polarizer.report.html import Picture
from neural_polarizer.report.pictures import contact_sheet


def sample_record(**changes: Any) -> dict[str, Any]:
    """A record with every key present; ``changes`` replace top-level keys, of which rates may be left out."""
    epochs = range(1, 6)
    record: dict[str, Any] = {
        "schema": 1,
        "method": "npd",
        "site": "after:layer4",
        "site_reason": None,
        "seed": 0,
        "suspect": None,
        "config": {"site": "after:layer4", "radii": [0.5, 1.0, 3.0], "epochs": 5, "batch_size": 128},
        "n_clean": 1935,
        "model": {
            "path": "models/badnets-gtsrb.pt",
            "architecture": "preactresnet18",
            "width": 16,
            "num_classes": 43,
            "classes": ["speed limit 20", "stop", "yield"],
            "mean": [0.34, 0.31, 0.32],
            "std": [0.27, 0.26, 0.27],
            "image_size": [32, 32],
        },
        "model_sha256": "ab" * 32,
        "before": {"acc": 0.971, "asr": 0.984, "ra": 0.016, "n_test": 12630, "n_triggered": 12570},
        "after": {"acc": 0.964, "asr": 0.012, "ra": 0.947, "n_test": 12630, "n_triggered": 12570},
        "der": 0.9825,
        "clean_acc": {"before": 0.99, "after": 0.99},
        "guarded": None,
        "seconds": {
            "load": 0.8,
            "features": 3.1,
            "warm_up": 4.0,
            "optimise": 41.2,
            "evaluate": 9.5,
            "total": 58.6,
        },
        "history": [
            {
                "epoch": epoch,
                "loss": 2.4 / epoch,
                "loss_benign": 0.4 / epoch,
                "loss_asr": 1.2 / epoch,
                "loss_bce": 0.8 / epoch,
                "clean_accuracy": 1 - 0.1 / epoch,
                "surrogate_success": 0.9 / epoch,
            }
            for epoch in epochs
        ],
        "surrogate": {"before": 0.91, "after": 0.14, "radius": 3.0},
        "audit": {
            "summary": "Suspiciously small: 1 (stop).",
            "by_class": {
                "mask_size": [71.25, 4.5, 68.0],
                "flagged": [False, True, False],
                "anomaly_index": [0.5, None],
            },
        },
        "findings": ["the prefix module. was removed from all names"],
        "threats": ["this file tries to run posix.system when loaded by torch.load"],
        "warnings": ["the clean set has no images of class 12"],
        "data": {"clean": "gtsrb:train", "test": "gtsrb:test", "triggered": "folder:triggered"},
        "device": "cpu",
        "precision": "bf16",
        "versions": {"neural_polarizer": "0.1.0", "torch": "2.10.0"},
        "command": ["polarizer", "purify", "models/badnets gtsrb.pt", "--test", "gtsrb:test"],
    }
    rates = {"acc": None, "asr": None, "ra": None, "n_test": 0, "n_triggered": 0}
    return record | {key: rates | value if key in ("before", "after") else value for key, value in changes.items()}


def nothing_measured() -> dict[str, Any]:
    """What the record of a purification in Python is like: nobody gave test images, and there is no file."""
    nothing: dict[str, Any] = {"before": {}, "after": {}, "der": None, "surrogate": {}, "data": {}, "command": None}
    return sample_record(**nothing, audit=None, model=sample_record()["model"] | {"path": None})


def sample_picture(**changes: Any) -> Picture:
    """A small picture; ``changes`` replace its fields."""
    png = contact_sheet([torch.zeros(1, 3, 2, 2, dtype=torch.uint8)], scale=1)
    fields = {"title": "Clean images", "caption": "as the defender has them", "png": png, "group": "Clean"}
    return Picture(**(fields | changes))
