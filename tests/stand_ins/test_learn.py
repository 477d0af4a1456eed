"""Learning goes the same way however many of the network's channels say the same."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.stand_ins.learn import (
    Carried,
    Change,
    Layer,
    Lesson,
    _batch,
    _objective,
    centred,
    learn,
)
from neural_polarizer.defenses.stand_ins.seen import engine_at, seen
from neural_polarizer.defenses.stand_ins.settings import Learning, Settings
from toys import tiny_images


class Twofold(nn.Module):
    """A small network in which each channel between the two convolutions is there ``times`` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        first, last = torch.randn(4, 3, 3, 3, generator=drawn), torch.randn(4, 4, 3, 3, generator=drawn) / 3
        self.first, self.last = nn.Conv2d(3, 4 * times, 3, bias=False), nn.Conv2d(4 * times, 4, 3, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(first.repeat(times, 1, 1, 1))
            self.last.weight.copy_(last.repeat(1, times, 1, 1) / times)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.first(pixels).tanh()).mean(dim=(2, 3))


def lesson_at(net: Engine, unit: float, clean: ImageSet) -> Lesson:
    """Images that are brighter by 0.3 are to be answered as those that are not; there are no other stand-ins."""
    at, rows = seen(net, 32), torch.arange(len(clean))
    brighter = net.front((to_pixels(clean.images) + 0.3).clamp(0, 1))
    carried = Carried(brighter, None, rows, at.labels, at.labels, rows)
    return Lesson(at.values, centred(at.logits), [carried], [1.0], [], unit, rows)


def learned(times: int, clean: ImageSet) -> tuple[Tensor, float]:
    """By how much the layer moves the logits of the clean images, and the standard deviation of these without it."""
    net, unit = engine_at(Settings(), Twofold(times), clean, "after:first", seed=0, device="cpu")
    lesson = lesson_at(net, unit, clean)
    generator = torch.Generator().manual_seed(0)
    learn(
        net,
        Layer(net),
        lesson,
        Settings(batch_size=32, learning=Learning(lr=0.5)),  # 20 steps are few
        weight=1.0,
        steps=20,
        generator=generator,
        told=lambda *_: None,
    )
    with torch.no_grad():
        return centred(net.logits(lesson.values)) - lesson.logits, float(lesson.logits.std())


def test_a_network_whose_channels_are_there_twice_learns_the_same() -> None:
    """A step of Adam is as long for each weight, and twice as many of them move an output twice as far."""
    clean = tiny_images(40)
    once, scale = learned(1, clean)
    twice, _ = learned(2, clean)
    assert float(once.abs().mean()) > 0.05 * scale
    assert torch.allclose(once, twice, atol=1e-3 * scale)


def test_fewer_images_hold_the_layer_nearer_to_the_identity() -> None:
    """The pull falls with the root of the number of images, as the error of what they say does."""
    clean = tiny_images(40)
    net, unit = engine_at(Settings(), Twofold(1), clean, "after:first", seed=0, device="cpu")
    layer, lesson = Layer(net), lesson_at(net, unit, clean)
    layer.set(Change(torch.full_like(layer.nothing.mix, 0.1), layer.nothing.shift))
    settings = Settings(batch_size=32)
    batch = _batch(net, lesson, settings, torch.Generator().manual_seed(0))

    def loss(images: int) -> float:
        learned_from = replace(lesson, fit=torch.arange(images))
        return float(_objective(net, layer, learned_from, settings.learning, 0.0, batch).detach())

    pulled = settings.learning.pull * float(layer.pulled())
    assert loss(10) - loss(40) == pytest.approx(pulled * (10**-0.5 - 40**-0.5), rel=1e-4)


def test_a_move_of_the_layers_input_is_learned_from_as_a_value_that_has_it_in_it() -> None:
    clean = tiny_images(40)
    net, unit = engine_at(Settings(), Twofold(1), clean, "after:first", seed=0, device="cpu")
    lesson = lesson_at(net, unit, clean)
    (carried,) = lesson.carried
    moved = replace(carried, values=lesson.values, moves=carried.values[0] - lesson.values[0])
    found = []
    for bank in (carried, moved):
        values, moves, wanted = _batch(
            net, replace(lesson, carried=[bank]), Settings(batch_size=32), torch.Generator().manual_seed(0)
        )
        assert [len(each) for each in wanted] == [16, 16]  # half clean, half with stand-ins
        found.append(net.logits(values, moves))
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_forms_have_their_shares_of_a_batch_however_many_stand_ins_each_has() -> None:
    clean = tiny_images(40)
    net, unit = engine_at(Settings(), Twofold(1), clean, "after:first", seed=0, device="cpu")
    lesson = lesson_at(net, unit, clean)
    (many,) = lesson.carried
    few, none = many.select(torch.arange(2)), many.select(torch.arange(0))
    marked = replace(few, values=tuple(torch.full_like(value, 7.0) for value in few.values))
    lesson = replace(lesson, carried=[many, marked, none], shares=[0.25, 0.75, 0.0])
    values, _, wanted = _batch(net, lesson, Settings(batch_size=2000), torch.Generator().manual_seed(0))
    led = values[0][len(wanted[0]) :]
    assert len(led) == len(wanted[1]) == 1000
    assert float((led == 7.0).flatten(1).all(dim=1).float().mean()) == pytest.approx(0.75, abs=0.05)
