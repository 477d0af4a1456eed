"""What defenses that learn a polarizer compute with: the cut network and its cached values."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses import engine
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.errors import BadInputError
from toys import Residual, Untraceable, hooks, made, snapshot, tiny_images, tiny_model

CLEAN = tiny_images(24)


class InPlace(Residual):
    """Adds to its shortcut in place."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = features.add_(self.inner(features.relu()))
        return self.head(self.last(features).mean(dim=(2, 3)))


@pytest.fixture(params=["cut", "whole"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "whole":
        monkeypatch.setattr(engine, "cut", lambda *_: "not today")
    return request.param == "cut"


def made_engine(model: nn.Module, site: str | None = "after:features", batch_size: int = 10) -> Engine:
    return Engine(model, CLEAN, seed=0, site=site, batch_size=batch_size)


def test_it_gives_the_models_own_logits(cut: bool) -> None:
    model = tiny_model()
    before = snapshot(model)
    found = made_engine(model)
    pixels = to_pixels(CLEAN.images)
    found.calibrate()
    assert_close(found.logits(found.values), model(pixels), rtol=1e-4, atol=1e-4)
    assert_close(found.predict(pixels), model(pixels), rtol=1e-4, atol=1e-4)
    assert_close(found.logits(found.front(pixels)), model(pixels), rtol=1e-4, atol=1e-4)
    assert (found.num_classes, str(found.site), found.site_reason) == (4, "after:features", None)
    assert found.notes == ([] if cut else ["full forward passes instead of cached features: not today"])
    assert snapshot(model)[1:] == before[1:]
    assert [parameter.requires_grad for parameter in found.model.parameters()].count(True) == 3


def test_the_layers_input_and_the_shift_have_the_same_unit(cut: bool) -> None:
    """In absolute units: an input moved by d gives what the layer makes of it plus d."""
    found = made_engine(tiny_model())
    features = found.layer_input(found.values)
    assert features.shape == (24, *found.features.shape)
    shift = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    handle = found.polarizer.register_forward_hook(lambda _layer, args, _out: seen.append(args[0]))
    found.logits(found.values, shift)
    found.logits(found.values, shift[:1])
    found.logits(found.values)
    handle.remove()
    assert_close(seen[0], features + shift)
    assert_close(seen[1], features + shift[:1])
    assert_close(seen[2], features)
    assert hooks(found.model) == []


def test_values_stay_as_they_were_cached(cut: bool) -> None:
    found = made_engine(made(InPlace()), site="after:inner")
    before = [value.clone() for value in found.values]
    first, again = found.logits(found.values), found.logits(found.values)
    assert_close(first, again, rtol=0.0, atol=0.0)
    for value, old in zip(found.values, before, strict=True):
        assert torch.equal(value, old)


def test_calibration_tells_the_statistics_of_the_layers_input(cut: bool) -> None:
    found = made_engine(tiny_model())
    features = found.layer_input(found.values).double()
    mean, var = found.calibrate()
    assert_close(mean, features.mean(dim=(0, 2, 3)))
    assert_close(var, features.var(dim=(0, 2, 3), unbiased=False))
    assert_close(found.polarizer(features.float()), features.float(), rtol=1e-4, atol=1e-4)


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own() -> None:
    found = made_engine(tiny_model())
    first, other = (torch.cat(list(found.batches(0, "optimise", epoch))) for epoch in (0, 1))
    assert found.steps == len(list(found.batches(0, "optimise", 0))) == 3
    assert first.sort().values.tolist() == other.sort().values.tolist() == list(range(24))
    assert first.tolist() != other.tolist()
    assert torch.equal(first, torch.cat(list(found.batches(0, "optimise", 0))))


def test_a_site_that_nobody_named_comes_with_a_reason() -> None:
    found = made_engine(tiny_model(), site=None)
    assert found.site_reason


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInputError, match="the clean set is empty"):
        Engine(tiny_model(), CLEAN.select(torch.arange(0)), seed=0)
    with pytest.raises(BadInputError, match=r"toy: has label 4, but the model knows 4 classes \(0 to 3\)"):
        Engine(tiny_model(), tiny_images(10, num_classes=5), seed=0)
    maps = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(BadInputError, match="must give logits N x K"):
        Engine(made(maps), CLEAN, seed=0, site="before:1")


class InParts(nn.Module):
    """Gives its network a few images at once."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.network(part) for part in images.split(self.most)])


def test_a_network_that_splits_its_batches_needs_small_ones() -> None:
    model = InParts(tiny_model(), most=8)
    with pytest.raises(
        BadInputError, match=r"reads 8 images at once where .* is given 10; give a batch_size of at most 8"
    ):
        made_engine(model, site=None)
    assert made_engine(model, site=None, batch_size=8).logits((to_pixels(CLEAN.images[:8]),)).shape == (8, 4)


class Sometimes(Untraceable):
    """Leaves its features out for many images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if len(images) < 5 else torch.zeros(len(images), 4)


def test_a_site_that_the_network_does_not_always_run_is_refused() -> None:
    with pytest.raises(BadInputError, match="site 'after:features': the network does not always run it"):
        made_engine(made(Sometimes()))


class Asking(nn.Module):
    """Asks a part for what is private to it, as torch's transformers do of their attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        assert self.inner._conv_forward is not None
        return self.head(self.inner(images).mean(dim=(2, 3)))


def test_a_site_at_which_the_network_does_not_run_with_a_layer_is_refused() -> None:
    with pytest.raises(BadInputError, match="site 'after:inner': the network cannot run with a layer there"):
        made_engine(made(Asking()), site="after:inner")
