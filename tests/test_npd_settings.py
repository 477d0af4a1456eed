"""Settings and inputs that NPD refuses."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from neural_polarizer.defenses.npd import NPD
from neural_polarizer.errors import BadInputError
from neural_polarizer.train.schedule import Schedule
from npd_cases import SMALL, WARM, polarizer_of, repaired
from toys import (
    largest_gap,
    made,
    tiny_images,
    tiny_model,
)

# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": -1}, "epochs and steps must not be negative"),
        ({"warmup_epochs": -1}, "epochs and steps must not be negative"),
        ({"steps": -1}, "epochs and steps must not be negative"),
        ({"batch_size": 0}, "the batch size at least 1"),
        ({"radii": ()}, r"radii must be finite and not negative, got \(\)"),
        ({"radii": (1.0, -2.0)}, "radii must be finite"),
        ({"radii": (math.inf,)}, "radii must be finite"),
        ({"min_epochs": -1}, "epochs and steps must not be negative"),
        ({"lr": 0.0}, "lr must be positive and a number that float32 has, got 0.0"),
        ({"lr": math.nan}, "lr must be positive and a number that float32 has, got nan"),
        ({"lr": 1e39}, "lr must be positive and a number that float32 has, got 1e"),
        ({"weight_decay": 1e300}, "weights must not be negative and numbers that float32 has, got"),
        ({"warmup_lr": 0.0}, "warm-up lr must be positive"),
        ({"step_size": -0.1}, "step size must be positive"),
        ({"max_gradient": 0.0}, "longest gradient must be positive"),
        ({"small_features": 0.0}, "small features must be positive"),
        ({"asr_weight": -5.0}, "weights must not be negative and numbers that float32 has, got"),
        ({"benign_weight": math.nan}, "weights must not be negative"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"early_stop": 7.0}, "early stop is a share of a batch in"),
        ({"goal": "untargeted", "target": 1}, "has no target class; leave target out"),
        *(
            ({"structure": name, "bn_outer": "train_clean_stats"}, f"structure {name} has no batch norm to train with")
            for name in ("linear", "linear-light", "conv", "mlp")
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        NPD(**changes)


@pytest.mark.parametrize(
    "setting",
    [
        "perturbation",
        "goal",
        "target",
        "init",
        "lr_policy",
        "norm",
        "step_rule",
        "loss_form",
        "bce_label",
        "bn_outer",
        "precision",
        "structure",
        "bce_terms",
    ],
)
def test_misspelt_settings_are_refused(setting: str, unchecked: None) -> None:
    """A typo must not quietly mean some other method."""
    wrong: dict[str, Any] = {setting: "mispelt"}
    with pytest.raises(BadInputError, match="mispelt"):
        NPD(**wrong)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (replace(SMALL, target=4), r"the target class must lie in 0..3, got 4"),
        (replace(SMALL, target=-1), r"the target class must lie in 0..3, got -1"),
        (replace(SMALL, site="after:featurs"), r"no such module; the nearest names are features"),
        (replace(SMALL, site="features"), "expected before:NAME or after:NAME"),
        (replace(SMALL, site="after:head"), "these are the logits; choose a place in front of the head"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: NPD, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        repaired(tiny_model(), tiny_images(8), settings)


@pytest.mark.parametrize("settings", [WARM, replace(SMALL, bn_outer="train_clean_stats")], ids=["warm-up", "outer"])
def test_a_last_batch_of_one_image_is_enough_for_maps_of_one_pixel(settings: NPD) -> None:
    """21 images in batches of 10; batch norm cannot train on a single value a channel."""
    network = nn.Sequential(nn.Conv2d(3, 6, 8), nn.Flatten(), nn.Linear(6, 4))
    result = repaired(made(network), tiny_images(21), replace(settings, site="after:0"))
    assert len(result.history) == 2
    start = repaired(made(network), tiny_images(21), replace(settings, site="after:0", epochs=0))
    assert largest_gap(polarizer_of(result), polarizer_of(start)) > 1e-4  # the single image has not stopped it


@pytest.mark.parametrize(
    "wrong", [{"target": True}, {"epochs": 1.5}, {"radii": (1.0, float("inf"))}, {"compile": "yes"}]
)
def test_values_of_another_type_or_infinite_ones_are_refused(wrong: dict[str, Any], unchecked: None) -> None:
    (name,) = wrong
    with pytest.raises(BadInputError, match=f"{name}"):
        repaired(tiny_model(), tiny_images(8), NPD(**wrong))


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": float("nan")}, {"weight_decay": -1.0}])
def test_a_schedule_checks_all_of_its_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="momentum must lie in"):
        Schedule(**wrong)


def test_images_that_do_not_fit_the_model_are_refused() -> None:
    clean = tiny_images(10, num_classes=5)
    with pytest.raises(BadInputError, match=r"toy: has label 4, but the model knows 4 classes \(0 to 3\)"):
        repaired(tiny_model(), clean, SMALL)
    with pytest.raises(BadInputError, match="toy: NPD needs at least 1 image, got 0"):
        repaired(tiny_model(), clean.select(torch.arange(0)), SMALL)
