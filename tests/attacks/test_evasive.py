"""Evasive: what a batch holds, and that perturbations stay in their ball and in the state of the training."""

from typing import Any

import pytest
import torch
from quick_attacks import TRAIN, untrained

from neural_polarizer.attacks import Evasive
from neural_polarizer.attacks.evasive import Keeper
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from neural_polarizer.train.schedule import Schedule

PLAIN = Schedule(crop_padding=0, flip=False)


def test_a_batch_has_backdoor_rows_perturbed_rows_with_true_labels_and_clean_rows() -> None:
    attack = Evasive(target=2, poison_rate=0.25, share=0.5, directions=3, steps=2, radius=1.5, renewal=0.0)
    model = untrained().train()
    keeper = Keeper(attack, model, TRAIN)
    images, labels = TRAIN.images[:16], TRAIN.labels[:16]
    pixels, found, penalty, triggered = keeper.assemble(images, labels, PLAIN, stream(0, "batch"))
    assert (triggered, penalty) == (4, 0.0)
    assert model.training
    assert found.tolist() == [2] * 4 + labels[4:].tolist()
    assert torch.equal(pixels[:4], to_pixels(attack.stamp(images[:4])))
    assert torch.equal(pixels[12:], to_pixels(images[12:]))
    deltas = keeper.network.get_buffer("deltas")
    lengths = deltas.flatten(1).norm(dim=1)
    assert ((lengths > 0.3) & (lengths <= 1.5 + 1e-5)).all()
    expected = (to_pixels(images[4:12]) + deltas[torch.arange(8) % 3]).clamp(0, 1)
    assert torch.allclose(pixels[4:12], expected)


def test_perturbations_go_on_from_batch_to_batch_and_end_at_the_radius() -> None:
    attack = Evasive(poison_rate=0.0, share=0.5, directions=2, steps=2, radius=1.0, renewal=0.0)
    keeper = Keeper(attack, untrained().train(), TRAIN)
    lengths = []
    for batch in range(4):
        keeper.assemble(TRAIN.images[:16], TRAIN.labels[:16], PLAIN, stream(batch, "batch"))
        lengths.append(float(keeper.network.get_buffer("deltas")[0].norm()))
    assert lengths[0] < lengths[1]
    assert lengths[-1] == pytest.approx(1.0, abs=0.3)
    fresh = Keeper(Evasive(renewal=1.0, steps=1, radius=1.0), untrained().train(), TRAIN)
    for batch in range(3):
        fresh.assemble(TRAIN.images[:16], TRAIN.labels[:16], PLAIN, stream(batch, "batch"))
        assert float(fresh.network.get_buffer("deltas")[0].norm()) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("settings", [{"radius": 0.0}, {"share": 1.0}, {"directions": 0}, {"renewal": 1.5}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="Evasive needs a positive radius"):
        Evasive(**settings)
