"""Input-Aware's networks, losses and batches."""

import pytest
import torch
from quick_attacks import TEST, TRAIN, learned, quick_attack, untrained, workshop
from torch.testing import assert_close

from neural_polarizer.attacks import InputAware
from neural_polarizer.attacks.input_aware import Maker, _Forger, diversity, soft_threshold
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from neural_polarizer.train.schedule import Schedule
from toys import made, tiny_images

PLAIN = Schedule(crop_padding=0, flip=False)


def test_the_networks_have_the_papers_size_and_range() -> None:
    """Convolutions: 3-32-32, 64-64, 128-128, 128, then 128-64, 64-32, 32-out behind one more each."""
    maker = Maker(3, (32, 64, 128)).eval()
    plan = [tuple(layer.weight.shape[:2]) for layer in maker.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert plan == [
        *((32, 3), (32, 32), (64, 32), (64, 64), (128, 64), (128, 128), (128, 128)),
        *((128, 128), (64, 128), (64, 64), (32, 64), (32, 32), (3, 32)),
    ]
    drawn = maker(torch.rand(2, 3, 32, 32, generator=stream(0, "maker")))
    assert drawn.shape == (2, 3, 32, 32)
    assert bool(((drawn > 0) & (drawn < 1)).all())


def test_the_soft_threshold_by_hand() -> None:
    assert_close(soft_threshold(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.0, 0.5, 1.0]), rtol=0.0, atol=1e-6)
    assert_close(soft_threshold(torch.tensor(0.45)), torch.tensor(0.5 + torch.tensor(-1.0).tanh().item() / 2))


def test_diversity_is_small_where_triggers_differ() -> None:
    one, other = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    assert float(diversity(one, other, one, other)) == pytest.approx(1.0, rel=1e-4)
    assert float(diversity(one, other, one, other * 2)) == pytest.approx(0.5, rel=1e-4)
    assert float(diversity(one, other, one, one + 1e-3)) == pytest.approx(500, rel=1e-2)
    triggers = one.clone().requires_grad_()
    diversity(one, other, triggers, one).backward()
    assert triggers.grad is not None
    assert bool(triggers.grad.isfinite().all())


def test_the_loss_of_the_mask_by_hand() -> None:
    """100 times 0.1 beyond the density, and images 4 x 0.5 apart after normalisation over masks 0.4 apart."""
    black, grey = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    mine, theirs = torch.full((2, 1, 4, 4), 0.132), torch.full((2, 1, 4, 4), 0.532)
    assert float(InputAware().mask_loss(black, grey, mine, theirs)) == pytest.approx(100 * 0.1 + 2 / 0.4, rel=1e-4)


def test_the_mask_is_compared_with_that_of_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, ...]] = []
    loss = InputAware.mask_loss

    def watched(self: InputAware, *given: torch.Tensor) -> torch.Tensor:
        seen.append(given)
        return loss(self, *given)

    monkeypatch.setattr(InputAware, "mask_loss", watched)
    learned(InputAware(mask_epochs=1, widths=(8, 8, 8), density=0.07))  # of no other test, so not in the cache
    first, second, mine, theirs = seen[0]
    assert not bool((first == second).flatten(1).all(dim=1).any())
    assert torch.equal(first.roll(1, 0), second)
    assert torch.equal(mine.roll(1, 0), theirs)


@pytest.mark.long
def test_training_the_mask_makes_it_small() -> None:
    attack = InputAware(mask_epochs=12, widths=(8, 8, 8))
    state = learned(attack)
    rough = learned(InputAware(mask_epochs=1, widths=(8, 8, 8), generator_lr=1e-9))
    pixels = to_pixels(TEST.images)
    with torch.no_grad():
        after, before = (
            float(soft_threshold(attack._makers(found).get_submodule("mask")(pixels)).mean())
            for found in (state, rough)
        )
    assert before > 0.3
    assert after < 0.1


def test_a_batch_has_backdoor_cross_and_clean_rows_in_this_order() -> None:
    attack = quick_attack("input-aware", poison_rate=0.25, target=3)
    assert isinstance(attack, InputAware)
    makers = made(attack._makers(learned(attack)), 3)
    forger = _Forger(attack, makers, TRAIN)
    makers.eval()
    images, labels = TRAIN.images[:8], TRAIN.labels[:8]
    pixels, wanted, penalty, triggered = forger.assemble(images, labels, PLAIN, stream(0, "batch"))
    assert triggered == 2
    assert wanted.tolist() == [3, 3, *labels[2:].tolist()]
    assert_close(pixels[4:], to_pixels(images[4:]))
    state = makers.state_dict()
    shown = (pixels.detach() * 255).round().to(torch.uint8)
    assert torch.equal(shown[:2], attack.stamp(images[:2], state))
    assert not torch.equal(shown[2:4], attack.stamp(images[2:4], state))  # the triggers of other images
    assert isinstance(penalty, torch.Tensor)
    (pixels.sum() + penalty).backward()
    moved = [parameter.grad is not None for parameter in forger.network.parameters()]
    assert all(moved)
    assert all(parameter.grad is None for parameter in forger.mask.parameters())


def test_planting_trains_the_pattern_network_and_leaves_the_mask_alone() -> None:
    attack = quick_attack("input-aware", poison_rate=0.25)
    state = learned(attack)
    planted = attack.plant(untrained(), TRAIN, state, workshop())
    for name, value in planted.state.items():
        assert torch.equal(value, state[name]) == name.startswith("mask.") or not value.is_floating_point(), name


def test_images_whose_sides_cannot_be_halved_three_times_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"multiples of 8, got \(12, 12\)"):
        InputAware().check(tiny_images(4, size=12))
