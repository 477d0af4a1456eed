"""NPD as a whole: against a plain form of its algorithm, and what must hold for every setting."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer import metrics
from neural_polarizer.attacks import BadNets
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses import neural_polarizer as npd
from neural_polarizer.defenses.base import Defense, Purified
from neural_polarizer.defenses.neural_polarizer import NeuralPolarizer
from neural_polarizer.errors import BadInputError
from neural_polarizer.losses import asr_loss, boosted_cross_entropy
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.perturb import perturb
from neural_polarizer.polarizer import Polarizer
from neural_polarizer.rng import stream
from neural_polarizer.surgery import Site, cut, insert
from neural_polarizer.train import Schedule
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

SMALL = NeuralPolarizer(
    epochs=2,
    batch_size=10,
    radii=(1.0,),
    lr=0.05,
    lr_policy="constant",
    asr_weight=0.4,
    bce_weight=0.4,
    blind_spot_noise=0.0,
)
WARM = replace(SMALL, init="default", warmup_epochs=2, warmup_lr=0.01)

CASES: dict[str, NeuralPolarizer] = {
    "npd": SMALL,
    "npd-tp": replace(SMALL, target=1),
    "npd-tp, all-to-all": replace(SMALL, target="next"),
    "npd-tu": replace(SMALL, perturbation="universal", target=1),
    "npd-up": replace(SMALL, goal="untargeted"),
    "npd-uu": replace(SMALL, goal="untargeted", perturbation="universal"),
    "warm-up": WARM,
    "training statistics": replace(WARM, bn_outer="train_clean_stats"),
    "training statistics, tp": replace(WARM, bn_outer="train_clean_stats", target=1, epochs=1),
    "reference": replace(WARM, loss_form="clamped", bce_label="predicted", early_stop=0.6),
    "radii in turn": replace(SMALL, radii=(0.5, 1.0, 2.0)),
    "radii in turn, universal": replace(SMALL, radii=(0.5, 2.0), perturbation="universal"),
    "cosine": replace(SMALL, lr_policy="cosine", epochs=3),
    "gradient steps, linf": replace(SMALL, step_rule="gradient", norm="linf", radii=(0.05,), step_size=0.02),
    "other weights": replace(SMALL, benign_weight=0.5, asr_weight=1.5, bce_weight=0.1, momentum=0.5, weight_decay=0.1),
    "no inner steps": replace(SMALL, steps=0),
    "noise in blind spots": replace(SMALL, blind_spot_noise=0.1, target=1, batch_size=24),
    "noise in blind spots, universal": replace(SMALL, blind_spot_noise=0.1, perturbation="universal"),
}


def _repaired(model: nn.Module, clean: ImageSet, settings: NeuralPolarizer, seed: int = 0) -> Purified:
    return settings.repair(model, clean, seed=seed)


def _polarizer(purified: Purified) -> Polarizer:
    assert purified.polarizer is not None
    return purified.polarizer


# --- The plain form ---------------------------------------------------------------------------------------------------


def _projected(delta: Tensor, rho: float, norm: str) -> Tensor:
    if norm == "linf":
        return delta.clamp(-rho, rho)
    return delta * rho / float(delta.norm()) if float(delta.norm()) > rho else delta


def _delta(
    network: nn.Module, x: Tensor, wanted: Tensor, settings: NeuralPolarizer, radii: Tensor, start: Tensor
) -> Tensor:
    """Eqs. 5, 7, 8 and 10: whole forward passes, the samples projected one after another."""
    universal, sign = settings.perturbation == "universal", -1.0 if settings.goal == "targeted" else 1.0
    start = start[:1] if universal else start[: len(x)]
    delta = torch.stack([_projected(d, float(rho), settings.norm) for d, rho in zip(start, radii, strict=False)])
    for _ in range(settings.steps):
        point = delta.clone().requires_grad_()
        loss = F.cross_entropy(network((x + point).clamp(0, 1)), wanted, reduction="sum")
        rows = []
        for d, g, rho in zip(delta, torch.autograd.grad(loss, point)[0], radii, strict=False):
            step = g.sign() if settings.step_rule == "sign" else g / g.norm().clamp_min(1e-12) * math.sqrt(g.numel())
            moved = d + sign * settings.step_size * step
            rows.append(_projected(moved, float(rho), settings.norm))
        delta = torch.stack(rows)
        reached = (network((x + delta).clamp(0, 1)).argmax(dim=1) == wanted).float().mean()
        if settings.early_stop is not None and bool(reached > settings.early_stop):
            break
    return delta


def _plain_npd(model: nn.Module, clean: ImageSet, settings: NeuralPolarizer, seed: int) -> Polarizer:
    """Alg. 1 to 3 (spec 3.4) read aloud: nothing is cut, cached or reused."""
    x, y, k = to_pixels(clean.images), clean.labels, clean.num_classes
    polarizer = Polarizer(6).eval()
    network = insert(copy.deepcopy(model).eval().requires_grad_(False), Site.parse("after:features"), polarizer)
    if settings.init == "calibrated":
        with torch.no_grad():
            assert isinstance(model, Normalized)
            features = model.network.features((x - model.mean) / model.std)  # type: ignore[operator]
            polarizer.calibrate(features.mean(dim=(0, 2, 3)), features.var(dim=(0, 2, 3), unbiased=False))
    else:
        optimizer = torch.optim.SGD(polarizer.parameters(), lr=settings.warmup_lr)
        for epoch in range(settings.warmup_epochs):
            for rows in torch.randperm(len(y), generator=stream(seed, "warm-up", epoch)).split(settings.batch_size):
                polarizer.train()
                optimizer.zero_grad()
                F.cross_entropy(network(x[rows]), y[rows]).backward()
                optimizer.step()
    optimizer = torch.optim.SGD(
        polarizer.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    orders = [
        torch.randperm(len(y), generator=stream(seed, "optimise", epoch)) for epoch in range(settings.epochs or 0)
    ]
    batches = [rows for order in orders for rows in order.split(settings.batch_size)]
    for done, rows in enumerate(batches):
        if settings.lr_policy == "cosine":
            optimizer.param_groups[0]["lr"] = settings.lr * math.cos(math.pi / 2 * done / len(batches)) ** 2
        shape = (1 if settings.perturbation == "universal" else len(rows), *x.shape[1:])
        noise = torch.randn(shape, generator=stream(seed, "start", done))
        noise = settings.blind_spot_noise * noise * (x.amin(dim=0) == x.amax(dim=0))
        _plain_step(network, polarizer, optimizer, (x[rows], y[rows], k), settings, done, noise)
    return polarizer


def _plain_step(
    network: nn.Module,
    polarizer: Polarizer,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, int],
    settings: NeuralPolarizer,
    done: int,
    noise: Tensor,
) -> None:
    x, y, k = batch
    polarizer.eval()
    logits = network(x).detach()
    targets = logits.scatter(1, y[:, None], -math.inf).argmax(dim=1)
    if settings.target == "next":
        targets = (y + 1) % k
    elif settings.target is not None:
        targets = torch.full_like(y, settings.target)
    kept = targets != y
    wanted = targets if settings.goal == "targeted" else y
    radii = torch.tensor([settings.radii[i % len(settings.radii)] for i in range(len(y))])
    if settings.perturbation == "universal":
        radii = torch.tensor([settings.radii[done % len(settings.radii)]])
    delta = _delta(network, x[kept], wanted[kept], settings, radii, noise)
    x_bad = (x[kept] + delta).clamp(0, 1)
    if settings.bn_outer == "train_clean_stats":
        polarizer.train()
        benign = F.cross_entropy(network(x), y)
        clean_statistics = copy.deepcopy(dict(polarizer.named_buffers()))
        polarizer.norm.momentum = 0.0
        z = network(x_bad)
        polarizer.norm.momentum = 0.1
        assert_close(polarizer.norm.running_var, clean_statistics["norm.running_var"])
        polarizer.eval()
    else:
        benign, z = F.cross_entropy(network(x), y), network(x_bad)
    if settings.goal == "untargeted":
        targets = z.detach().scatter(1, y[:, None], -math.inf).argmax(dim=1)
    predicted = logits[kept].argmax(dim=1) if settings.bce_label == "predicted" else None
    loss = settings.benign_weight * benign
    loss = loss + settings.asr_weight * asr_loss(z, targets[kept], settings.loss_form)
    loss = loss + settings.bce_weight * boosted_cross_entropy(z, y[kept], settings.loss_form, predicted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("name", CASES)
def test_a_run_equals_the_plain_form_of_the_algorithm(name: str) -> None:
    settings, model, clean = CASES[name], tiny_model(), tiny_images(24)
    clean.images[:, :, :, :2] = 0  # a black border, so that there are blind spots
    found = _polarizer(_repaired(model, clean, settings, seed=4))
    expected = _plain_npd(model, clean, settings, seed=4)
    ours, theirs = found.state_dict(), expected.state_dict()
    for state in (ours, theirs):
        del state["norm.num_batches_tracked"]
    assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert largest_gap(found, Polarizer(6)) > 1e-2


# --- Invariants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_method_keeps_the_backbone_and_the_callers_model(name: str) -> None:
    model, clean = tiny_model(), tiny_images(24)
    model.train()
    model.get_submodule("network.pool").eval()
    model.get_parameter("network.head.bias").requires_grad_(False)
    model.get_parameter("network.head.weight").grad = torch.ones(4, 6)
    images, before = clean.images.clone(), snapshot(model)
    result = _repaired(model, clean, CASES[name])
    after = snapshot(model)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]
    assert torch.equal(clean.images, images)
    assert_same(backbone_state(result.model), before[0])
    assert hooks(result.model) == []
    assert not any(module.training for module in result.model.modules())
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    assert any(module is result.polarizer for module in result.model.modules())
    assert {id(value) for value in result.model.parameters()}.isdisjoint(id(value) for value in model.parameters())


def test_hooks_of_the_callers_model_stay_where_they_are() -> None:
    model, calls = tiny_model(), []
    handle = model.get_submodule("network.features").register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    _repaired(model, tiny_images(12), SMALL)
    assert snapshot(model)[1:] == before[1:]
    calls.clear()
    model(torch.rand(1, 3, 8, 8))
    assert calls == [1]
    handle.remove()
    assert hooks(model) == []


@pytest.mark.parametrize("site", [None, "before:features.3", "after:features.0", "after:pool"])
def test_calibrated_without_epochs_is_the_backbone_itself(site: str | None) -> None:
    model, clean = tiny_model(), tiny_images(24)
    result = _repaired(model, clean, replace(SMALL, epochs=0, site=site))
    pixels = to_pixels(tiny_images(16, seed=9).images)
    assert_close(result.model(pixels), model(pixels), rtol=1e-4, atol=1e-4)
    norm = _polarizer(result).norm
    assert norm.running_mean is not None
    assert float(norm.running_mean.abs().max()) > 0.05
    assert result.history == []


@pytest.mark.parametrize("batch_size", [5, 24, 100])
def test_calibration_takes_the_statistics_of_all_clean_images(batch_size: int) -> None:
    model, clean = tiny_model(), tiny_images(24)
    norm = _polarizer(_repaired(model, clean, replace(SMALL, epochs=0, batch_size=batch_size))).norm
    assert isinstance(model, Normalized)
    with torch.no_grad():
        features = model.network.features((to_pixels(clean.images) - model.mean) / model.std)  # type: ignore[operator]
    assert_close(norm.running_mean, features.mean(dim=(0, 2, 3)))
    assert_close(norm.running_var, features.var(dim=(0, 2, 3), unbiased=False))


def test_default_init_without_epochs_is_the_backbone_within_a_thousandth() -> None:
    model, clean = tiny_model(), tiny_images(24)
    result = _repaired(model, clean, replace(SMALL, init="default", warmup_epochs=0, epochs=0))
    pixels = to_pixels(clean.images)
    with torch.no_grad():
        gap = (result.model(pixels) - model(pixels)).abs().max() / model(pixels).abs().max()
    assert 0 < float(gap) < 1e-3


def test_running_statistics_move_in_the_warm_up_and_stand_still_in_eval_mode() -> None:
    model, clean = tiny_model(), tiny_images(24)
    fresh = dict(Polarizer(6).named_buffers())
    warm = dict(_polarizer(_repaired(model, clean, replace(WARM, epochs=0))).named_buffers())
    for name in ("norm.running_mean", "norm.running_var"):
        assert float((warm[name] - fresh[name]).abs().max()) > 0.01
    later = dict(_polarizer(_repaired(model, clean, replace(WARM, epochs=2))).named_buffers())
    assert_same(later, warm)


def test_training_statistics_follow_the_clean_images_alone() -> None:
    """One batch from a new layer: running = 0.9 (0, 1) + 0.1 of the clean batch; by hand."""
    model, clean = tiny_model(), tiny_images(24)
    settings = replace(
        SMALL, init="default", warmup_epochs=0, bn_outer="train_clean_stats", epochs=1, batch_size=24, radii=(5.0,)
    )
    norm = _polarizer(_repaired(model, clean, settings)).norm
    assert isinstance(model, Normalized)
    with torch.no_grad():
        features = model.network.features((to_pixels(clean.images) - model.mean) / model.std)  # type: ignore[operator]
    assert_close(norm.running_mean, 0.1 * features.mean(dim=(0, 2, 3)))
    assert_close(norm.running_var, 0.9 + 0.1 * features.var(dim=(0, 2, 3)))
    assert norm.momentum == 0.1


# --- The fast path ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["npd", "npd-tu", "npd-up", "training statistics", "reference"])
def test_the_cut_changes_nothing_but_the_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = tiny_model(), tiny_images(24)
    fast = _repaired(model, clean, CASES[name])
    monkeypatch.setattr(npd, "cut", lambda *_: "not today")
    slow = _repaired(model, clean, CASES[name])
    assert fast.notes == ()
    assert slow.notes == ("full forward passes instead of cached features: not today",)
    assert_close(_polarizer(fast).state_dict(), _polarizer(slow).state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("site", ["before:inner", "after:stem", "after:last"])
def test_the_cut_changes_nothing_where_shortcuts_lead_around_it(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = made(Residual()), tiny_images(20)
    settings = replace(SMALL, site=site, lr=0.01)
    fast = _repaired(model, clean, settings)
    monkeypatch.setattr(npd, "cut", lambda *_: "not today")
    slow = _repaired(model, clean, settings)
    assert (fast.notes, fast.site) == ((), site)
    assert_close(_polarizer(fast).state_dict(), _polarizer(slow).state_dict(), rtol=1e-3, atol=1e-4)


def test_a_shortcut_that_is_added_to_in_place_stays_as_it_was_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    class InPlace(Residual):
        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images)
            features = features.add_(self.inner(features.relu()))
            return self.head(self.last(features).mean(dim=(2, 3)))

    model, clean = made(InPlace()), tiny_images(20)
    settings = replace(SMALL, site="after:inner", lr=0.01)
    fast = _repaired(model, clean, settings)
    monkeypatch.setattr(npd, "cut", lambda *_: "not today")
    slow = _repaired(model, clean, settings)
    assert fast.notes == ()
    assert_close(_polarizer(fast).state_dict(), _polarizer(slow).state_dict(), rtol=1e-3, atol=1e-4)


def test_the_papers_site_inside_a_residual_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = made(PreActResNet18(4, width=2)), tiny_images(12, size=16)
    settings = replace(SMALL, site="before:layer4.1.conv1", epochs=1, lr=0.01)
    fast = _repaired(model, clean, settings)
    monkeypatch.setattr(npd, "cut", lambda *_: "not today")
    slow = _repaired(model, clean, settings)
    assert fast.notes == ()
    assert_close(_polarizer(fast).state_dict(), _polarizer(slow).state_dict(), rtol=1e-3, atol=1e-4)


def test_the_prefix_sees_each_clean_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without inner steps and epochs, the frozen part runs once over the images and never again."""
    model, clean, counts = tiny_model(), tiny_images(24), [0]

    def counting(*args: Any) -> Any:
        parts = cut(*args)
        assert not isinstance(parts, str)
        parts.prefix.register_forward_hook(lambda _m, args, _out: counts.__setitem__(0, counts[0] + len(args[0])))
        return parts

    monkeypatch.setattr(npd, "cut", counting)
    _repaired(model, clean, replace(WARM, epochs=0))
    assert counts == [24]
    _repaired(model, clean, replace(WARM, epochs=1, steps=2))
    assert counts == [24 + 24 + 3 * 24]


def test_an_untraceable_network_is_purified_all_the_same_and_the_notes_say_so() -> None:
    clean = tiny_images(24)
    plain = _repaired(made(TinyNet()), clean, SMALL)
    result = _repaired(made(Untraceable()), clean, SMALL)
    (note,) = result.notes
    assert note.startswith("full forward passes instead of cached features: the network cannot be traced: TraceError")
    assert_close(_polarizer(result).state_dict(), _polarizer(plain).state_dict(), rtol=1e-3, atol=1e-4)


# --- Known targets ----------------------------------------------------------------------------------------------------


def test_images_of_the_known_target_do_not_enter_the_adversarial_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(logits: Tensor, targets: Tensor, form: Any) -> Tensor:
        seen.append(targets)
        return asr_loss(logits, targets, form)

    monkeypatch.setattr(npd, "asr_loss", spy)
    clean = tiny_images(24)
    _repaired(tiny_model(), clean, replace(SMALL, target=2, epochs=1, batch_size=24))
    _repaired(tiny_model(), clean, replace(SMALL, epochs=1, batch_size=24))
    _repaired(tiny_model(), clean, replace(SMALL, target="next", epochs=1, batch_size=24))
    assert [len(targets) for targets in seen] == [18, 24, 24]
    assert set(seen[0].tolist()) == {2}


@pytest.mark.parametrize("rule", ["sign", "gradient"])
@pytest.mark.parametrize("bn_outer", ["eval", "train_clean_stats"])
@pytest.mark.parametrize("perturbation", ["sample", "universal"])
def test_a_batch_of_the_target_class_alone_has_the_benign_loss_alone(
    rule: Any, bn_outer: Any, perturbation: Any
) -> None:
    clean = tiny_images(24)
    only_target = clean.select(clean.labels == 1)
    settings = replace(SMALL, target=1, step_rule=rule, bn_outer=bn_outer, perturbation=perturbation, batch_size=3)
    result = _repaired(tiny_model(), only_target, settings)
    assert result.notes == ()
    assert len(result.history) == 2
    for record in result.history:
        assert math.isfinite(record["loss"])
        assert record["loss"] == pytest.approx(record["loss_benign"])
    start = _repaired(tiny_model(), only_target, replace(settings, epochs=0))
    assert largest_gap(_polarizer(result), _polarizer(start)) > 0


def test_mixed_batches_beside_one_of_the_target_class_alone_still_learn() -> None:
    clean = tiny_images(25)
    single = replace(SMALL, target=1, batch_size=1, epochs=1, lr=1e-3)
    result = _repaired(tiny_model(), clean, single)
    assert result.notes == ()
    assert len(result.history) == 1


# --- Losing the way ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_keeps_the_last_finite_polarizer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean, calls = tiny_model(), tiny_images(20), [0]
    good = _repaired(model, clean, replace(SMALL, epochs=2))

    def sometimes(logits: Tensor, targets: Tensor, form: Any) -> Tensor:
        calls[0] += 1
        return asr_loss(logits, targets, form) * (math.nan if calls[0] == 6 else 1.0)  # the second batch of epoch 3

    monkeypatch.setattr(npd, "asr_loss", sometimes)
    result = _repaired(model, clean, replace(SMALL, epochs=5))
    assert result.notes == ("the loss was not finite in epoch 3; kept the polarizer of epoch 2",)
    assert_same(_polarizer(result).state_dict(), _polarizer(good).state_dict())
    assert [record["epoch"] for record in result.history] == [1.0, 2.0]
    assert bool(result.model(to_pixels(clean.images)).isfinite().all())


def test_a_learning_rate_that_is_far_too_high_still_gives_a_finite_model() -> None:
    model, clean = tiny_model(), tiny_images(20)
    result = _repaired(model, clean, replace(SMALL, lr=1e30, epochs=3))
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())
    assert "not finite in epoch 1; kept the polarizer of epoch 0" in result.notes[0]
    assert result.history == []


# --- Randomness and records -------------------------------------------------------------------------------------------


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    model, clean = tiny_model(), tiny_images(24)
    for settings in (SMALL, WARM):
        torch.manual_seed(1)
        first = _polarizer(_repaired(model, clean, settings, seed=7)).state_dict()
        torch.manual_seed(2)
        again = _polarizer(_repaired(model, clean, settings, seed=7)).state_dict()
        other = _polarizer(_repaired(model, clean, settings, seed=8)).state_dict()
        assert_same(first, again)
        assert not torch.equal(first["mix.weight"], other["mix.weight"])


def test_a_run_leaves_the_global_generator_alone() -> None:
    """A user's own random numbers must not depend on whether a model was purified in between."""
    model, clean = tiny_model(), tiny_images(24)
    before = torch.get_rng_state()
    _repaired(model, clean, WARM)
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


def test_the_number_of_epochs_follows_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 10 steps, 2 epochs, at most 4: with 3, 1 and 24 steps an epoch that makes 4, 4 (not 10) and 2."""
    for name, value in (("MIN_STEPS", 10), ("MIN_EPOCHS", 2), ("MAX_EPOCHS", 4)):
        monkeypatch.setattr(npd, name, value)
    for batch_size, epochs in ((10, 4), (24, 4), (1, 2)):
        settings = replace(SMALL, epochs=None, batch_size=batch_size, lr=1e-3, lr_policy="cosine")
        told: list[tuple[str, int, int]] = []
        result = settings.repair(
            tiny_model(), tiny_images(24), seed=0, progress=lambda *step, told=told: told.append(step)
        )
        assert len(result.history) == epochs
        assert told[-1] == ("optimise", len(told), len(told))


def test_blind_spots_are_the_pixels_that_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Tensor | None] = []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        starts.append(kwargs["start"])
        return perturb(*args, **kwargs)

    monkeypatch.setattr(npd, "perturb", spy)
    settings = replace(SMALL, blind_spot_noise=0.1, epochs=1, batch_size=24)
    clean = tiny_images(24)
    _repaired(tiny_model(), clean, settings)
    clean.images[:, :, 0] = 7
    clean.images[:, :, 1] = 7
    clean.images[5, :, 1] = 8  # one image is enough for a pixel not to be blind
    _repaired(tiny_model(), clean, settings)
    assert starts[0] is None
    assert starts[1] is not None
    assert bool((starts[1][:, :, 0] != 0).all())
    assert not bool(starts[1][:, :, 1:].any())
    assert float(starts[1][:, :, 0].std()) == pytest.approx(0.1, rel=0.2)


def test_the_record_of_an_epoch_is_the_mean_over_images_not_batches() -> None:
    """Benign loss alone, a vanishing step, batches of 10, 10 and 4: the mean over all 24 images; by hand."""
    model, clean = tiny_model(), tiny_images(24)
    settings = replace(SMALL, asr_weight=0.0, bce_weight=0.0, lr=1e-12, epochs=1)
    (record,) = _repaired(model, clean, settings).history
    with torch.no_grad():
        logits = model(to_pixels(clean.images))
    assert record["loss"] == pytest.approx(float(F.cross_entropy(logits, clean.labels)), rel=1e-4)
    assert record["clean_accuracy"] == pytest.approx(float((logits.argmax(1) == clean.labels).float().mean()))


def test_bf16_autocast_comes_close_to_float32() -> None:
    model, clean = tiny_model(), tiny_images(24)
    single = _polarizer(_repaired(model, clean, replace(SMALL, epochs=1, lr=0.01, steps=0)))
    half = _repaired(model, clean, replace(SMALL, epochs=1, lr=0.01, steps=0, precision="bf16"))
    assert all(value.dtype != torch.bfloat16 for value in half.model.state_dict().values())
    assert 0 < largest_gap(_polarizer(half), single) < 0.05
    assert half.notes == ()


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
        ({"lr": 0.0}, "lr and step size must be positive, got 0.0 and 0.1"),
        ({"step_size": -0.1}, "lr and step size must be positive"),
        ({"lr": math.nan}, "lr and step size must be positive"),
        ({"blind_spot_noise": -0.1}, "blind spot noise must be finite and not negative, got -0.1"),
        ({"blind_spot_noise": math.nan}, "blind spot noise must be finite"),
        ({"goal": "untargeted", "target": 1}, "has no target class; leave target out"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        NeuralPolarizer(**changes)


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
    ],
)
def test_misspelt_settings_are_refused(setting: str, unchecked: None) -> None:
    """A typo must not quietly mean some other method."""
    wrong: dict[str, Any] = {setting: "mispelt"}
    with pytest.raises(BadInputError, match="mispelt"):
        NeuralPolarizer(**wrong)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (replace(SMALL, target=4), r"the target class must lie in 0..3, got 4"),
        (replace(SMALL, target=-1), r"the target class must lie in 0..3, got -1"),
        (replace(SMALL, site="after:featurs"), r"no such module; the nearest names are features"),
        (replace(SMALL, site="features"), "expected before:NAME or after:NAME"),
        (replace(SMALL, site="after:head"), r"needs a feature map N x C x H x W, found \(4, 4\)"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: NeuralPolarizer, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        _repaired(tiny_model(), tiny_images(8), settings)


@pytest.mark.parametrize("settings", [WARM, replace(SMALL, bn_outer="train_clean_stats")], ids=["warm-up", "outer"])
def test_a_last_batch_of_one_image_is_enough_for_maps_of_one_pixel(settings: NeuralPolarizer) -> None:
    """21 images in batches of 10; batch norm cannot train on a single value a channel."""
    network = nn.Sequential(nn.Conv2d(3, 6, 8), nn.Flatten(), nn.Linear(6, 4))
    result = _repaired(made(network), tiny_images(21), replace(settings, site="after:0"))
    assert len(result.history) == 2


def test_images_that_do_not_fit_the_model_are_refused() -> None:
    clean = tiny_images(10, num_classes=5)
    with pytest.raises(BadInputError, match=r"toy: has label 4, but the model knows 4 classes \(0 to 3\)"):
        _repaired(tiny_model(), clean, SMALL)
    with pytest.raises(BadInputError, match="toy: the clean set is empty; NPD needs at least a few images"):
        _repaired(tiny_model(), clean.select(torch.arange(0)), SMALL)


# --- A backdoor goes --------------------------------------------------------------------------------------------------


def test_npd_takes_a_planted_backdoor_out() -> None:
    """End to end on synthetic images: BadNets in a tiny network, 80 clean images, fixed seeds."""
    train, test, clean = (tiny_images(n, size=10, seed=seed) for n, seed in ((1200, 1), (400, 2), (80, 3)))
    attack = BadNets(target=0, size=3)
    victim = made(Normalized(TinyNet(width=16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), 1)
    recipe = Schedule(epochs=12, batch_size=60, lr=0.1, policy="one-cycle", crop_padding=0, flip=False)
    attack.plant(victim, train, schedule=recipe, seed=0)
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
