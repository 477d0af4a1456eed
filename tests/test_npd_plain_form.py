"""NPD against a plain form of Alg. 1 to 3, with nothing cut, cached or reused; and what that comparison notices."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from benchmark_scripts import script
from neural_polarizer import perturb
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.npd import NPD, aims, algorithm
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import Site, insert
from neural_polarizer.losses import asr_loss, boosted_cross_entropy
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.rng import stream
from npd_cases import CASES, SMALL, polarizer_of, repaired
from toys import largest_gap, tiny_images, tiny_model

# --- The plain form ---------------------------------------------------------------------------------------------------


def _projected(delta: Tensor, rho: float, norm: str) -> Tensor:
    if norm == "linf":
        return delta.clamp(-rho, rho)
    return delta * rho / float(delta.norm()) if float(delta.norm()) > rho else delta


def _clip(values: Tensor) -> Tensor:
    """To [0, 1]; the borders themselves have a gradient."""
    return values.where(values >= 0, 0.0).where(values <= 1, 1.0)


def _delta(network: nn.Module, x: Tensor, wanted: Tensor, settings: NPD, done: int) -> Tensor:
    """Eqs. 5, 7, 8 and 10: whole forward passes, the samples projected one after another."""
    universal, sign = settings.perturbation == "universal", -1.0 if settings.goal == "targeted" else 1.0
    delta = torch.zeros_like(x[:1] if universal else x)
    radii = [settings.radii[(done if universal else i) % len(settings.radii)] for i in range(len(delta))]
    for _ in range(settings.steps):
        point = delta.clone().requires_grad_()
        loss = F.cross_entropy(network(_clip(x + point)), wanted, reduction="sum")
        rows = []
        for d, g, rho in zip(delta, torch.autograd.grad(loss, point)[0], radii, strict=True):
            step = g.sign() if settings.step_rule == "sign" else g / g.norm().clamp_min(1e-12) * math.sqrt(g.numel())
            rows.append(_projected(d + sign * settings.step_size * step, rho, settings.norm))
        delta = torch.stack(rows)
        reached = (network((x + delta).clamp(0, 1)).argmax(dim=1) == wanted).float().mean()
        if settings.early_stop is not None and bool(reached > settings.early_stop):
            break
    return delta


def _plain_npd(model: nn.Module, clean: ImageSet, settings: NPD, seed: int) -> Polarizer:
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
        polarizer.train()
        for epoch in range(settings.warmup_epochs):
            for rows in torch.randperm(len(y), generator=stream(seed, "warm-up", epoch)).split(settings.batch_size):
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
        _plain_step(network, polarizer, optimizer, (x[rows], y[rows], k), settings, done)
    return polarizer


def _plain_step(
    network: nn.Module,
    polarizer: Polarizer,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, int],
    settings: NPD,
    done: int,
) -> None:
    x, y, k = batch
    polarizer.eval()
    logits = network(x).detach()
    targets = logits.scatter(1, y[:, None], -math.inf).argmax(dim=1)
    if settings.target is not None:
        targets = (y + 1) % k if settings.target == "next" else torch.full_like(y, settings.target)
    kept = targets != y
    wanted = targets if settings.goal == "targeted" else y
    bad = (x[kept] + _delta(network, x[kept], wanted[kept], settings, done)).clamp(0, 1)
    if settings.bn_outer == "train_clean_stats":
        polarizer.train()
        benign = F.cross_entropy(network(x), y)
        polarizer.norm.momentum = 0.0
        z = network(bad)
        polarizer.norm.momentum = 0.1
        polarizer.eval()
    else:
        benign, z = F.cross_entropy(network(x), y), network(bad)
    if settings.goal == "untargeted":
        targets[kept] = z.detach().scatter(1, y[kept][:, None], -math.inf).argmax(dim=1)
    predicted = logits[kept].argmax(dim=1) if settings.bce_label == "predicted" else None
    loss = settings.benign_weight * benign
    loss = loss + settings.asr_weight * asr_loss(z, targets[kept], settings.loss_form)
    loss = loss + settings.bce_weight * boosted_cross_entropy(z, y[kept], settings.loss_form, predicted)
    optimizer.zero_grad()
    loss.backward()
    if settings.max_gradient is not None:
        gradients = [each.grad for each in network.parameters() if each.grad is not None]
        length = float(torch.cat([each.flatten() for each in gradients]).norm())
        for each in gradients:
            each.mul_(min(1.0, settings.max_gradient / length))
    optimizer.step()


# --- The comparison ---------------------------------------------------------------------------------------------------


def _images() -> ImageSet:
    """With a black border, whose pixels begin at the edge of their range."""
    clean = tiny_images(24)
    clean.images[:, :, :, :2] = 0
    return clean


def _state(polarizer: Polarizer) -> dict[str, Tensor]:
    return {name: value for name, value in polarizer.state_dict().items() if name != "norm.num_batches_tracked"}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_run_equals_the_plain_form_of_the_algorithm(name: str) -> None:
    settings, model, clean = CASES[name], tiny_model(), _images()
    found = polarizer_of(repaired(model, clean, settings, seed=4))
    expected = _plain_npd(model, clean, settings, seed=4)
    assert_close(_state(found), _state(expected), rtol=1e-3, atol=1e-4)
    assert largest_gap(found, Polarizer(6)) > 1e-2


def test_the_plain_implementation_that_the_benchmark_times_learns_the_same_layer() -> None:
    model, clean, settings = tiny_model(), tiny_images(24), replace(CASES["reference"], step_rule="sign")
    found = _state(polarizer_of(repaired(model, clean, settings, seed=4)))
    assert_close(found, _state(script("plain_npd").plain_npd(model, clean, settings, seed=4)), rtol=1e-3, atol=1e-4)


# --- What it notices --------------------------------------------------------------------------------------------------

Change = Callable[[pytest.MonkeyPatch], object]


def _settings(**changes: Any) -> Change:
    """The run has other settings than those that it was given."""
    honest = NPD.repair

    def repair(self: NPD, *args: Any, **kwargs: Any) -> Any:
        return honest(replace(self, **changes), *args, **kwargs)

    return lambda patch: patch.setattr(NPD, "repair", repair)


def _hardest(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], math.inf).argmin(dim=1)


def _easiest(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -math.inf).sum(dim=0).argmax().expand(len(labels))


MUTANTS: dict[str, Change] = {
    "a wider ball": _settings(radii=(1.3,)),
    "a step more": _settings(steps=3),
    "a step less": _settings(steps=1),
    "longer steps": _settings(step_size=0.02),
    "steps by sign": _settings(step_rule="sign"),
    "no L_asr": _settings(asr_weight=0.0),
    "another weight of L_asr": _settings(asr_weight=0.5),
    "another weight of L_bce": _settings(bce_weight=0.5),
    "another weight of L_bn": _settings(benign_weight=1.3),
    "half of L_bce": _settings(bce_terms="true-class"),
    "another momentum": _settings(momentum=0.8),
    "one perturbation for all": _settings(perturbation="universal"),
    "the class that is furthest away": lambda patch: patch.setattr(aims, "runner_up", _hardest),
    "one class for the batch": lambda patch: patch.setattr(aims, "runner_up", _easiest),
    "nothing is perturbed": lambda patch: patch.setattr(
        algorithm, "perturb", lambda _predict, pixels, *_args, **_kwargs: torch.zeros_like(pixels)
    ),
    "black pixels cannot move": lambda patch: patch.setattr(
        perturb, "clip", lambda values: torch.where((values > 0) & (values < 1), values, values.detach().clamp(0, 1))
    ),
    "pixels outside of [0, 1]": lambda patch: patch.setattr(perturb, "clip", lambda values: values),
    "no projection": lambda patch: patch.setattr(perturb.Ball, "project", lambda _self, delta: delta),
}
WATCHED = replace(SMALL, radii=(1.0,), step_size=0.05)
"""The steps reach the sphere, and the clip matters, on images of 8 x 8 pixels."""


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_changed_constant_of_the_algorithm_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = tiny_model(), _images()
    expected = _state(_plain_npd(model, clean, WATCHED, seed=4))
    assert_close(_state(polarizer_of(repaired(model, clean, WATCHED, seed=4))), expected, rtol=1e-3, atol=1e-4)
    MUTANTS[mutant](monkeypatch)
    changed = _state(polarizer_of(repaired(model, clean, WATCHED, seed=4)))
    with pytest.raises(AssertionError):
        assert_close(changed, expected, rtol=1e-3, atol=1e-4)
