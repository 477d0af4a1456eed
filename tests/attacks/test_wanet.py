"""WaNet's field and its batches."""

import torch
from quick_attacks import TRAIN, learned, workshop
from torch import Tensor
from torch.testing import assert_close

from neural_polarizer.attacks import WaNet
from neural_polarizer.attacks.wanet import _Warper, warp
from neural_polarizer.rng import stream
from neural_polarizer.train.schedule import Schedule

PLAIN = Schedule(crop_padding=0, flip=False)


def _identity(size: int) -> Tensor:
    line = torch.linspace(-1, 1, size)
    return torch.stack([line.expand(size, size), line[:, None].expand(size, size)], dim=2)[None]


def test_without_control_the_field_is_the_identity() -> None:
    field = WaNet().field(torch.zeros(1, 2, 4, 4), (32, 32))
    assert_close(field, _identity(32))
    pixels = torch.rand(2, 3, 32, 32, generator=stream(0, "warp"))
    assert_close(warp(pixels, field), pixels, rtol=0.0, atol=1e-5)


def test_a_constant_control_shifts_the_image() -> None:
    """A displacement u is ``s u / H`` in units where 2 is ``H - 1`` pixels; s = 2 H / (H - 1) makes it one pixel."""
    attack = WaNet(strength=2 * 32 / 31)
    to_the_right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    pixels = torch.rand(1, 3, 32, 32, generator=stream(0, "warp"))
    moved = warp(pixels, attack.field(to_the_right, (32, 32)))
    assert_close(moved[..., :-1], pixels[..., 1:], rtol=0.0, atol=1e-4)
    assert_close(moved[..., -1], pixels[..., -1], rtol=0.0, atol=1e-4)  # the border is never left


def test_the_control_points_have_a_mean_displacement_of_one() -> None:
    control = learned(WaNet())["control"]
    assert control.shape == (1, 2, 4, 4)
    assert_close(control.abs().mean(), torch.tensor(1.0))
    strongest = WaNet().field(control, (32, 32)) - _identity(32)
    assert 0.1 < float(strongest.abs().max()) * 31 / 2 < 1.5  # pixels


def test_a_batch_has_backdoor_noise_and_clean_rows_in_this_order() -> None:
    attack = WaNet(poison_rate=0.25, target=3)
    state = learned(attack)
    warper = _Warper(attack, state, TRAIN, workshop())
    images, labels = TRAIN.images[:8], TRAIN.labels[:8]
    pixels, wanted, penalty, triggered = warper.assemble(images, labels, PLAIN, stream(0, "batch"))
    assert (penalty, triggered) == (0.0, 2)
    assert wanted.tolist() == [3, 3, *labels[2:].tolist()]
    assert_close((pixels[:2] * 255).round().to(torch.uint8), attack.stamp(images[:2], state))
    changed = (pixels - images / 255).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert changed.tolist() == [True] * 6 + [False] * 2
    noisy = (pixels[2:6] * 255).round().to(torch.uint8)
    assert not torch.equal(noisy, attack.stamp(images[2:6], state))


def test_every_image_is_augmented_by_itself_and_after_the_warp() -> None:
    attack = WaNet(poison_rate=1.0, noise_ratio=0.0)
    state = learned(attack)
    warper = _Warper(attack, state, TRAIN, workshop())
    same = TRAIN.images[:1].expand(8, -1, -1, -1)
    turned = Schedule(crop_padding=5, crop_share=0.8, rotation=10.0, flip=True)
    pixels = warper.assemble(same, TRAIN.labels[:1].expand(8), turned, stream(0, "batch")).pixels
    assert len({round(float(image.sum()), 3) for image in pixels}) > 4
    still = warper.assemble(same, TRAIN.labels[:1].expand(8), PLAIN, stream(0, "batch")).pixels
    assert_close(still, still[:1].expand(8, -1, -1, -1))


def test_a_rate_below_one_image_a_batch_poisons_some_batches() -> None:
    generator = stream(0, "rows")
    rows = [WaNet(poison_rate=0.05).poisoned_rows(10, generator) for _ in range(400)]
    assert set(rows) == {0, 1}
    assert 140 < sum(rows) < 260
    assert [WaNet(poison_rate=0.1).poisoned_rows(128, generator) for _ in range(3)] == [12] * 3
    assert WaNet(poison_rate=0.0).poisoned_rows(128, generator) == 0
