"""CNPD: the step of each layer by hand, the layer that an image takes, and what becomes of the model."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import neural_polarizer
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses import CNPD, NPD
from neural_polarizer.defenses.cnpd import mean_of
from neural_polarizer.errors import BadInputError
from neural_polarizer.exporting.export import export_model
from neural_polarizer.layer.by_class import ByClass
from neural_polarizer.layer.features import Features
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.structures import make_polarizer, polarizer_for
from neural_polarizer.layer.surgery import PolarizedModule, Site, insert
from neural_polarizer.models.build import build
from neural_polarizer.models.normalize import Converted, Normalized
from toys import TinyNet, assert_same, backbone_state, made, polarizers, snapshot, tiny_images, tiny_model

QUICK = CNPD(site="after:features.2", epochs=2, warmup_epochs=1, batch_size=8, lr=0.05)
SITE = Site.parse("after:features.2")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def varied(model: nn.Module) -> nn.Module:
    """``model`` with a head that takes the images of ``tiny_images`` for several classes."""
    head = next(module for module in model.modules() if isinstance(module, nn.Linear))
    found = model(to_pixels(tiny_images(48).images))
    head.bias.sub_((found["logits"] if isinstance(found, dict) else found).median(dim=0).values)
    return model


def by_class(model: nn.Module, count: int = 4) -> nn.Module:
    """``model`` with layers that are far from the identity and from each other."""
    return insert(model, SITE, ByClass([polarizers(seed, 6) for seed in range(count)])).eval()


def layers_of(model: nn.Module) -> list[Polarizer]:
    (found,) = [module for module in model.modules() if isinstance(module, ByClass)]
    return [layer for layer in found.layers if isinstance(layer, Polarizer)]


# --- Two passes -------------------------------------------------------------------------------------------------------


def test_each_image_takes_the_layer_of_the_class_that_the_network_says_without_any() -> None:
    model, pixels = varied(tiny_model()), to_pixels(tiny_images(48).images)
    says = model(pixels).argmax(dim=1)
    assert says.unique().numel() > 2
    single = torch.stack([insert(model, SITE, polarizers(seed, 6))(pixels) for seed in range(4)])
    assert_close(by_class(model)(pixels), single[says, torch.arange(48)])
    assert_close(by_class(model)(pixels[:1]), single[says[:1], torch.arange(1)])


def test_a_layer_that_is_switched_off_lets_everything_through() -> None:
    model, pixels = tiny_model(), to_pixels(tiny_images(8).images)
    polarized = by_class(model)
    (wrapped,) = [module for module in polarized.modules() if isinstance(module, PolarizedModule)]
    wrapped.enabled = False
    assert_close(polarized(pixels), model(pixels))


def test_a_copy_runs_by_itself_and_an_error_leaves_nothing_behind() -> None:
    polarized, pixels = by_class(tiny_model()), to_pixels(tiny_images(8).images)
    expected, twin = polarized(pixels), copy.deepcopy(polarized)
    for parameter in polarized.parameters():
        parameter.zero_()
    assert torch.equal(twin(pixels), expected)
    (layer,) = [module for module in twin.modules() if isinstance(module, ByClass)]
    with pytest.raises(RuntimeError):
        twin(pixels[:, :2])
    assert (layer.first.running, layer.first.classes) == (False, None)
    assert torch.equal(twin(pixels), expected)


def test_a_part_of_the_network_has_no_classes_and_says_so() -> None:
    (wrapped,) = [module for module in by_class(tiny_model()).modules() if isinstance(module, PolarizedModule)]
    with pytest.raises(BadInputError, match="two passes of the whole network: call the network, not a part"):
        wrapped(torch.zeros(2, 6, 8, 8))


def test_a_network_that_splits_its_batches_is_refused() -> None:
    class InParts(TinyNet):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([super(InParts, self).forward(part) for part in images.split(5)])

    polarized = by_class(made(InParts()))
    assert polarized(to_pixels(tiny_images(5).images)).shape == (5, 4)
    with pytest.raises(BadInputError, match="read 5 images at once where the network was given 8; choose another site"):
        polarized(to_pixels(tiny_images(8).images))


class Named(TinyNet):
    """Its logits are one of several outputs."""

    def forward(self, images: Tensor) -> Any:
        return {"features": self.features(images), "logits": super().forward(images)}


@pytest.mark.parametrize("yes_no", [False, True])
def test_logits_of_other_forms_choose_too(yes_no: bool) -> None:
    network = varied(made(TinyNet(1) if yes_no else Named()))
    options: dict[str, Any] = {"yes_no": True} if yes_no else {"output": "logits"}
    model = Converted(network, (0.0,) * 3, (1.0,) * 3, **options)
    pixels = to_pixels(tiny_images(48).images)
    says = model(pixels).argmax(dim=1)
    assert says.unique().numel() > 1
    single = torch.stack([insert(model, SITE, polarizers(seed, 6))(pixels) for seed in range(4)])
    assert_close(by_class(model)(pixels), single[says, torch.arange(48)])


@pytest.mark.parametrize("layout", ["NHWC", "NLC", "NC"])
def test_channels_may_be_the_last_axis(layout: Any) -> None:
    shape = {"NHWC": (2, 3, 6), "NLC": (5, 6), "NC": (6,)}[layout]
    single = [made(make_polarizer("conv-bn", Features(shape, layout), torch.Generator()), seed) for seed in range(2)]
    layer = ByClass([each for each in single if isinstance(each, Polarizer)]).eval()
    assert layer.channels_last
    layer.first.classes = torch.tensor([1, 0, 1])
    features = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([single[k](features)[row] for row, k in enumerate((1, 0, 1))])
    assert_close(layer(features), expected)


# --- Learning ---------------------------------------------------------------------------------------------------------


def test_one_step_of_each_layer_by_hand() -> None:
    """A linear network of two classes; an image of the target's own class is not perturbed towards it."""
    network = made(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)))
    images = torch.zeros(2, 3, 1, 2, dtype=torch.uint8)
    images[:, 0, 0] = torch.tensor([[255, 51], [102, 204]])
    clean, labels = ImageSet(images, torch.tensor([0, 1]), ("a", "b"), "toy"), np.array([0, 1])
    settings = CNPD(
        site="before:1", init="calibrated", epochs=1, batch_size=2, lr=0.5, momentum=0.0, weight_decay=0.0,
        steps=1, step_size=0.1, radii=(10.0,), asr_weight=0.3, bce_weight=0.0,
    )  # fmt: skip
    found = layers_of(settings.repair(network, clean, seed=0).model)
    w, bias = (network.get_parameter(f"1.{name}").numpy().astype(np.float64) for name in ("weight", "bias"))
    x = images.flatten(1).numpy() / 255

    def softmax(values: np.ndarray) -> np.ndarray:
        z = np.exp(values @ w.T + bias)
        return z / z.sum(axis=-1, keepdims=True)

    for target in (0, 1):
        slope = w.T @ (softmax(x) - np.eye(2)[labels]).T @ x / 2
        led = 1 - target  # the only image of another class, which has its label's number
        push = -0.1 * np.sign(w.T @ (softmax(x[led]) - np.eye(2)[target]))
        hostile = np.clip(x[led] + push, 0, 1)
        slope += 0.3 * np.outer(w.T @ (softmax(hostile) - np.eye(2)[led]), hostile)
        mix = torch.from_numpy(np.eye(6) - 0.5 * slope)
        assert_close(found[target].mix.weight.double(), mix, rtol=1e-4, atol=1e-5)


def test_each_layer_is_that_of_npd_tp_with_its_class_as_the_target() -> None:
    clean = tiny_images(24)
    result = QUICK.repair(tiny_model(), clean, seed=3)
    shared = {name: value for name, value in vars(QUICK).items() if name != "target"}
    for target, layer in enumerate(layers_of(result.model)):
        alone = NPD(**shared, target=target).repair(tiny_model(), clean, seed=3).polarizer
        assert alone is not None
        assert_same(layer.state_dict(), alone.state_dict())
    assert len(layers_of(result.model)) == 4


def test_progress_goes_through_all_classes_and_history_is_their_mean() -> None:
    told: list[tuple[str, int, int]] = []
    result = QUICK.repair(tiny_model(), tiny_images(24), seed=0, progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "optimise"] == [("optimise", n, 24) for n in range(1, 25)]
    assert [record["epoch"] for record in result.history] == [1.0, 2.0]
    histories = [[{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0}], [{"epoch": 1.0, "loss": 4.0}]]
    assert mean_of(histories) == [{"epoch": 1.0, "loss": 3.0}, {"epoch": 2.0, "loss": 1.0}]
    assert mean_of([[], []]) == []


@pytest.mark.long
def test_the_frame_keeps_its_promises() -> None:
    model, clean = tiny_model().train(), tiny_images(24)
    before, chance = snapshot(model), torch.get_rng_state()
    first, again, other = (QUICK.repair(model, clean, seed=seed) for seed in (0, 0, 1))
    after = snapshot(model)
    assert torch.equal(torch.get_rng_state(), chance)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]
    assert_same(first.model.state_dict(), again.model.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), other.model.state_dict().values(), strict=True))  # fmt: skip # noqa: E501
    assert_same(backbone_state(first.model), model.state_dict())
    assert all(module.training for module in first.model.modules())
    assert (first.site, first.suspect) == ("after:features.2", None)
    pixels = to_pixels(clean.images)
    assert not torch.equal(first.model.eval()(pixels), model.eval()(pixels))


def test_a_model_in_half_precision_gets_layers_of_its_type() -> None:
    result = QUICK.repair(tiny_model().half(), tiny_images(24), seed=0)
    assert {value.dtype for value in result.model.parameters()} == {torch.float16}
    assert result.model(to_pixels(tiny_images(4).images).half()).isfinite().all()


def test_a_plain_network_with_one_logit_keeps_both_passes() -> None:
    network, clean = varied(made(TinyNet(1))), tiny_images(24, num_classes=2)
    result = replace(QUICK, lr=0.5).repair(network, clean, seed=0)
    pixels = to_pixels(clean.images)
    says = (network(pixels)[:, 0] > 0).long()
    assert sorted(says.unique().tolist()) == [0, 1]
    single = torch.stack([insert(network, SITE, layer)(pixels) for layer in layers_of(result.model)])
    assert_close(result.model(pixels), single[says, torch.arange(24)])


@pytest.mark.parametrize(
    "change", [{"target": 1}, {"goal": "untargeted"}, {"perturbation": "universal"}, {"structure": "conv"}]
)
def test_settings_that_would_make_it_another_method_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="CNPD learns each class's layer with that class as the target"):
        replace(QUICK, **change)


def test_many_classes_are_warned_of() -> None:
    assert QUICK.cost_of_classes(500, 10) is None
    told = CNPD(batch_size=100, epochs=5).cost_of_classes(450, 200)
    assert told is not None
    assert "each of 200 classes, with 5 passes over 450 images: 5,000 steps" in told


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_it_is_saved_loaded_and_put_back_but_not_folded(tmp_path: Path) -> None:
    model = made(Normalized(build("preactresnet18", 4, width=2), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    clean = tiny_images(16, size=16)
    done = neural_polarizer.purify(
        model, clean, "cnpd", scale="laptop", epochs=1, site="before:layer4.1.conv1", device="cpu", force=True
    )
    pixels = to_pixels(clean.images)
    expected = done.model(pixels)
    assert not torch.equal(expected, model(pixels))
    done.save(tmp_path / "run")
    assert_close(neural_polarizer.load(tmp_path / "run")(pixels), expected)
    assert_close(neural_polarizer.load_polarizer(model, tmp_path / "run" / "polarizer.safetensors")(pixels), expected)
    with pytest.raises(BadInputError, match="a layer of structure by-class cannot be folded, only conv-bn can"):
        neural_polarizer.fold(done, clean)


@pytest.mark.long
def test_it_is_exported_as_a_graph_of_both_passes(tmp_path: Path) -> None:
    model, images = by_class(varied(tiny_model())), tiny_images(6)
    done = export_model(model, tmp_path / "model.pt2", "pt2", images)
    assert done.layer is not None
    assert done.layer.startswith("not folded, the layer stays in the model: a layer of structure by-class")
    pixels = to_pixels(tiny_images(30, seed=2).images)
    assert_close(torch.export.load(done.path).module()(pixels), model(pixels))


def test_a_saved_layer_is_sized_by_its_own_weights() -> None:
    tensors = ByClass([Polarizer(3), Polarizer(3)]).state_dict()
    found = polarizer_for("by-class", tensors)
    assert isinstance(found, ByClass)
    assert found.state_dict().keys() == tensors.keys()
    assert polarizer_for("by-class", {}) is None
    assert polarizer_for("by-class", {**tensors, "layers.1.mix.weight": torch.zeros(3000, 1, 1, 1)}) is None
    with pytest.raises(BadInputError, match="take the method cnpd"):
        make_polarizer("by-class", Features((3, 2, 2), "NCHW"), torch.Generator())


def test_training_mode_is_calibrated_alike() -> None:
    layer = ByClass([Polarizer(2), Polarizer(2)]).eval()
    mean, var = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.25])
    layer.calibrate(mean, var)
    layer.first.classes = torch.tensor([0, 1])
    features = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert_close(layer(features), features)
