"""On the same weights, images and seed, MindSpore's NPD does what PyTorch's does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import neural_polarizer
from neural_polarizer import perturb
from neural_polarizer.layer import polarizer
from neural_polarizer.perturb import Ball
from toys import polarizers, tiny_images, tiny_model, with_features_scaled

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra mindspore)")
twins = pytest.importorskip("mindspore_twins")
npm = pytest.importorskip("neural_polarizer.mindspore")
ms_perturb = pytest.importorskip("neural_polarizer.mindspore.perturb")
ms_polarizer = pytest.importorskip("neural_polarizer.mindspore.polarizer")
tensors = pytest.importorskip("neural_polarizer.mindspore.tensors")
to_mindspore, to_torch = tensors.to_mindspore, tensors.to_torch

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}

# Two batches an epoch, with steps that are large for images of 8 x 8 pixels and move the layer by far more than CLOSE.
SMALL: dict[str, Any] = {"precision": "fp32", "epochs": 1, "batch_size": 12, "lr": 0.05, "radii": (1.0,)}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "shipped": ("npd", {}),
    "shipped, npd-tu": ("npd-tu", {"target": 1}),
    "shipped, npd-tp": ("npd-tp", {"target": "next", "radii": (0.5, 1.0, 2.0)}),
    "paper": ("npd", {"name": "paper"}),
    "paper, npd-tu": ("npd-tu", {"name": "paper", "target": "next"}),
    "paper, npd-uu, linf": ("npd-uu", {"name": "paper", "norm": "linf", "radii": (0.05,), "step_size": 0.02}),
    "reference": ("npd", {"name": "reference", "early_stop": 0.3}),
    "reference, tiny_imagenet": ("npd-up", {"name": "reference", "profile": "tiny_imagenet", "bce_terms": "runner-up"}),
}


@pytest.mark.parametrize("run", RUNS)
def test_one_epoch_gives_the_same_polarizer(run: str) -> None:
    _same_polarizer(tiny_model(), *RUNS[run])


def test_small_features_shorten_the_same_steps() -> None:
    _same_polarizer(with_features_scaled(tiny_model(), 0.1), "npd", {}, site="before:{}features.3")


def _same_polarizer(model: nn.Module, method: str, own: dict[str, Any], site: str = "after:{}features.3") -> None:
    cell, settings = twins.twin(model), {**SMALL, **own}
    theirs = neural_polarizer.purify(model, tiny_images(), method, site=site.format(""), seed=5, **settings)
    ours = npm.purify(cell, tiny_images(), method, site=site.format("network."), seed=5, **settings)
    assert theirs.polarizer is not None
    expected = twins.values_of(theirs.polarizer)
    assert float((expected["polarizer.mix.weight"][:, :, 0, 0] - torch.eye(6)).abs().max()) > 0.005
    assert_close(twins.state_of(ours.polarizer), expected, **CLOSE)
    assert_close(ours.history, theirs.history, **CLOSE)
    pixels = torch.rand(8, 3, 8, 8)
    assert_close(twins.logits_of(ours.cell, pixels), theirs.model(pixels).detach(), **CLOSE)


PERTURBATIONS: dict[str, dict[str, Any]] = {
    "sign, l2": {"ball": Ball("l2", 0.8), "step_size": 0.1},
    "sign, linf": {"ball": Ball("linf", 0.05), "step_size": 0.02},
    "gradient, radii of their own": {
        "ball": Ball("l2", torch.arange(1, 13) * 0.1),
        "step_size": 0.05,
        "rule": "gradient",
    },
    "universal": {"ball": Ball("l2", 1.0), "step_size": 0.05, "universal": True},
    "universal, gradient": {"ball": Ball("l2", 1.0), "step_size": 0.05, "universal": True, "rule": "gradient"},
    "untargeted": {"ball": Ball("l2", 1.0), "step_size": 0.05, "targeted": False},
    "untargeted never stops early": {"ball": Ball("l2", 1), "step_size": 0.1, "targeted": False, "stop_above": 0.0},
    "stopped early": {"ball": Ball("l2", 5.0), "step_size": 0.1, "stop_above": 0.3},
}


@pytest.mark.parametrize("form", PERTURBATIONS)
def test_perturbations_of_pixels(form: str) -> None:
    model, cell = twins.tiny_twins()
    pixels = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels[:, :, :4] = pixels[:, :, :4].round()  # black and white pixels, too, must begin to move
    labels = torch.arange(12) % 4
    theirs = perturb.perturb(model, pixels, labels, steps=3, **PERTURBATIONS[form])
    ours = to_torch(ms_perturb.perturb(cell, to_mindspore(pixels), labels, steps=3, **PERTURBATIONS[form]))
    assert float(theirs[:, :, :4].abs().max()) > 0.005
    assert_close(ours, theirs, **CLOSE)


def test_images_that_are_at_their_targets_already_take_one_step() -> None:
    """Early stop counts after a step, so that nothing stays as it is."""
    model, cell = twins.tiny_twins()
    pixels = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    search: dict[str, Any] = {"ball": Ball("l2", 5.0), "step_size": 0.1, "stop_above": 0.3}
    labels = model(pixels).argmax(dim=1)
    ours = to_torch(ms_perturb.perturb(cell, to_mindspore(pixels), labels, steps=3, **search))
    once = perturb.perturb(model, pixels, labels, steps=1, **search)
    assert float(once.abs().amax((1, 2, 3)).min()) > 0
    assert_close(ours, once, **CLOSE)


def test_a_loss_of_pytorch_differentiates_a_network_of_mindspore() -> None:
    """Through both of its arguments, by the chain rule."""
    labels = torch.tensor([0, 2])

    def loss(one: Tensor, two: Tensor) -> Tensor:
        return F.cross_entropy(one, labels) + (two**3).mean()

    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (expected,) = torch.autograd.grad(loss(values**2, values.sin()), values)
    gradient = ms.grad(lambda at: tensors.with_gradient_of(loss, [at**2, at.sin()]))(to_mindspore(values))
    assert_close(to_torch(gradient), expected)


def polarizer_pair(features: Tensor) -> tuple[Any, Any]:
    theirs, ours = polarizers(3, features.shape[1]), npm.Polarizer(features.shape[1])
    for parameter in ours.get_parameters():
        parameter.set_data(to_mindspore(twins.values_of(theirs)[parameter.name]))
    return ours, theirs


@pytest.mark.parametrize("follow", [True, False])
def test_batch_statistics(follow: bool) -> None:
    features = torch.randn(7, 4, 3, 3, generator=torch.Generator().manual_seed(2)) * 2 + 1
    ours, theirs = polarizer_pair(features)
    with ms_polarizer.batch_statistics(ours, follow=follow), polarizer.batch_statistics(theirs, follow=follow):
        assert_close(to_torch(ours(to_mindspore(features))), theirs(features).detach(), **CLOSE)
    assert_close(twins.state_of(ours), twins.values_of(theirs), **CLOSE)
    assert_close(to_torch(ours(to_mindspore(features))), theirs(features).detach(), **CLOSE)
