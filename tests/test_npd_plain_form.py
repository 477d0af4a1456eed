"""NPD against a plain form of its algorithm, with nothing cut, cached or reused."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from benchmark_scripts import script
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.neural_polarizer import NeuralPolarizer
from neural_polarizer.losses import asr_loss, boosted_cross_entropy
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.polarizer import Polarizer
from neural_polarizer.rng import stream
from neural_polarizer.surgery import Site, insert
from npd_cases import CASES, polarizer_of, repaired
from toys import (
    largest_gap,
    tiny_images,
    tiny_model,
)

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]

# --- The plain form ---------------------------------------------------------------------------------------------------


def _projected(delta: Tensor, rho: float, norm: str) -> Tensor:
    if norm == "linf":
        return delta.clamp(-rho, rho)
    return delta * rho / float(delta.norm()) if float(delta.norm()) > rho else delta


def _clip(values: Tensor) -> Tensor:
    """To [0, 1]; the borders themselves have a gradient."""
    return values.where(values >= 0, 0.0).where(values <= 1, 1.0)


def _delta(network: nn.Module, x: Tensor, wanted: Tensor, settings: NeuralPolarizer, radii: Tensor) -> Tensor:
    """Eqs. 5, 7, 8 and 10: whole forward passes, the samples projected one after another."""
    universal, sign = settings.perturbation == "universal", -1.0 if settings.goal == "targeted" else 1.0
    delta = torch.zeros_like(x[:1] if universal else x)
    alone = settings.shared_steps is None or not universal
    for _ in range(settings.steps if alone else settings.shared_steps or 0):
        point = delta.clone().requires_grad_()
        loss = F.cross_entropy(network(_clip(x + point)), wanted, reduction="sum")
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
    polarizer.eval()
    blind, suspect, aim, share = settings.target is None and settings.goal == "targeted", None, None, 0.0
    if blind and (settings.suspect or settings.feature_share > 0 or settings.speed == "fast"):
        attack = partial(_in_features, polarizer)
        reached = _margins(network, x, y, k, stream(seed, "aim"), attack, 256, range(k + 1))
        aim = max(reached, key=reached.__getitem__)
    if blind and settings.suspect:
        generator = stream(seed, "suspect")
        once = _margins(network, x, y, k, generator, partial(_in_pixels, steps=3), 16, range(k + 1))
        order = [*_by_size([once[label] for label in range(k)]), k]
        margins = list({**once, **_margins(network, x, y, k, generator, _in_pixels, 32, order)}.values())
        first, second = sorted(margins[:k], reverse=True)[:2]
        suspect = k if aim == k else margins.index(first) if first > 0 and first >= 1.5 * second else None
        aim = aim if suspect is None else suspect
    if settings.feature_share > 0:
        share = 1.0 if blind and settings.suspect and suspect is None else settings.feature_share
    share = 1.0 if settings.speed == "fast" else share
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
        _plain_step(network, polarizer, optimizer, (x[rows], y[rows], k), settings, done, (suspect, aim, share))
    return polarizer


def _margins(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    k: int,
    generator: torch.Generator,
    attack: Attack,
    count: int,
    aims: Iterable[int],
) -> dict[int, float]:
    """How far over the border one perturbation of many images gets to each label; k is the next class."""
    margins = {}
    for aim in aims:
        wanted = (y + 1) % k if aim == k else torch.full_like(y, aim)
        others = (y != wanted).nonzero().flatten()
        others = others[torch.randperm(len(others), generator=generator)[:count]]
        logits, wanted = attack(network, x[others], wanted[others]), wanted[others]
        best = [
            max(v for j, v in enumerate(z) if j != t) for z, t in zip(logits.tolist(), wanted.tolist(), strict=True)
        ]
        margins[aim] = float((logits[torch.arange(len(wanted)), wanted] - torch.tensor(best)).mean())
    return margins


def _by_size(margins: Sequence[float]) -> list[int]:
    """The places of the six largest, the largest first."""
    return sorted(range(len(margins)), key=lambda place: -margins[place])[:6]


def _in_pixels(network: nn.Module, x: Tensor, wanted: Tensor, steps: int = 8) -> Tensor:
    """Normalised gradient steps of half the radius for all images at once."""
    rho = 3.0 * math.sqrt(x[0].numel() / 3072)
    delta = torch.zeros_like(x[:1])
    for _ in range(steps):
        point = delta.clone().requires_grad_()
        F.cross_entropy(network(_clip(x + point)), wanted, reduction="sum").backward()
        assert point.grad is not None
        delta = _projected(delta - rho / 2 * point.grad / point.grad.norm(), rho, "l2")
    return network((x + delta).clamp(0, 1)).detach()


def _in_features(polarizer: Polarizer, network: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
    shift = _shift(polarizer, network, x, wanted, [0] * len(x), radius=0.2, steps=8)
    return _moved(polarizer, network, x, shift).detach()


def _moved(polarizer: Polarizer, network: nn.Module, x: Tensor, shift: Tensor) -> Tensor:
    """The logits when each image's features are moved by ``shift`` times their norm."""

    def move(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (torch.stack([f + f.norm() * s for f, s in zip(args[0], shift, strict=True)]),)

    handle = polarizer.register_forward_pre_hook(move)
    logits: Tensor = network(x)
    handle.remove()
    return logits


def _shift(
    polarizer: Polarizer,
    network: nn.Module,
    x: Tensor,
    wanted: Tensor,
    groups: list[int],
    *,
    radius: float,
    steps: int,
    sign: float = -1.0,
) -> Tensor:
    """Normalised gradient steps of 1.5 radii in all, one group of images after another."""
    shift = torch.zeros(len(x), 6, 4, 4)
    for group in set(groups):
        mine = torch.tensor([each == group for each in groups])
        delta = torch.zeros(6, 4, 4)
        for _ in range(steps):
            point = delta.clone().requires_grad_()
            logits = _moved(polarizer, network, x[mine], point.expand(int(mine.sum()), -1, -1, -1))
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, wanted[mine], reduction="sum"), point)
            delta = _projected(delta + sign * 1.5 * radius / steps * slope / slope.norm(), radius, "l2")
        shift[mine] = delta
    return shift


def _plain_step(
    network: nn.Module,
    polarizer: Polarizer,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, int],
    settings: NeuralPolarizer,
    done: int,
    aims: tuple[int | None, int | None, float],
) -> None:
    (x, y, k), (suspect, aim, share) = batch, aims
    polarizer.eval()
    logits = network(x).detach()
    targets = logits.scatter(1, y[:, None], -math.inf).argmax(dim=1)
    features = torch.arange(len(y)) < round(share * len(y))
    for known, some in ((suspect, ~features), (aim, features)):
        if known is not None:
            targets[some] = ((y + 1) % k)[some] if known == k else known
    if settings.target == "next":
        targets = (y + 1) % k
    elif settings.target is not None:
        targets = torch.full_like(y, settings.target)
    kept = targets != y
    wanted = targets if settings.goal == "targeted" else y
    x_bad, shift = x.clone(), torch.zeros(len(x), 6, 4, 4)
    pixels, features = kept & ~features, kept & features
    if pixels.any():
        perturbation = settings.perturbation if suspect is None else "universal"
        radii = torch.tensor([settings.radii[i % len(settings.radii)] for i in range(len(y))])
        if perturbation == "universal":
            radii = torch.tensor([settings.radii[done % len(settings.radii)]])
            if settings.shared_radius is not None:
                radii = torch.tensor([settings.shared_radius])
        alike = replace(settings, perturbation=perturbation, target=None)
        delta = _delta(network, x[pixels], wanted[pixels], alike, radii)
        x_bad[pixels] = (x[pixels] + delta).clamp(0, 1)
    if features.any():
        common = (
            len(y) if settings.perturbation == "universal" else round(settings.feature_common * int(features.sum()))
        )
        groups = [int(t) if i < common else -1 - i for i, t in enumerate(wanted[features])]
        sign = -1.0 if settings.goal == "targeted" else 1.0
        radius, steps = settings.feature_radius, settings.feature_steps
        shift[features] = _shift(
            polarizer, network, x[features], wanted[features], groups, radius=radius, steps=steps, sign=sign
        )
    x_bad, shift = x_bad[kept], shift[kept]
    if settings.bn_outer == "train_clean_stats":
        polarizer.train()
        benign = F.cross_entropy(network(x), y)
        clean_statistics = copy.deepcopy(dict(polarizer.named_buffers()))
        polarizer.norm.momentum = 0.0
        z = _moved(polarizer, network, x_bad, shift)
        polarizer.norm.momentum = 0.1
        assert_close(polarizer.norm.running_var, clean_statistics["norm.running_var"])
        polarizer.eval()
    else:
        benign, z = F.cross_entropy(network(x), y), _moved(polarizer, network, x_bad, shift)
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
    clean.images[:, :, :, :2] = 0  # a black border, whose pixels begin at the edge of their range
    found = polarizer_of(repaired(model, clean, settings, seed=4))
    expected = _plain_npd(model, clean, settings, seed=4)
    ours, theirs = found.state_dict(), expected.state_dict()
    for state in (ours, theirs):
        del state["norm.num_batches_tracked"]
    assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert largest_gap(found, Polarizer(6)) > 1e-2


def test_the_plain_implementation_that_the_benchmark_times_learns_the_same_layer() -> None:
    model, clean, settings = tiny_model(), tiny_images(24), replace(CASES["reference"], step_rule="sign")
    found = polarizer_of(repaired(model, clean, settings, seed=4)).state_dict()
    expected = script("plain_npd").plain_npd(model, clean, settings, seed=4).state_dict()
    for state in (found, expected):
        del state["norm.num_batches_tracked"]
    assert_close(found, expected, rtol=1e-3, atol=1e-4)
