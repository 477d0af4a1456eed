"""The methods' settings against the tables of the paper and of the authors' code, and one epoch of each."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.npd.presets import KNOWS_TARGET, VARIANTS, Preset, preset
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.normalize import PROFILES, Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from toys import assert_same, backbone_state, hooks, made, tiny_images

DATA_SETS = ("cifar10", "cifar100", "gtsrb", "tiny_imagenet")
METHODS = tuple(VARIANTS)


def _preset(method: str, name: Preset, profile: str | None = "cifar10", target: Any = 1) -> NPD:
    return preset(method, name=name, profile=profile, target=target if method in KNOWS_TARGET else None)


@pytest.mark.long
@pytest.mark.parametrize("profile", DATA_SETS)
@pytest.mark.parametrize("name", ["shipped", "paper", "reference"])
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_runs_an_epoch_for_every_data_set(method: str, name: Preset, profile: str) -> None:
    model = made(Normalized(PreActResNet18(4, width=2), *PROFILES[profile]))
    settings = _preset(method, name, profile)
    settings = replace(settings, epochs=1, warmup_epochs=min(1, settings.warmup_epochs))
    result = settings.repair(model, tiny_images(8, size=16), seed=0)
    assert result.notes == ()
    assert len(result.history) == 1
    assert result.site == ("before:layer4.1" if name == "shipped" else "before:layer4.1.conv1")
    assert_same(backbone_state(result.model), model.state_dict())
    assert hooks(result.model) == []
    assert bool(result.model(torch.rand(2, 3, 16, 16)).isfinite().all())


def test_methods_differ_in_perturbation_goal_and_target() -> None:
    found = {
        method: (chosen.perturbation, chosen.goal, chosen.target)
        for method in METHODS
        for chosen in (_preset(method, "shipped"),)
    }
    assert found == {
        "npd": ("sample", "targeted", None),
        "npd-tp": ("sample", "targeted", 1),
        "npd-tu": ("universal", "targeted", 1),
        "npd-up": ("sample", "untargeted", None),
        "npd-uu": ("universal", "untargeted", None),
    }


@pytest.mark.parametrize("profile", [*DATA_SETS, None])
@pytest.mark.parametrize("method", METHODS)
def test_paper_values(method: str, profile: str | None) -> None:
    """Section 4.1: T = 50, T0 = 5, batch 128, SGD .01/.9/5e-4, rho 3 (Tiny: 6), alpha .1, weights."""
    found = _preset(method, "paper", profile)
    weight = 0.1 if method in ("npd-tp", "npd-tu") else 0.4
    assert (found.epochs, found.warmup_epochs, found.batch_size) == (50, 5, 128)
    assert (found.lr, found.momentum, found.weight_decay, found.lr_policy) == (0.01, 0.9, 5e-4, "constant")
    assert found.max_gradient is None
    assert (found.norm, found.radii) == ("l2", (6.0,) if profile == "tiny_imagenet" else (3.0,))
    assert (found.step_size, found.steps, found.step_rule, found.early_stop) == (0.1, 2, "sign", None)
    assert (found.benign_weight, found.asr_weight, found.bce_weight) == (1.0, weight, weight)
    assert (found.site, found.init, found.bn_outer) == ("before:layer4.1.conv1", "default", "eval")
    assert (found.loss_form, found.bce_label) == ("stable", "true")


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("cifar10", (50, 5, 128, (3.0,), "sign", 0.4, 0.4, "eval")),
        ("cifar100", (100, 5, 256, (3.0,), "sign", 0.4, 0.4, "eval")),
        ("gtsrb", (50, 5, 128, (5.0,), "sign", 0.5, 0.5, "eval")),
        ("tiny_imagenet", (50, 0, 128, (6.0,), "gradient", 0.1, 1.0, "train_clean_stats")),
    ],
)
def test_reference_values(profile: str, expected: tuple[Any, ...]) -> None:
    """The authors' configurations; on Tiny ImageNet both terms of L_bce have one weight, and steps are normalised."""
    found = _preset("npd", "reference", profile)
    assert expected == (
        found.epochs,
        found.warmup_epochs,
        found.batch_size,
        found.radii,
        found.step_rule,
        found.asr_weight,
        found.bce_weight,
        found.bn_outer,
    )
    assert (found.loss_form, found.bce_label, found.early_stop) == ("clamped", "predicted", 0.6)
    for method in KNOWS_TARGET:
        known = _preset(method, "reference", profile)
        assert (known.asr_weight, known.bce_weight, known.radii) == (0.1, 0.1, found.radii)


@pytest.mark.parametrize("method", METHODS)
def test_shipped_values(method: str) -> None:
    """Alg. 1 to 3 with our engineering (docs/research/defaults.md)."""
    found = _preset(method, "shipped")
    strong = method in ("npd-tp", "npd-tu", "npd-uu")
    assert (found.radii, found.steps) == (((5.0,), 4) if strong else ((3.0,), 2))
    assert (found.norm, found.step_size, found.step_rule, found.early_stop) == ("l2", 0.1, "gradient", None)
    assert (found.benign_weight, found.asr_weight, found.bce_weight) == (1.0, 0.1, 0.05)
    assert (found.loss_form, found.bce_label, found.bce_terms, found.bn_outer) == ("stable", "true", "both", "eval")
    assert (found.site, found.structure, found.init) == (None, "conv-bn", "calibrated")
    assert (found.epochs, found.min_steps, found.min_epochs, found.max_epochs) == (None, 200, 10, 50)
    assert (found.batch_size, found.lr, found.lr_policy) == (64, 0.02, "cosine")
    assert (found.momentum, found.weight_decay, found.small_features) == (0.9, 5e-4, 0.1)


def test_shipped_values_are_the_defaults_of_the_class() -> None:
    assert preset("npd") == NPD()
    assert preset("npd", profile="tiny_imagenet") == NPD()


@pytest.mark.parametrize("method", KNOWS_TARGET)
def test_methods_that_know_the_target_need_it(method: str) -> None:
    with pytest.raises(BadInputError, match=f"{method} needs the attacker's class: give target"):
        preset(method)
    assert preset(method, target="next").target == "next"
    assert preset(method, target=0).target == 0


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(KNOWS_TARGET)))
def test_other_methods_refuse_a_target(method: str) -> None:
    for target in (0, "next"):
        with pytest.raises(BadInputError, match=f"{method} does not use a target: leave it out"):
            preset(method, target=target)


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(BadInputError, match="method cannot be 'npc': did you mean 'npd'"):
        preset("npc")


def test_a_misspelt_preset_or_data_set_is_refused(unchecked: None) -> None:
    """A typo must not quietly give another column of the table."""
    wrong: Any = "papr"
    with pytest.raises(BadInputError, match="papr"):
        preset("npd", name=wrong)
    for name in ("paper", "reference"):
        with pytest.raises(BadInputError, match="tiny-imagenet"):
            _preset("npd", name, "tiny-imagenet")
