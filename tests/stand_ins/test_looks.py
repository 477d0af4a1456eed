"""What is looked at on the frozen network, and that each measure can tell the class."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_polarizer.defenses.stand_ins import looks
from neural_polarizer.defenses.stand_ins.bank import gathered
from neural_polarizer.defenses.stand_ins.early import EarlyMap
from neural_polarizer.defenses.stand_ins.forms import PixelForm
from neural_polarizer.defenses.stand_ins.least import Space, StandIns
from neural_polarizer.defenses.stand_ins.looks import BY_CLASS, gain, look
from neural_polarizer.defenses.stand_ins.seen import Seen, at_last_map, engine_at, seen
from neural_polarizer.defenses.stand_ins.settings import Looks, Search, Settings
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.progress import silent
from toys import made, tiny_images

CLASSES = 4
SMALL = Settings(
    looks=Looks(pixels=8, images=4, features=1, program_steps=5, further=2),
    in_pixels=Search(steps=2, images=4),
    in_features=Search(steps=2, images=4),
)


def places(site: str | None) -> tuple[Seen, Seen | None]:
    model, clean = made(PreActResNet18(CLASSES, width=2)), tiny_images(24, size=16)
    net, _ = engine_at(SMALL, model, clean, site, seed=0, device="cpu")
    return seen(net, 16), at_last_map(SMALL, model, clean, net, seed=0, device="cpu")


def stand_ins(norms: list[float]) -> StandIns:
    count = len(norms)
    ones = torch.ones(count)
    return StandIns(torch.zeros(count, 3, 16, 16), torch.tensor(norms), ones, torch.arange(count) % CLASSES)


@pytest.mark.long
def test_the_last_map_is_looked_at_where_it_is_another_place_than_the_layers() -> None:
    at, last = places(None)
    assert str(at.net.site) == "before:layer4.1"
    assert last is not None
    assert str(last.net.site) == "after:layer4"
    found = look(at, last, SMALL, seed=0, told=silent)
    assert tuple(found.norms) == BY_CLASS
    assert all(bool(norms.isfinite().all()) for norms in found.norms.values())
    at, last = places("after:layer4")
    assert last is None
    assert bool(look(at, last, SMALL, seed=0, told=silent).norms["last_map"].isnan().all())


@pytest.mark.long
@pytest.mark.parametrize("told", ["dense", "smooth", "head", "features", "last_map", "gain of dense", "gain of smooth"])
def test_a_class_that_is_near_in_one_measure_only_is_the_likeliest(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    near, alike = torch.tensor([1.0, 0.01, 1.02, 0.98]), torch.tensor([1.0, 1.01, 0.99, 1.0])
    gained = iter(looks.GAINS)

    def norms(name: str) -> Tensor:
        return near if name == told else alike

    def in_pixels(_at: Seen, form: PixelForm, *_: Any) -> tuple[StandIns, StandIns]:
        return stand_ins([1.0] * CLASSES), stand_ins(norms(form.name).tolist())

    def dense(_at: Seen, aims: Tensor, *rest: Any) -> Tensor:
        found = norms("last_map" if rest[-1] == "the last map" else "features")
        return torch.cat([found, torch.ones(len(aims) - CLASSES)])

    monkeypatch.setattr(looks, "_in_pixels", in_pixels)
    monkeypatch.setattr(looks, "_dense", dense)
    monkeypatch.setattr(looks, "_of_head", lambda *_: norms("head"))
    monkeypatch.setattr(looks, "gain", lambda *_: 1 / norms(f"gain of {next(gained)}"))
    found = look(*places(None), SMALL, seed=0, told=silent)
    assert found.belief.likeliest == 1
    measured = {**found.norms, **{f"gain of {name}": 1 / gains for name, gains in found.gains.items()}}
    assert torch.allclose(measured.pop(told), near)
    assert all(torch.allclose(each, alike) for each in measured.values())


def linear(longer: float, images: int) -> tuple[Space, Settings]:
    """Twelve images, four of each of three classes, that a linear network sees."""
    logits = torch.tensor([[4.0, 0.0, 1.0], [0.0, 4.0, 1.0], [0.0, 1.0, 4.0]]).repeat(4, 1)
    labels = logits.argmax(dim=1)
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    space = Space(
        lambda rows, deltas: logits[rows] + deltas.flatten(1)[:, :2] @ weight.T,
        labels,
        torch.arange(3).unsqueeze(1).expand(3, 12),
        (3, 16, 16),
        1.0,
    )
    return space, replace(SMALL, looks=replace(SMALL.looks, longer=longer, gain_images=images))


def shifts(*towards: tuple[float, float]) -> StandIns:
    found = stand_ins([1.0] * len(towards))
    found.deltas.flatten(1)[:, :2] = torch.tensor(towards)
    return found


@pytest.mark.parametrize("longer", [1.5, 3.0])
def test_what_a_longer_stand_in_gains_is_what_it_adds_to_the_mean_margin(longer: float) -> None:
    space, settings = linear(longer, 100)
    found = gain(space, shifts((2.0, 0.0), (0.0, 2.0)), settings, torch.Generator().manual_seed(0))
    assert found.tolist() == pytest.approx([2.0 * (longer - 1), 4.0 * (longer - 1)])


def test_a_gain_is_told_by_so_many_images_and_never_below_zero() -> None:
    rows: list[int] = []
    space, settings = linear(1.5, 3)

    def forward(part: Tensor, deltas: Tensor) -> Tensor:
        rows.extend(part.tolist())
        return space.forward(part, deltas)

    counted = replace(space, forward=forward)
    found = gain(counted, shifts((-2.0, 0.0)), settings, torch.Generator().manual_seed(0))
    assert found.tolist() == [pytest.approx(1e-3)]
    assert len(rows) == 6  # each with the longer and with the least one
    assert all(int(space.labels[row]) != 0 for row in rows)
    idle = replace(space, labels=torch.zeros(12, dtype=torch.int64))
    assert bool(gain(idle, shifts((2.0, 0.0)), settings, torch.Generator().manual_seed(0)).isnan().all())


def test_the_least_of_each_class_is_looked_for_further(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, StandIns | None]] = []

    def least_stand_ins(*_: Any, search: Search, begin: StandIns | None, **__: Any) -> StandIns:
        calls.append((search.steps, begin))
        return stand_ins([3.0, 2.0, 5.0, 6.0, 1.0, 4.0, 9.0, 8.0] if begin is None else [1.5, 4.5, 0.5, 7.5])

    monkeypatch.setattr(looks, "least_stand_ins", least_stand_ins)
    at, _ = places(None)
    form = PixelForm("dense", (3, 16, 16), smooth=False, unit=1.0)

    def least(settings: Settings) -> tuple[int, list[float]]:
        found, least = looks._in_pixels(
            at, form, torch.arange(CLASSES), settings, torch.Generator().manual_seed(0), silent
        )
        return len(found), least.norms.tolist()

    assert least(SMALL) == (12, [1.5, 4.5, 0.5, 7.5])
    assert [steps for steps, _ in calls] == [2, 2]
    begin = calls[1][1]
    assert begin is not None
    assert begin.norms.tolist() == [2.0, 5.0, 1.0, 8.0]
    short = replace(SMALL, looks=replace(SMALL.looks, further=0))
    assert least(short) == (8, [2.0, 5.0, 1.0, 8.0])


def test_of_many_classes_the_nearest_are_looked_at_and_the_most_suspicious_in_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = 8
    in_pixels: list[list[int]] = []

    def pixels(_at: Seen, _form: PixelForm, classes: Tensor, *_: Any) -> tuple[StandIns, StandIns]:
        in_pixels.append(classes.tolist())
        found = replace(stand_ins([1.0] * len(classes)), aims=classes)
        return found, found

    def head(_at: Seen, classes: Tensor, _looks: Looks) -> Tensor:
        norms = torch.full((many,), torch.nan)
        norms[classes] = torch.tensor([1.0, 1.01, 0.99, 0.02, 1.0, 0.98, 1.02, 1.0])[classes]  # class 3 is suspicious
        return norms

    monkeypatch.setattr(looks, "_in_pixels", pixels)
    monkeypatch.setattr(looks, "_dense", lambda _at, aims, *_: torch.ones(len(aims)))
    monkeypatch.setattr(looks, "_of_head", head)
    monkeypatch.setattr(looks, "_behind", lambda *_: torch.tensor([7.0, 6.0, 5.0, 1.0, 0.0, 2.0, 3.0, 4.0]))
    model, clean = made(PreActResNet18(many, width=2)), tiny_images(24, num_classes=many, size=16)
    net, _ = engine_at(SMALL, model, clean, None, seed=0, device="cpu")
    at, drawn = seen(net, 16), set()
    for seed in range(20):
        coarse = replace(SMALL, looks=replace(SMALL.looks, classes=2, pixel_classes=1))
        found = look(at, None, coarse, seed=seed, told=silent)
        closely, finely = found.norms["features"].isfinite(), found.norms["dense"].isfinite()
        assert closely[[3, 4]].all()
        assert closely.sum() == 4
        assert in_pixels[-1] == finely.nonzero()[:, 0].tolist()
        assert finely[3]
        assert finely.sum() == 2
        assert bool((finely <= closely).all())
        assert found.belief.likeliest == 3
        drawn.update(in_pixels[-1])
    assert drawn == set(range(many))  # the others are drawn
    found = look(at, None, replace(SMALL, looks=replace(SMALL.looks, classes=4, pixel_classes=1)), seed=0, told=silent)
    assert in_pixels[-1] == list(range(many))  # with no more than twice as many, all are looked at everywhere


def test_a_class_is_as_far_behind_as_it_is_for_the_median_image_of_another() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0], [5.0, 2.0, 0.0], [5.0, 4.0, 0.0], [0.0, 9.0, 8.0], [7.0, 3.0, 9.0]])
    found = looks._behind(logits, torch.tensor([0, 0, 0, 1, 2]))
    assert found.tolist() == [2.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("pixels_at_once", "most"),
    [(2_000_000, 16), (2048, 8), (1, 4)],  # the batch size; what fits; the images of one stand-in's step
)
def test_large_pictures_are_searched_fewer_at_once(
    pixels_at_once: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen_at_once: list[int] = []
    settings = replace(SMALL, batch_size=16, pixels_at_once=pixels_at_once)
    model, clean = made(PreActResNet18(CLASSES, width=2)), tiny_images(24, size=16)
    net, _ = engine_at(settings, model, clean, None, seed=0, device="cpu")
    predict = net.predict

    def noted(pixels: Tensor) -> Tensor:
        seen_at_once.append(len(pixels))
        return predict(pixels)

    monkeypatch.setattr(net, "predict", noted)
    at = seen(net, 16)
    found = look(at, None, settings, seed=0, told=silent)
    assert max(seen_at_once) == most
    early = EarlyMap(settings, at.net, tiny_images(24, size=16), seed=0, device="cpu")
    seen_at_once.clear()
    every = gathered(at, early, settings, found, found.belief, seed=0, told=silent)
    assert max(seen_at_once) == most
    # A window that misses the place of the trigger would hold no stand-in for it.
    for taught in every.taught["dense"].deltas:
        assert float((taught != 0).float().mean()) > 0.9
