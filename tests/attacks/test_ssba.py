"""SSBA: the two networks, their training, and the refusal of poor encoders."""

import pytest
import torch
from quick_attacks import TEST, TRAIN, learned, workshop

from neural_polarizer.attacks import SSBA, ssba
from neural_polarizer.attacks.ssba import Decoder, Encoder
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from toys import tiny_images

QUICK = SSBA(bits=2, width=8, steps=160, lr=2e-3, batch_size=8, rise=4000, min_bit_accuracy=0.0, min_psnr=0.0)


@pytest.mark.parametrize("size", [32, 64])
def test_the_networks_keep_the_image_size_and_read_every_bit(size: int) -> None:
    pixels = torch.rand(2, 3, size, size, generator=stream(0, "ssba"))
    for residual in (True, False):
        encoded = Encoder(100, 4, residual)(pixels, torch.ones(2, 100))
        assert encoded.shape == pixels.shape
        assert bool(((encoded >= 0) & (encoded <= 1)).all())
    assert Decoder(100, 4, size)(pixels).shape == (2, 100)


@pytest.mark.long
@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_training_teaches_the_decoder_to_read_any_string(bit: float) -> None:
    state = {**learned(QUICK), "secret": torch.full((1, 2), bit)}
    quality = QUICK.quality(TEST.images, state)
    assert quality["bit_accuracy"] == 1.0
    error = (QUICK.stamp(TEST.images, state).double() - TEST.images.double()) / 255
    assert quality["psnr"] == pytest.approx(float((-10 * error.square().mean(dim=(1, 2, 3)).log10()).mean()), rel=1e-4)


@pytest.mark.long
def test_the_residual_depends_on_the_image() -> None:
    state = learned(QUICK)
    residual = QUICK.stamp(TEST.images, state).int() - TEST.images.int()
    assert not torch.equal(residual[0], residual[1])


def test_a_poor_encoder_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"carries .*% of the bits at .* dB, but 99.0% at 22.0 dB are asked for"):
        SSBA(bits=8, steps=1).learn(TRAIN, workshop())


def test_the_encoder_is_shared_by_all_victims_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    first = learned(QUICK)
    monkeypatch.setattr(ssba, "Decoder", lambda *_: pytest.fail("trained again"))
    shared = SSBA(**{**vars(QUICK), "poison_rate": 0.3, "label_rule": "all-to-all", "target": 2})
    monkeypatch.setattr(SSBA, "quality", lambda *_: {"bit_accuracy": 1.0, "psnr": 99.0})
    assert torch.equal(learned(shared)["secret"], first["secret"])


def test_images_that_cannot_be_halved_five_times_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"a multiple of 32 pixels, got \(16, 16\)"):
        SSBA().check(tiny_images(4, size=16))
