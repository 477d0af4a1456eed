"""What every defense owes; NPD has tests of its own."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.anp import ANP
from neural_polarizer.defenses.base import Defense
from neural_polarizer.defenses.clp import CLP
from neural_polarizer.defenses.entropy_pruning import EntropyPruning
from neural_polarizer.defenses.fine_pruning import FinePruning
from neural_polarizer.defenses.fine_tuning import FineTuning
from neural_polarizer.defenses.fst import FST
from neural_polarizer.defenses.ft_sam import FTSAM
from neural_polarizer.defenses.i_bau import IBAU
from neural_polarizer.defenses.nad import NAD
from neural_polarizer.defenses.neural_cleanse import NeuralCleanse
from neural_polarizer.defenses.recipes import with_precision
from neural_polarizer.defenses.rnp import RNP
from neural_polarizer.defenses.sau import SAU
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.train.schedule import Schedule
from toys import assert_same, hooks, made, snapshot, tiny_images, tiny_model

SHORT = Schedule(epochs=2, batch_size=8, lr=0.01, crop_padding=1, flip=False)
DEFENSES: dict[str, Defense] = {
    "ft": FineTuning(schedule=SHORT),
    "fp": FinePruning(schedule=SHORT, step=0.2, max_drop=0.5),
    "nad": NAD(teacher=SHORT, student=SHORT),
    "nc": NeuralCleanse(epochs=3, batch_size=8, success=0.0, threshold=0.0, schedule=SHORT),
    "anp": ANP(iterations=4, batch_size=8, lr=0.5, threshold=0.97),
    "i-bau": IBAU(rounds=2, batch_size=12),
    "ep": EntropyPruning(batch_size=12, batches=2, deviations=0.5),
    "ft-sam": FTSAM(schedule=SHORT),
    "fst": FST(schedule=SHORT),
    "clp": CLP(deviations=0.5),
    "rnp": RNP(images=8, unlearn=SHORT, recover=replace(SHORT, lr=3.0), max_drop=0.9),
    "sau": SAU(rounds=2, batch_size=8, steps=2),
}


def changes(before: nn.Module, after: nn.Module, images: ImageSet) -> bool:
    """Whether the two answer otherwise on ``images``."""
    with torch.no_grad():
        return not torch.equal(before(to_pixels(images.images)), after(to_pixels(images.images)))


ALL = pytest.mark.parametrize("name", DEFENSES)


@pytest.mark.long
@ALL
@pytest.mark.parametrize("network", ["tiny", "preactresnet18"])
def test_a_defense_gives_a_plain_model_and_leaves_everything_else_alone(name: str, network: str) -> None:
    model = tiny_model() if network == "tiny" else made(PreActResNet18(4, 2))
    clean = tiny_images(24, size=16)
    images, before, chance = clean.images.clone(), snapshot(model), torch.get_rng_state()
    result = DEFENSES[name].repair(model, clean, seed=0)
    after = snapshot(model)
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(clean.images, images)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]
    assert hooks(result.model) == []
    assert not any(module.training for module in result.model.modules())
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    assert {id(value) for value in result.model.parameters()}.isdisjoint(id(value) for value in model.parameters())
    plain = copy.deepcopy(model)
    plain.load_state_dict(result.model.state_dict())  # strict: the names are the model's own
    pixels = to_pixels(clean.images)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(pixels), result.model(pixels))
        assert not torch.equal(result.model(pixels), model.eval()(pixels))
    assert (result.polarizer, result.site) == (None, None)
    assert all(seconds >= 0 for seconds in result.seconds.values())


@pytest.mark.long
@ALL
def test_the_seed_fixes_the_result(name: str) -> None:
    clean = tiny_images(24)
    first, again = (DEFENSES[name].repair(tiny_model(), clean, seed=1).model.state_dict() for _ in range(2))
    assert_same(first, again)
    if name not in ("ep", "clp"):  # EP has all images in every batch, CLP needs none: there is nothing to draw
        other = DEFENSES[name].repair(tiny_model(), clean, seed=2).model.state_dict()
        assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.long
@ALL
def test_dropout_is_drawn_from_the_seed_only(name: str) -> None:
    """The caller's random state neither changes the result nor is changed."""
    clean = tiny_images(24)
    found = []
    for state in (3, 4):
        model = tiny_model()
        model.set_submodule("network.pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)))
        torch.manual_seed(state)
        before = torch.get_rng_state()
        found.append(DEFENSES[name].repair(model, clean, seed=1).model.state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(*found)


@pytest.mark.long
@ALL
def test_images_of_one_channel_will_do(name: str) -> None:
    images = tiny_images(24)
    grey = replace(images, images=images.images[:, :1])
    head = (nn.Flatten(), nn.Linear(256, 4))
    network = made(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *head))
    DEFENSES[name].repair(network, grey, seed=0)


@ALL
def test_no_images_are_refused(name: str) -> None:
    empty = tiny_images(8).select(torch.arange(0))
    with pytest.raises(BadInputError, match=r"toy: .*(empty|at least 2 images)"):
        DEFENSES[name].repair(tiny_model(), empty, seed=0)


@ALL
def test_a_handful_of_images_is_enough(name: str) -> None:
    few: ImageSet = tiny_images(5)
    result = DEFENSES[name].repair(tiny_model(), few, seed=0)
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())
    assert changes(tiny_model(), result.model, few) is (name != "rnp")  # whose masks stay above 0 in so few steps


@pytest.mark.parametrize("name", ["anp", "ep", "clp", "rnp"])
def test_methods_that_need_batch_norms_say_so(name: str) -> None:
    network = made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 4)))
    with pytest.raises(BadInputError, match="this network has none; use another defense"):
        DEFENSES[name].repair(network, tiny_images(8), seed=0)


@pytest.mark.parametrize("name", ["ft", "ft-sam", "fst", "sau"])
def test_methods_that_need_no_batch_norms_work_without(name: str) -> None:
    network = made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4)))
    assert changes(network, DEFENSES[name].repair(network, tiny_images(8), seed=0).model, tiny_images(8))


def test_fine_tuning_takes_the_whole_schedule() -> None:
    told: list[tuple[str, int, int]] = []
    schedule = replace(SHORT, batch_size=256)
    FineTuning(schedule=schedule).repair(
        tiny_model(), tiny_images(10), seed=0, progress=lambda *step: told.append(step)
    )
    assert told == [("train", 1, 2), ("train", 2, 2)]


@ALL
def test_images_of_other_classes_than_the_model_knows_are_refused(name: str) -> None:
    with pytest.raises(BadInputError, match=r"toy: has label 4, but the model knows 4 classes \(0 to 3\)"):
        DEFENSES[name].repair(tiny_model(), tiny_images(10, num_classes=5), seed=0)


@ALL
def test_a_model_without_logits_for_classes_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="must give logits N x K"):
        DEFENSES[name].repair(made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), tiny_images(8), seed=0)


@pytest.mark.parametrize("name", ["ft", "fp", "nad", "nc", "ft-sam", "fst", "sau"])
def test_a_class_that_would_be_forgotten_is_refused(name: str) -> None:
    clean = tiny_images(12)
    with pytest.raises(
        BadInputError, match=r"no image of 2 of 4 classes, the first is 1 \(class 1\); [\w-]+ trains all"
    ):
        DEFENSES[name].repair(tiny_model(), clean.select(clean.labels % 2 == 0), seed=0)
    unnamed = ImageSet(clean.images[:2], clean.labels[:2], clean.classes[:2])
    with pytest.raises(BadInputError, match=r"no image of 2 of 4 classes, the first is 2; [\w-]+ trains all"):
        DEFENSES[name].repair(tiny_model(), unnamed, seed=0)


@pytest.mark.parametrize("name", ["anp", "i-bau", "ep", "clp", "rnp"])
def test_other_methods_work_without_images_of_some_classes(name: str) -> None:
    clean = tiny_images(12)
    DEFENSES[name].repair(tiny_model(), clean.select(clean.labels % 2 == 0), seed=0)


@pytest.mark.parametrize("name", ["fp", "fst"])
def test_methods_that_need_a_linear_layer_say_so(name: str) -> None:
    network = made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(BadInputError, match="has no linear layer"):
        DEFENSES[name].repair(network, tiny_images(8), seed=0)


class Flat(nn.Linear):
    """A network that is one linear layer."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.flatten(1))


def test_fine_pruning_refuses_a_network_that_is_its_head() -> None:
    images = tiny_images(8)
    with pytest.raises(BadInputError, match="this network is that layer"):
        DEFENSES["fp"].repair(Flat(images.images[0].numel(), 4), images, seed=0)


def test_training_that_diverges_is_an_error_and_not_a_result() -> None:
    wild = FineTuning(schedule=replace(SHORT, lr=1e30))
    with pytest.raises(BadInputError, match="the loss was not finite in epoch 2 of 2; lower the learning rate"):
        wild.repair(tiny_model(), tiny_images(8), seed=0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ft", "fp", "nad", "nc", "anp", "ft-sam", "fst", "rnp", "sau"])
def test_bf16_gives_float32_weights(name: str) -> None:
    """With one image a class, as small batches meet other code than large ones."""
    settings = with_precision(DEFENSES[name], "bf16")
    for count in (4, 24):
        result = settings.repair(tiny_model(), tiny_images(count), seed=0)
        assert {value.dtype for value in result.model.parameters()} == {torch.float32}
