"""What each baseline computes, where the answer is known."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.anp import ANP, prune
from neural_polarizer.defenses.base import Run
from neural_polarizer.defenses.entropy_pruning import EntropyPruning, entropy, outliers
from neural_polarizer.defenses.fine_pruning import FinePruning, quiet_channels
from neural_polarizer.defenses.i_bau import IBAU, hypergradient, split_normalisation
from neural_polarizer.defenses.inverted_triggers import Inversion, anomalies, stamp
from neural_polarizer.defenses.nad import NAD, attention, attention_sites, with_maps
from neural_polarizer.defenses.neural_cleanse import NeuralCleanse
from neural_polarizer.models.build import build
from neural_polarizer.models.normalize import Converted, Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.rng import stream
from neural_polarizer.train.schedule import Schedule
from toys import TinyNet, made, tiny_images, tiny_model

SHORT = Schedule(epochs=1, batch_size=8, lr=0.01, crop_padding=0, flip=False)


# --- FP ---------------------------------------------------------------------------------------------------------------


def _head(weights: list[list[float]], bias: list[float]) -> nn.Linear:
    head = nn.Linear(len(weights[0]), len(weights))
    head.weight.data.copy_(torch.tensor(weights))
    head.bias.data.copy_(torch.tensor(bias))
    return head


def test_the_quietest_channels_go_and_the_step_that_costs_too_much_is_taken_back() -> None:
    """Channels 0 (mean 0) and 1 (mean 1) are idle, 2 and 3 carry the two classes."""
    features = torch.tensor([[0.0, 1.0, 4.0, 0.0], [0.0, 1.0, 0.0, 6.0]]).repeat(5, 1)
    labels = torch.tensor([0, 1]).repeat(5)
    head = _head([[0.0, 0.0, 1.0, 0.0], [0.0, 0.1, 0.0, 1.0]], [0.0, 0.05])
    assert quiet_channels(features, head, labels, max_drop=0.1, step=0.25).tolist() == [0, 0, 1, 1]
    assert quiet_channels(features, head, labels, max_drop=0.1, step=0.75).tolist() == [1, 1, 1, 1]
    assert quiet_channels(features, head, labels, max_drop=0.6, step=0.25).tolist() == [0, 0, 0, 0]


def test_pruned_columns_stay_zero_through_the_fine_tuning() -> None:
    result = FinePruning(step=0.34, max_drop=0.9, schedule=SHORT).repair(tiny_model(), tiny_images(24), seed=0)
    weight = result.model.state_dict()["network.head.weight"]
    gone = int((weight == 0).all(dim=0).sum())
    assert gone > 0
    assert result.audit is not None
    assert result.audit.summary == f"Pruned {gone} of 6 inputs of network.head."


# --- NAD --------------------------------------------------------------------------------------------------------------


def test_attention_by_hand() -> None:
    features = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])
    assert_close(attention(features, 2.0), torch.tensor([[9.0, 4.0]]) / math.sqrt(97), rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["preactresnet18", "vgg19_bn", "torchvision:resnet18"])
def test_no_architecture_has_attention_maps_that_are_always_equal(name: str) -> None:
    network = made(build(name, 4, width=2 if name == "preactresnet18" else None))
    pixels = torch.rand(4, 3, 32, 32, generator=stream(0, "nad"))
    sites = attention_sites(network, pixels)[-3:]
    with torch.no_grad():
        _, maps = with_maps(network, sites, pixels)
        assert len(maps) >= 2
        for features in maps:
            assert features.shape[2] * features.shape[3] > 1
            found = attention(features, 2.0)
            assert float(found.std(dim=1).min()) > 1e-3  # not a constant map
        assert float(NAD().distance(maps, [features.flip(0) for features in maps])) > 0
        assert float(NAD().distance(maps, maps)) == 0.0


# --- NC ---------------------------------------------------------------------------------------------------------------


def test_the_planted_small_class_is_flagged() -> None:
    sizes = torch.tensor([10.0, 11.0, 9.0, 10.5, 9.5, 2.0, 10.0])
    index, flagged = anomalies(sizes, torch.ones(7, dtype=torch.bool), 2.0)
    assert flagged == (5,)
    assert float(index[5]) == pytest.approx(8 / (1.4826 * 0.5))
    unreached = torch.ones(7, dtype=torch.bool)
    unreached[5] = False
    assert anomalies(sizes, unreached, 2.0)[1] == ()
    large = torch.tensor([10.0, 11.0, 9.0, 10.5, 9.5, 30.0])
    assert anomalies(large, torch.ones(6, dtype=torch.bool), 2.0)[1] == ()


def test_equal_sizes_but_one_make_an_infinite_index_and_equal_ones_none() -> None:
    index, flagged = anomalies(torch.tensor([10.0] * 9 + [1.0]), torch.ones(10, dtype=torch.bool), 2.0)
    assert flagged == (9,)
    assert index.tolist() == [0.0] * 9 + [math.inf]
    assert anomalies(torch.full((10,), 3.0), torch.ones(10, dtype=torch.bool), 2.0)[1] == ()
    index, _ = anomalies(torch.tensor([5.0, 5.0, 5.0, 9.0]), torch.tensor([True, True, True, False]), 2.0)
    assert index.tolist() == [0.0] * 4  # not NaN: the last class was not reached


class Shortcut(nn.Module):
    """Says the image's colour class, but class 2 whenever the corner pixel is green."""

    def forward(self, pixels: Tensor) -> Tensor:
        logits = 10 * pixels.mean(dim=(2, 3)) @ torch.eye(3, 4) + torch.tensor([0.0, 0.0, 0.0, 1.0])
        return logits + 40 * pixels[:, 1, 0, 0, None] * torch.tensor([0.0, 0.0, 1.0, 0.0])


def _coloured(n: int) -> ImageSet:
    generator = stream(0, "nc")
    images = torch.randint(0, 90, (n, 3, 6, 6), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 4
    images[torch.arange(n), labels.clamp_max(2)] += 100
    images[:, 1, 0, 0] = 0
    return ImageSet(images, labels, ("a", "b", "c", "d"))


@pytest.mark.long
def test_the_inversion_finds_the_shortcut_and_does_not_depend_on_how_many_go_at_a_time() -> None:
    clean = _coloured(24)
    found = [
        NeuralCleanse(epochs=60, batch_size=12, parallel=parallel, cost=0.1, patience=3).invert(
            Shortcut(), clean, Run(seed=0)
        )
        for parallel in (1, 4)
    ]
    assert_close(found[0].masks, found[1].masks, rtol=1e-3, atol=1e-4)
    sizes = found[1].masks.flatten(1).sum(dim=1)
    assert int(sizes.argmin()) == 2
    assert bool(found[1].reached[2])
    mask = found[1].masks[2, 0]
    assert int(mask.argmax()) == 0
    stamped = stamp(clean.images, found[1].masks[2], found[1].patterns[2])
    assert float((Shortcut()(to_pixels(stamped)).argmax(dim=1) == 2).float().mean()) > 0.8


def test_the_inversion_covers_every_class_of_the_model_and_may_look_at_a_few_images() -> None:
    clean = _coloured(24)
    two = ImageSet(clean.images[:2], clean.labels[:2], clean.classes[:2])
    assert len(NeuralCleanse(epochs=1).invert(Shortcut(), two, Run(seed=0)).masks) == 4
    few = NeuralCleanse(epochs=2, images=6)
    assert_close(few.invert(Shortcut(), clean, Run(seed=0)).masks, few.invert(Shortcut(), clean, Run(seed=0)).masks)
    all_of_them = NeuralCleanse(epochs=2).invert(Shortcut(), clean, Run(seed=0))
    assert not torch.equal(few.invert(Shortcut(), clean, Run(seed=0)).masks, all_of_them.masks)


def test_the_audit_names_what_was_flagged_and_shows_the_smallest_masks_first() -> None:
    masks = torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    patterns = torch.ones(3, 3, 2, 2)
    found = Inversion(masks, patterns, torch.tensor([True, False, True]), torch.tensor([0.5, 0.0, math.inf]), (0, 2))
    assert found.suspect == 2
    audit = found.audit(("cat", "dog"))
    assert audit.summary == "Inverted a trigger for each of 3 classes; suspiciously small: 0 (cat), 2."
    assert audit.by_class["anomaly_index"] == [0.5, 0.0, None]
    assert audit.by_class["flagged"] == [True, False, True]
    assert audit.by_class["mask_size"] == pytest.approx([3.6, 2.0, 0.4])
    (exhibit,) = audit.exhibits
    assert exhibit.caption.endswith("the classes with the smallest masks: 2, 1 (dog), 0 (cat).")
    assert [row[:, 0, 0, 0].tolist() for row in exhibit.rows] == [[26, 128, 230]] * 2
    nothing = Inversion(masks, patterns, torch.ones(3, dtype=torch.bool), torch.zeros(3), ())
    assert nothing.suspect is None
    assert nothing.audit(()).summary.endswith("none is suspiciously small.")


# --- ANP --------------------------------------------------------------------------------------------------------------


def test_masks_lie_in_0_1_and_a_higher_threshold_prunes_more() -> None:
    model = tiny_model()
    masks = ANP(iterations=6, batch_size=8, lr=0.5).masks(model, tiny_images(24), Run(seed=0))
    assert set(masks) == {"network.features.1", "network.features.4"}
    values = torch.cat(list(masks.values()))
    assert bool(((values >= 0) & (values <= 1)).all())
    assert float(values.min()) < 1
    counts = [prune(tiny_model(), masks, threshold) for threshold in (-0.1, 0.5, 0.9, 0.99, 1.0)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 12)


def test_pruning_zeroes_gamma_and_leaves_beta() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask = torch.tensor([1.0, 0.1, 1.0, 0.4, 0.5, 1.0])
    assert prune(model, {"network.features.1": mask}, 0.4) == 2
    after = model.state_dict()
    assert (after["network.features.1.weight"] == 0).tolist() == [False, True, False, True, False, False]
    assert torch.equal(after["network.features.1.bias"], before["network.features.1.bias"])


# --- i-BAU ------------------------------------------------------------------------------------------------------------


def test_the_hypergradient_of_a_quadratic_is_exact() -> None:
    """inner = |delta - A w|^2 / 2, so delta* = A w; outer = |delta|^2 / 2 + b w: d/dw = A^T A w + b."""
    matrix = torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    linear = torch.tensor([0.3, -0.2], dtype=torch.float64)
    weights = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    (found,) = hypergradient(
        lambda delta, w: 0.5 * delta.square().sum() + linear @ w[0],
        lambda delta, w: 0.5 * (delta - matrix @ w[0]).square().sum(),
        (matrix @ weights).detach(),
        [weights],
        lr=0.5,
        iterations=60,
    )
    assert_close(found, matrix.T @ matrix @ weights.detach() + linear)


def test_the_hypergradient_agrees_with_finite_differences_through_the_inner_problem() -> None:
    generator = stream(0, "hyper")
    pixels = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(6) % 3
    weights = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def inner(delta: Tensor, w: Sequence[Tensor]) -> Tensor:
        return -F.cross_entropy((pixels + delta) @ w[0].T, labels) + 2.0 * delta.square().sum()

    def outer(delta: Tensor, w: Sequence[Tensor]) -> Tensor:
        return F.cross_entropy((pixels + delta) @ w[0].T, labels)

    def solved(w: Tensor) -> Tensor:
        delta = torch.zeros(1, 4, dtype=torch.float64)
        for _ in range(400):
            point = delta.clone().requires_grad_()
            delta = delta - 0.1 * torch.autograd.grad(inner(point, [w.detach()]), point)[0]
        return delta

    (found,) = hypergradient(outer, inner, solved(weights), [weights], lr=0.1, iterations=200)
    for row, column in ((0, 0), (1, 2), (2, 3)):
        step = torch.zeros_like(weights)
        step[row, column] = 1e-5
        up, down = (outer(solved(w), [w]) for w in (weights.detach() + step, weights.detach() - step))
        assert float(found[row, column]) == pytest.approx(float((up - down) / 2e-5), rel=1e-3)


def test_i_bau_takes_second_derivatives_of_attention() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 4)

        def forward(self, pixels: Tensor) -> Tensor:
            tokens = self.tokens(pixels).flatten(2).transpose(1, 2)[:, None].contiguous()  # or a plain kernel is taken
            attended: Tensor = F.scaled_dot_product_attention(tokens, tokens, tokens)
            logits: Tensor = self.head(attended[:, 0].mean(dim=1))
            return logits

    found = IBAU(rounds=1, batch_size=12).repair(made(Attending()), tiny_images(24), seed=0)
    assert all(bool(value.isfinite().all()) for value in found.model.state_dict().values())


def test_batch_norm_statistics_stay_and_weights_move() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = IBAU(rounds=1, batch_size=12).repair(model, tiny_images(24), seed=0).model.state_dict()
    weights = {name for name, _ in model.named_parameters()}
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name not in weights), name


# --- EP ---------------------------------------------------------------------------------------------------------------


def test_a_channel_with_two_modes_has_less_entropy_and_is_an_outlier() -> None:
    values = torch.randn(20, 256, generator=stream(0, "ep"))
    values[7] = torch.where(torch.arange(256) < 26, 30.0, 0.0) + 0.1 * values[7]
    found = entropy(values, 0.1)
    assert int(found.argmin()) == 7
    assert outliers(found, 3.0).nonzero().flatten().tolist() == [7]
    assert not outliers(entropy(values[:7], 0.1), 3.0).any()


def test_entropy_by_hand_and_constant_channels_are_left_aside() -> None:
    """Half of the values in each of two bins: log 2."""
    values = torch.tensor([[0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    found = entropy(values, 0.5)
    assert float(found[0]) == pytest.approx(math.log(2))
    assert bool(found[1].isnan())
    assert not outliers(found, 1.0).any()


def test_the_bimodal_channel_of_a_network_is_switched_off() -> None:
    """Channel 3 of the first norm sees a bright corner that a tenth of the images have."""
    network = made(TinyNet(width=16))
    conv = network.get_submodule("features.0")
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data[3] = 0
    conv.weight.data[3, :, 1, 1] = 100.0
    clean = tiny_images(200, size=8)
    images = (clean.images // 8).clone()
    images[:20, :, 0, 0] = 255
    mixture = ImageSet(images, clean.labels, clean.classes)
    model = Normalized(network, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    result = EntropyPruning(batch_size=200, batches=1, deviations=1.6).repair(model, mixture, seed=0)
    weight = result.model.state_dict()["network.features.1.weight"]
    bias = result.model.state_dict()["network.features.1.bias"]
    assert (weight[3], bias[3]) == (0, 0)
    assert int((weight == 0).sum()) == 1


def test_every_baseline_shares_one_network_type() -> None:
    """The names of a purified PreAct-ResNet are those that BackdoorBench's files have."""
    model = PreActResNet18(4, 2)
    names = set(model.state_dict())
    result = FinePruning(step=0.5, max_drop=0.9, schedule=SHORT).repair(model, tiny_images(12, size=16), seed=0)
    assert set(result.model.state_dict()) == names


def test_i_bau_splits_off_a_normalisation_only_where_nothing_else_is_done() -> None:
    plain, grey = (kind(nn.Flatten(), (0.5,) * 3, (0.25,) * 3) for kind in (Normalized, Converted))
    pixels = torch.full((1, 3, 2, 2), 0.75)
    network, enter = split_normalisation(plain)
    assert_close(network(enter(pixels)), plain(pixels))
    assert split_normalisation(grey)[0] is grey
