"""NPD as a whole: what must hold for every setting."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer import metrics
from neural_polarizer.attacks import BadNets
from neural_polarizer.data.images import to_pixels
from neural_polarizer.data.poison import poison
from neural_polarizer.defenses import engine
from neural_polarizer.defenses.base import Defense
from neural_polarizer.defenses.npd import objective
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import cut
from neural_polarizer.losses import asr_loss
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.train.fit import fit
from neural_polarizer.train.schedule import Schedule
from npd_cases import CASES, SMALL, WARM, polarizer_of, repaired
from toys import (
    Residual,
    TinyNet,
    Untraceable,
    assert_same,
    backbone_state,
    hooks,
    largest_gap,
    made,
    snapshot,
    tiny_images,
    tiny_model,
)

# --- Invariants -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_every_method_keeps_the_backbone_and_the_callers_model(name: str) -> None:
    model, clean = tiny_model(), tiny_images(24)
    model.train()
    model.get_submodule("network.pool").eval()
    model.get_parameter("network.head.bias").requires_grad_(False)
    model.get_parameter("network.head.weight").grad = torch.ones(4, 6)
    images, before = clean.images.clone(), snapshot(model)
    result = repaired(model, clean, CASES[name])
    after = snapshot(model)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]
    assert torch.equal(clean.images, images)
    assert_same(backbone_state(result.model), before[0])
    assert hooks(result.model) == []
    modes = {name.replace(".module", ""): part.training for name, part in result.model.named_modules()}
    assert all(modes[name] is part.training for name, part in model.named_modules())
    flags = {name.replace(".module", ""): each.requires_grad for name, each in result.model.named_parameters()}
    assert all(flags[name] is each.requires_grad for name, each in model.named_parameters())
    assert any(module is result.polarizer for module in result.model.modules())
    assert {id(value) for value in result.model.parameters()}.isdisjoint(id(value) for value in model.parameters())


def test_hooks_of_the_callers_model_stay_where_they_are() -> None:
    model, calls = tiny_model(), []
    handle = model.get_submodule("network.features").register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    repaired(model, tiny_images(12), SMALL)
    assert snapshot(model)[1:] == before[1:]
    calls.clear()
    model(torch.rand(1, 3, 8, 8))
    assert calls == [1]
    handle.remove()
    assert hooks(model) == []


@pytest.mark.parametrize("site", [None, "before:features.3", "after:features.0", "after:pool"])
def test_calibrated_without_epochs_is_the_backbone_itself(site: str | None) -> None:
    model, clean = tiny_model(), tiny_images(24)
    result = repaired(model, clean, replace(SMALL, epochs=0, site=site))
    pixels = to_pixels(tiny_images(16, seed=9).images)
    assert_close(result.model(pixels), model(pixels), rtol=1e-4, atol=1e-4)
    norm = polarizer_of(result).norm
    assert norm.running_mean is not None
    assert float(norm.running_mean.abs().max()) > 0.05
    assert result.history == []


@pytest.mark.parametrize("batch_size", [5, 24, 100])
def test_calibration_takes_the_statistics_of_all_clean_images(batch_size: int) -> None:
    model, clean = tiny_model(), tiny_images(24)
    norm = polarizer_of(repaired(model, clean, replace(SMALL, epochs=0, batch_size=batch_size))).norm
    assert isinstance(model, Normalized)
    with torch.no_grad():
        features = model.network.features((to_pixels(clean.images) - model.mean) / model.std)  # type: ignore[operator]
    assert_close(norm.running_mean, features.mean(dim=(0, 2, 3)))
    assert_close(norm.running_var, features.var(dim=(0, 2, 3), unbiased=False))


def test_default_init_without_epochs_is_the_backbone_within_a_thousandth() -> None:
    model, clean = tiny_model(), tiny_images(24)
    result = repaired(model, clean, replace(SMALL, init="default", warmup_epochs=0, epochs=0))
    pixels = to_pixels(clean.images)
    with torch.no_grad():
        gap = (result.model(pixels) - model(pixels)).abs().max() / model(pixels).abs().max()
    assert 0 < float(gap) < 1e-3


def test_running_statistics_move_in_the_warm_up_and_stand_still_in_eval_mode() -> None:
    model, clean = tiny_model(), tiny_images(24)
    fresh = dict(Polarizer(6).named_buffers())
    warm = dict(polarizer_of(repaired(model, clean, replace(WARM, epochs=0))).named_buffers())
    for name in ("norm.running_mean", "norm.running_var"):
        assert float((warm[name] - fresh[name]).abs().max()) > 0.01
    later = dict(polarizer_of(repaired(model, clean, replace(WARM, epochs=2))).named_buffers())
    assert_same(later, warm)


def test_training_statistics_follow_the_clean_images_alone() -> None:
    """One batch from a new layer: running = 0.9 (0, 1) + 0.1 of the clean batch; by hand."""
    model, clean = tiny_model(), tiny_images(24)
    settings = replace(
        SMALL, init="default", warmup_epochs=0, bn_outer="train_clean_stats", epochs=1, batch_size=24, radii=(5.0,)
    )
    norm = polarizer_of(repaired(model, clean, settings)).norm
    assert isinstance(model, Normalized)
    with torch.no_grad():
        features = model.network.features((to_pixels(clean.images) - model.mean) / model.std)  # type: ignore[operator]
    assert_close(norm.running_mean, 0.1 * features.mean(dim=(0, 2, 3)))
    assert_close(norm.running_var, 0.9 + 0.1 * features.var(dim=(0, 2, 3)))
    assert norm.momentum == 0.1


# --- The fast path ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["npd", "npd-tu", "npd-up", "training statistics", "reference"])
def test_the_cut_changes_nothing_but_the_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = tiny_model(), tiny_images(24)
    fast = repaired(model, clean, CASES[name])
    monkeypatch.setattr(engine, "cut", lambda *_: "not today")
    slow = repaired(model, clean, CASES[name])
    assert fast.notes == ()
    assert slow.notes == ("full forward passes instead of cached features: not today",)
    assert_close(polarizer_of(fast).state_dict(), polarizer_of(slow).state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("site", ["before:inner", "after:stem", "after:last"])
def test_the_cut_changes_nothing_where_shortcuts_lead_around_it(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = made(Residual()), tiny_images(20)
    settings = replace(SMALL, site=site, lr=0.01)
    fast = repaired(model, clean, settings)
    monkeypatch.setattr(engine, "cut", lambda *_: "not today")
    slow = repaired(model, clean, settings)
    assert (fast.notes, fast.site) == ((), site)
    assert_close(polarizer_of(fast).state_dict(), polarizer_of(slow).state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bn_outer", ["eval", "train_clean_stats"])
def test_a_shortcut_that_is_added_to_in_place_stays_as_it_was_cached(
    bn_outer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InPlace(Residual):
        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images)
            features = features.add_(self.inner(features.relu()))
            return self.head(self.last(features).mean(dim=(2, 3)))

    model, clean = made(InPlace()), tiny_images(20)
    settings = replace(SMALL, site="after:inner", lr=0.01, bn_outer=bn_outer)
    fast = repaired(model, clean, settings)
    monkeypatch.setattr(engine, "cut", lambda *_: "not today")
    slow = repaired(model, clean, settings)
    assert fast.notes == ()
    assert_close(polarizer_of(fast).state_dict(), polarizer_of(slow).state_dict(), rtol=1e-3, atol=1e-4)


def test_the_papers_site_inside_a_residual_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = made(PreActResNet18(4, width=2)), tiny_images(12, size=16)
    settings = replace(SMALL, site="before:layer4.1.conv1", epochs=1, lr=0.01)
    fast = repaired(model, clean, settings)
    monkeypatch.setattr(engine, "cut", lambda *_: "not today")
    slow = repaired(model, clean, settings)
    assert fast.notes == ()
    assert_close(polarizer_of(fast).state_dict(), polarizer_of(slow).state_dict(), rtol=1e-3, atol=1e-4)


def test_the_prefix_sees_each_clean_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without inner steps and epochs, the frozen part runs once over the images and never again."""
    model, clean, counts = tiny_model(), tiny_images(24), [0]

    def counting(*args: Any) -> Any:
        parts = cut(*args)
        assert not isinstance(parts, str)
        parts.prefix.register_forward_hook(lambda _m, args, _out: counts.__setitem__(0, counts[0] + len(args[0])))
        return parts

    monkeypatch.setattr(engine, "cut", counting)
    repaired(model, clean, replace(WARM, epochs=0))
    assert counts == [24]
    repaired(model, clean, replace(WARM, epochs=1, steps=2))
    assert counts == [24 + 24 + 3 * 24]


def test_an_untraceable_network_is_purified_all_the_same_and_the_notes_say_so() -> None:
    clean = tiny_images(24)
    plain = repaired(made(TinyNet()), clean, SMALL)
    result = repaired(made(Untraceable()), clean, SMALL)
    (note,) = result.notes
    assert note.startswith("full forward passes instead of cached features: the network cannot be traced: TraceError")
    assert_close(polarizer_of(result).state_dict(), polarizer_of(plain).state_dict(), rtol=1e-3, atol=1e-4)


# --- Known targets ----------------------------------------------------------------------------------------------------


def test_images_of_the_known_target_do_not_enter_the_adversarial_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(logits: Tensor, targets: Tensor, form: Any) -> Tensor:
        seen.append(targets)
        return asr_loss(logits, targets, form)

    monkeypatch.setattr(objective, "asr_loss", spy)
    clean = tiny_images(24)
    repaired(tiny_model(), clean, replace(SMALL, target=2, epochs=1, batch_size=24))
    repaired(tiny_model(), clean, replace(SMALL, epochs=1, batch_size=24))
    repaired(tiny_model(), clean, replace(SMALL, target="next", epochs=1, batch_size=24))
    assert [len(targets) for targets in seen] == [18, 24, 24]
    assert set(seen[0].tolist()) == {2}


@pytest.mark.long
@pytest.mark.parametrize("rule", ["sign", "gradient"])
@pytest.mark.parametrize("bn_outer", ["eval", "train_clean_stats"])
@pytest.mark.parametrize("perturbation", ["sample", "universal"])
def test_a_batch_of_the_target_class_alone_has_the_benign_loss_alone(
    rule: Any, bn_outer: Any, perturbation: Any
) -> None:
    clean = tiny_images(24)
    only_target = clean.select(clean.labels == 1)
    settings = replace(SMALL, target=1, step_rule=rule, bn_outer=bn_outer, perturbation=perturbation, batch_size=3)
    result = repaired(tiny_model(), only_target, settings)
    assert result.notes == ()
    assert len(result.history) == 2
    for record in result.history:
        assert math.isfinite(record["loss"])
        assert record["loss"] == pytest.approx(record["loss_benign"])
    start = repaired(tiny_model(), only_target, replace(settings, epochs=0))
    assert largest_gap(polarizer_of(result), polarizer_of(start)) > 0


def test_mixed_batches_beside_one_of_the_target_class_alone_still_learn() -> None:
    clean = tiny_images(25)
    single = replace(SMALL, target=1, batch_size=1, epochs=1, lr=1e-3)
    result = repaired(tiny_model(), clean, single)
    assert result.notes == ()
    assert len(result.history) == 1
    start = repaired(tiny_model(), clean, replace(single, epochs=0))
    assert largest_gap(polarizer_of(result), polarizer_of(start)) > 1e-4


# --- Losing the way ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_keeps_the_last_finite_polarizer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean, calls = tiny_model(), tiny_images(20), [0]
    good = repaired(model, clean, replace(SMALL, epochs=2))

    def sometimes(logits: Tensor, targets: Tensor, form: Any) -> Tensor:
        calls[0] += 1
        return asr_loss(logits, targets, form) * (math.nan if calls[0] == 6 else 1.0)  # the second batch of epoch 3

    monkeypatch.setattr(objective, "asr_loss", sometimes)
    result = repaired(model, clean, replace(SMALL, epochs=5))
    assert result.notes == ("the loss was not finite in epoch 3; kept the polarizer of epoch 2",)
    assert_same(polarizer_of(result).state_dict(), polarizer_of(good).state_dict())
    assert [record["epoch"] for record in result.history] == [1.0, 2.0]
    assert bool(result.model(to_pixels(clean.images)).isfinite().all())


def test_a_learning_rate_that_is_far_too_high_still_gives_a_finite_model() -> None:
    model, clean = tiny_model(), tiny_images(20)
    result = repaired(model, clean, replace(SMALL, lr=1e30, epochs=3))
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())
    assert "not finite in epoch 1; kept the polarizer of epoch 0" in result.notes[0]
    assert result.history == []


# --- Randomness and records -------------------------------------------------------------------------------------------


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    model, clean = tiny_model(), tiny_images(24)
    for settings in (SMALL, WARM):
        torch.manual_seed(1)
        first = polarizer_of(repaired(model, clean, settings, seed=7)).state_dict()
        torch.manual_seed(2)
        again = polarizer_of(repaired(model, clean, settings, seed=7)).state_dict()
        other = polarizer_of(repaired(model, clean, settings, seed=8)).state_dict()
        assert_same(first, again)
        assert not torch.equal(first["mix.weight"], other["mix.weight"])


def test_a_run_leaves_the_global_generator_alone() -> None:
    """A user's own random numbers must not depend on whether a model was purified in between."""
    model, clean = tiny_model(), tiny_images(24)
    before = torch.get_rng_state()
    repaired(model, clean, WARM)
    assert torch.equal(torch.get_rng_state(), before)


def test_history_progress_and_seconds_tell_the_run() -> None:
    told: list[tuple[str, int, int]] = []
    result = WARM.repair(tiny_model(), tiny_images(24), seed=0, progress=lambda *step: told.append(step))
    assert told == [("warm-up", i + 1, 6) for i in range(6)] + [("optimise", i + 1, 6) for i in range(6)]
    assert [record["epoch"] for record in result.history] == [1.0, 2.0]
    for record in result.history:
        parts = record["loss_benign"] + 0.4 * record["loss_asr"] + 0.4 * record["loss_bce"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5)
        assert 0 <= record["clean_accuracy"] <= 1
        assert 0 <= record["surrogate_success"] <= 1
    assert set(result.seconds) == {"features", "warm_up", "optimise"}
    assert result.site == "after:features"
    assert isinstance(WARM, Defense)


def test_the_record_of_an_epoch_is_the_mean_over_images_not_batches() -> None:
    """Benign loss alone, a vanishing step, batches of 10, 10 and 4: the mean over all 24 images; by hand."""
    model, clean = tiny_model(), tiny_images(24)
    settings = replace(SMALL, asr_weight=0.0, bce_weight=0.0, lr=1e-12, epochs=1)
    (record,) = repaired(model, clean, settings).history
    with torch.no_grad():
        logits = model(to_pixels(clean.images))
    assert record["loss"] == pytest.approx(float(F.cross_entropy(logits, clean.labels)), rel=1e-4)
    assert record["clean_accuracy"] == pytest.approx(float((logits.argmax(1) == clean.labels).float().mean()))


def test_bf16_autocast_comes_close_to_float32() -> None:
    model, clean = tiny_model(), tiny_images(24)
    single = polarizer_of(repaired(model, clean, replace(SMALL, epochs=1, lr=0.01, steps=0)))
    half = repaired(model, clean, replace(SMALL, epochs=1, lr=0.01, steps=0, precision="bf16"))
    assert all(value.dtype != torch.bfloat16 for value in half.model.state_dict().values())
    assert 0 < largest_gap(polarizer_of(half), single) < 0.05
    assert half.notes == ()


# --- A backdoor goes --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_npd_takes_a_planted_backdoor_out() -> None:
    """End to end on synthetic images: BadNets in a tiny network, 80 clean images, fixed seeds."""
    train, test, clean = (tiny_images(n, size=10, seed=seed) for n, seed in ((1200, 1), (400, 2), (80, 3)))
    attack = BadNets(target=0, size=3)
    victim = made(Normalized(TinyNet(width=16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), 1)
    recipe = Schedule(epochs=12, batch_size=60, lr=0.1, policy="one-cycle", crop_padding=0, flip=False)
    fit(victim, poison(train, attack, rate=0.1, seed=0)[0], recipe, seed=0)
    triggered = attack.triggered(test)
    before = metrics.evaluate(victim, test, triggered)
    result = replace(SMALL, epochs=25, batch_size=40, radii=(1.5,), lr=0.02).repair(victim, clean, seed=0)
    after = metrics.evaluate(result.model, test, triggered)
    assert before.acc is not None
    assert before.asr is not None
    assert after.acc is not None
    assert after.asr is not None
    assert before.acc > 0.95
    assert before.asr > 0.9
    assert after.asr < 0.2
    assert after.acc > before.acc - 0.05
    effectiveness = metrics.defense_effectiveness(before, after)
    assert effectiveness is not None
    assert effectiveness > 0.85
