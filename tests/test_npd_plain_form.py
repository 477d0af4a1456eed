"""NPD against a plain form of its algorithm, with nothing cut, cached or reused."""

import copy
import math
from dataclasses import replace

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
    looks = settings.suspect_share > 0 and settings.target is None and settings.goal == "targeted"
    suspect = _suspect(network, x, y, k, stream(seed, "suspect")) if looks else None
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
        _plain_step(network, polarizer, optimizer, (x[rows], y[rows], k), settings, done, suspect)
    return polarizer


def _suspect(network: nn.Module, x: Tensor, y: Tensor, k: int, generator: torch.Generator) -> int | None:
    """What eight normalised gradient steps for 32 images at once push farthest over the border; k: the next class."""
    rho = 3.0 * math.sqrt(x[0].numel() / 3072)
    scores = []
    for wanted in [*(torch.full_like(y, target) for target in range(k)), (y + 1) % k]:
        others = (y != wanted).nonzero().flatten()
        others = others[torch.randperm(len(others), generator=generator)[:32]]
        others, wanted = x[others], wanted[others]
        delta = torch.zeros_like(others[:1])
        for _ in range(8):
            point = delta.clone().requires_grad_()
            F.cross_entropy(network(_clip(others + point)), wanted, reduction="sum").backward()
            assert point.grad is not None
            delta = _projected(delta - rho / 2 * point.grad / point.grad.norm(), rho, "l2")
        logits = network((others + delta).clamp(0, 1)).detach()
        best = [
            max(v for j, v in enumerate(z) if j != t) for z, t in zip(logits.tolist(), wanted.tolist(), strict=True)
        ]
        scores.append(float((logits[torch.arange(len(wanted)), wanted] - torch.tensor(best)).mean()))
    first, second = sorted(scores[:k], reverse=True)[:2]
    if first > 0 and first >= 1.5 * second:
        return scores.index(first)
    return k if scores[k] > 0 else None


def _plain_step(
    network: nn.Module,
    polarizer: Polarizer,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, int],
    settings: NeuralPolarizer,
    done: int,
    suspect: int | None,
) -> None:
    x, y, k = batch
    polarizer.eval()
    logits = network(x).detach()
    targets = logits.scatter(1, y[:, None], -math.inf).argmax(dim=1)
    first = torch.arange(len(y)) < (0 if suspect is None else round(settings.suspect_share * len(y)))
    if suspect is not None:
        targets[first] = ((y + 1) % k)[first] if suspect == k else suspect
    if settings.target == "next":
        targets = (y + 1) % k
    elif settings.target is not None:
        targets = torch.full_like(y, settings.target)
    kept = targets != y
    wanted = targets if settings.goal == "targeted" else y
    delta = torch.zeros_like(x)
    for group, perturbation in ((kept & ~first, settings.perturbation), (kept & first, "universal")):
        radii = torch.tensor([settings.radii[i % len(settings.radii)] for i in range(len(y))])
        if perturbation == "universal":
            radii = torch.tensor([settings.radii[done % len(settings.radii)]])
            if settings.shared_radius is not None:
                radii = torch.tensor([settings.shared_radius])
        if group.any():
            alike = replace(settings, perturbation=perturbation, target=None)
            delta[group] = _delta(network, x[group], wanted[group], alike, radii)
    delta = delta[kept]
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
