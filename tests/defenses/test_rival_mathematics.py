"""The steps of FT-SAM, FST, CLP, RNP and SAU against values worked out by hand or by numpy."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Run
from neural_polarizer.defenses.clp import CLP
from neural_polarizer.defenses.fst import FST, redraw, rescale
from neural_polarizer.defenses.ft_sam import FTSAM, smoothed_cross_entropy, worst_case
from neural_polarizer.defenses.rnp import RNP, accuracy, prune_within
from neural_polarizer.defenses.sau import divergence, shared_loss, shared_perturbation
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.build import build
from neural_polarizer.models.layers import convolutions_with_norms, lipschitz_bounds, outliers
from neural_polarizer.rng import stream
from neural_polarizer.train.schedule import Schedule
from toys import TwoPixels, made, tiny_images, tiny_model

ONCE = Schedule(
    epochs=1, batch_size=2, lr=0.5, momentum=0.9, weight_decay=0.0, policy="constant", crop_padding=0, flip=False
)
"""A single step on two images."""


def two_images() -> ImageSet:
    """Two images of 1 x 2 pixels; only the red values differ from 0."""
    images = torch.zeros(2, 3, 1, 2, dtype=torch.uint8)
    images[:, 0, 0] = torch.tensor([[255, 51], [102, 204]])
    return ImageSet(images, torch.tensor([0, 1]), ("a", "b"), "toy")


# --- FT-SAM -----------------------------------------------------------------------------------------------------------


class TwoWeights(nn.Module):
    """Red pixels (a, b) to the logits (0, u a + v b)."""

    def __init__(self, u: float, v: float) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.tensor(u)), nn.Parameter(torch.tensor(v))

    def forward(self, pixels: Tensor) -> Tensor:
        margin = self.u * pixels[:, 0, 0, 0] + self.v * pixels[:, 0, 0, 1]
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def test_the_worst_case_of_a_linear_loss_by_hand() -> None:
    """g = (3, 4) at w = (2, -1): |T g| = sqrt(6^2 + 4^2), eps = rho (4 * 3, 1 * 4) / |T g|."""
    weights = [nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.tensor(7.0))]
    with worst_case(weights, lambda: 3 * weights[0] + 4 * weights[1], rho=0.5):
        length = math.sqrt(52)
        assert_close(weights[0].data, torch.tensor(2 + 0.5 * 12 / length))
        assert_close(weights[1].data, torch.tensor(-1 + 0.5 * 4 / length))
        assert weights[2].item() == 7  # the loss does not depend on it
    assert [weight.item() for weight in weights] == [2.0, -1.0, 7.0]
    assert all(weight.grad is None for weight in weights)


def test_weights_come_back_after_an_error_too() -> None:
    weight = nn.Parameter(torch.tensor(0.1))
    with pytest.raises(KeyError), worst_case([weight], lambda: 3 * weight, rho=0.7):
        raise KeyError
    assert torch.equal(weight.detach(), torch.tensor(0.1))


def test_one_step_of_ft_sam_on_two_weights_by_hand() -> None:
    x = np.array([[1.0, 0.2], [0.4, 0.8]])
    wanted = np.array([0.1, 0.9])  # probabilities of class 1 after smoothing, labels 0 and 1
    w = np.array([0.6, -0.3])

    def slope(at: np.ndarray) -> np.ndarray:
        return ((1 / (1 + np.exp(-x @ at)) - wanted)[:, None] * x).mean(axis=0)

    g = slope(w)
    worst = w + 2.0 * w**2 * g / np.linalg.norm(np.abs(w) * g)
    expected = w - 0.5 * slope(worst)
    result = FTSAM(rho=2.0, smoothing=0.1, schedule=ONCE).repair(TwoWeights(0.6, -0.3), two_images(), seed=0)
    found = result.model.state_dict()
    assert_close(torch.stack([found["u"], found["v"]]).double(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_smoothing_spares_the_label_itself() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 0.0, 0.0]])
    labels = torch.tensor([0, 3])
    wanted = torch.full((2, 4), 0.1 / 3)
    wanted[torch.arange(2), labels] = 0.9
    by_hand = -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert_close(smoothed_cross_entropy(logits, labels, 0.1), by_hand)
    assert float((F.cross_entropy(logits, labels, label_smoothing=0.1) - by_hand).abs()) > 1e-3


def test_statistics_are_kept_at_the_weights_themselves_and_once_a_step() -> None:
    clean = tiny_images(8)
    model = tiny_model()
    once = copy.deepcopy(model).train()
    once(to_pixels(clean.images))
    schedule = replace(ONCE, batch_size=8)
    found = FTSAM(rho=50.0, schedule=schedule).repair(model, clean, seed=0).model.state_dict()
    for name, value in once.state_dict().items():
        if "running" in name or "batches" in name:
            assert_close(found[name], value, rtol=1e-5, atol=1e-6)


# --- FST --------------------------------------------------------------------------------------------------------------


def test_one_step_of_fst_on_black_images_by_hand() -> None:
    """Without features, cross-entropy says nothing about W: the step is ``W - lr alpha W_old``, then its old norm."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    old = model.state_dict()["1.weight"].clone()
    black = two_images()
    black = ImageSet(torch.zeros_like(black.images), black.labels, black.classes, "toy")
    result = FST(alpha=0.3, schedule=ONCE).repair(model, black, seed=5)
    drawn = nn.Linear(6, 2)
    redraw(drawn, stream(5, "fst head"))
    moved = drawn.weight.detach() - 0.5 * 0.3 * old
    assert_close(result.model.state_dict()["1.weight"], moved * old.norm() / moved.norm())


def test_the_new_head_has_the_old_ones_norm_and_keeps_away_from_it() -> None:
    clean = tiny_images(24)
    model = tiny_model()
    old = model.state_dict()["network.head.weight"]
    products = []
    for alpha in (0.0, 2.0):
        schedule = replace(ONCE, epochs=4, batch_size=8, lr=0.05)
        result = FST(alpha=alpha, schedule=schedule).repair(model, clean, seed=0)
        head = result.model.state_dict()["network.head.weight"]
        assert float(head.norm()) == pytest.approx(float(old.norm()), rel=1e-5)
        products.append(float((head * old).sum()))
    assert products[1] < products[0] - 0.5 * float(old.norm()) ** 2


def test_a_redrawn_head_is_uniform_and_a_norm_is_put_back() -> None:
    head = nn.Linear(16, 400)
    redraw(head, stream(0, "head"))
    for value in (head.weight, head.bias):
        assert value.abs().max().item() <= 0.25
        assert value.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.1)
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    rescale(weight, torch.tensor(10.0))
    assert_close(weight, torch.tensor([[6.0, 0.0], [0.0, 8.0]]))


# --- CLP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_lipschitz_bounds_by_numpy(groups: int) -> None:
    convolution, norm = nn.Conv2d(4, 8, 3, groups=groups), nn.BatchNorm2d(8)
    made(nn.Sequential(convolution, norm))
    assert norm.running_var is not None
    found = lipschitz_bounds(convolution, norm)
    for channel in range(8):
        kernel = convolution.weight[channel].detach().numpy().reshape(4 // groups, 9)
        sigma = math.sqrt(float(norm.running_var[channel]) + norm.eps)
        bound = np.linalg.svd(kernel)[1].max() * abs(norm.weight[channel].item()) / sigma
        assert found[channel].item() == pytest.approx(bound, rel=1e-5)


def test_the_planted_channel_is_pruned_and_no_other() -> None:
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = made(nn.Sequential(*layers, nn.Linear(32, 4)))
    with torch.no_grad():
        model.get_parameter("0.weight")[5] *= 30
    result = CLP().repair(model, tiny_images(8), seed=0)
    assert result.audit is not None
    assert result.audit.summary == "Pruned 1 of 32 channels, by the bound of their Lipschitz constant."
    before, after = model.state_dict(), result.model.state_dict()
    for name, value in before.items():
        if name in ("1.weight", "1.bias"):
            value = value.clone()
            value[5] = 0
        assert torch.equal(after[name], value), name


def test_outliers_lie_above_the_mean_by_deviations_of_the_sample() -> None:
    bounds = torch.tensor([1.0] * 15 + [3.0])  # mean 1.125, deviation 0.5
    assert outliers(bounds, 3.7).nonzero().flatten().tolist() == [15]
    assert not outliers(bounds, 3.8).any()
    assert not outliers(torch.tensor([5.0]), 3.0).any()


@pytest.mark.parametrize(
    ("architecture", "pairs"),
    [
        ("preactresnet18", {"layer1.0.bn2": "layer1.0.conv1", "layer3.0.bn1": "layer2.1.conv2"}),
        ("torchvision:resnet18", {"bn1": "conv1", "layer2.0.downsample.1": "layer2.0.downsample.0"}),
        ("vgg19_bn", {}),
        ("torchvision:mobilenet_v3_small", {}),
    ],
)
def test_a_batch_norm_belongs_to_the_convolution_in_front_of_it(architecture: str, pairs: dict[str, str]) -> None:
    width = None if architecture.startswith("torchvision") else 4
    network = made(build(architecture, 4, width=width))
    names = {module: name for name, module in network.named_modules()}
    found = {names[norm]: names[conv] for conv, norm in convolutions_with_norms(network, torch.zeros(1, 3, 32, 32))}
    assert pairs.items() <= found.items()
    assert len(found) == sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# --- RNP --------------------------------------------------------------------------------------------------------------


def test_unlearning_raises_the_loss_and_ends_once_enough_is_forgotten() -> None:
    clean = tiny_images(24)
    told: list[tuple[str, int, int]] = []
    settings = RNP(
        unlearn=replace(ONCE, epochs=3, batch_size=8, lr=0.1), recover=replace(ONCE, epochs=1), forgotten=1.0
    )
    settings.repair(tiny_model(), clean, seed=0, progress=lambda *step: told.append(step))
    assert [done for phase, done, _ in told if phase == "unlearn"] == [1, 2, 3]  # of nine
    network = tiny_model()
    before = F.cross_entropy(network(to_pixels(clean.images)), clean.labels).item()
    left = replace(settings, forgotten=0.0)._forget(network, clean, Run(seed=0))
    assert 0 <= left < 0.5
    assert F.cross_entropy(network(to_pixels(clean.images)), clean.labels).item() > before


def test_the_recovery_moves_masks_only_and_keeps_them_in_their_range() -> None:
    network = tiny_model()
    before = copy.deepcopy(dict(network.named_parameters()))
    settings = RNP(recover=replace(ONCE, epochs=3, batch_size=8, lr=20.0))
    masks = settings._regain(network, tiny_images(24), Run(seed=0))
    assert set(masks) == {"network.features.1", "network.features.4"}
    values = torch.cat(list(masks.values()))
    assert bool(((values >= 0) & (values <= 1)).all())
    assert float(values.min()) < 0.5
    for name, parameter in network.named_parameters():
        if "mask" not in name and ".on_" not in name:
            assert torch.equal(parameter, before[name.replace(".norm.", ".")]), name


class Channels(nn.Module):
    """A batch norm that does nothing on the means of the colours: red is class 0, green class 1, blue is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(pixels).mean(dim=(2, 3))[:, :2]


def test_the_highest_threshold_that_accuracy_allows_is_taken() -> None:
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[:2, 0] = images[2:, 1] = 200
    clean = ImageSet(images, torch.tensor([0, 0, 1, 1]), ("red", "green"), "toy")
    masks = {"norm": torch.tensor([1.0, 0.62, 0.3])}  # green before red: with it goes half of the accuracy
    model = Channels().eval()
    assert accuracy(model, clean, 4) == 1.0
    assert prune_within(model, masks, clean, max_drop=0.1, highest=0.9, step=0.25, batch=4) == (0.5, 1)
    assert model.norm.weight.tolist() == [1.0, 1.0, 0.0]
    masks = {"norm": torch.tensor([0.0, 1.0, 1.0])}
    model = Channels().eval()
    with torch.no_grad():  # without red, a tie would go to class 0
        model.norm.bias[1] = 0.01
    assert prune_within(model, masks, clean, max_drop=0.1, highest=0.9, step=0.25, batch=4) == (0.0, 0)
    assert model.norm.weight.tolist() == [1.0, 1.0, 1.0]


def test_unlearning_that_diverges_is_an_error() -> None:
    wild = RNP(unlearn=replace(ONCE, epochs=3, batch_size=8, lr=1e30), forgotten=0.0)
    with pytest.raises(BadInputError, match=r"use a lower unlearn\.lr"):
        wild.repair(tiny_model(), tiny_images(24), seed=0)


# --- SAU --------------------------------------------------------------------------------------------------------------


def test_the_divergence_by_numpy() -> None:
    logits, others = torch.tensor([[1.0, 0.0, -2.0]]), torch.tensor([[0.0, 2.0, 0.5]])
    p, q = (np.exp(z) / np.exp(z).sum() for z in (np.array([1.0, 0.0, -2.0]), np.array([0.0, 2.0, 0.5])))
    m = (p + q) / 2
    by_hand = 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum()
    assert float(divergence(logits, others)) == pytest.approx(by_hand, rel=1e-5)
    assert float(divergence(logits, logits)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]))) == pytest.approx(math.log(2))


def test_only_what_fools_the_original_is_unlearned() -> None:
    """Image 0 is fooled; 1 is answered rightly, 2 as it was before."""
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3)
    labels, before, wrong = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2]), torch.tensor([2, 1, 2])
    p = float(logits[0].softmax(dim=0)[2])
    assert float(shared_loss(logits, labels, before, wrong)) == pytest.approx(-math.log(1 - p) / 3, rel=1e-5)
    assert float(shared_loss(logits, labels, labels, labels)) == 0.0


def test_a_perturbation_by_hand() -> None:
    """It starts at +0.2 in both pixels, where the margin is as it was; one step turns the sign of the first."""
    pixels = torch.tensor([0.5, 0.4]).view(1, 1, 1, 2)
    settings = {"radius": 0.2, "step_size": 0.4, "fooling": 0.01, "agreement": 1.0}
    model = TwoPixels()
    label = torch.tensor([1])
    still = shared_perturbation(model, model, pixels, label, steps=1, **settings)
    assert_close(still.flatten(), torch.tensor([-0.2, 0.2]))
    # Fooled both alike: no further step moves it.
    assert torch.equal(shared_perturbation(model, model, pixels, label, steps=5, **settings), still)


def test_models_that_disagree_are_led_together() -> None:
    """One sees a - b, the other b - a: nothing fools both alike, and their answers are nearest where a = b."""
    pixels = torch.tensor([0.8, 0.2]).view(1, 1, 1, 2)

    def turned(values: Tensor) -> Tensor:
        return TwoPixels()(values.flip(3))

    settings = {"radius": 0.2, "step_size": 0.1, "fooling": 0.0, "agreement": 1.0}
    delta = shared_perturbation(TwoPixels(), turned, pixels, torch.tensor([1]), steps=8, **settings)
    assert_close(delta.flatten(), torch.tensor([-0.2, 0.2]))
