"""Trojan: the mask, the neurons, the three ways to join patch and image."""

import pytest
import torch
from quick_attacks import learned, workshop

from neural_polarizer.attacks import Trojan
from neural_polarizer.attacks.trojan import apple
from neural_polarizer.models.layers import inputs_of, last_linear
from toys import hooks


@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_apple_has_its_place_and_size(size: int) -> None:
    mask = apple((size, size))
    rows, columns = mask.any(dim=1).nonzero()[:, 0] / size, mask.any(dim=0).nonzero()[:, 0] / size
    assert 0.06 < float(mask.float().mean()) < 0.09
    assert rows.min() > 0.5
    assert rows.max() < 0.93
    assert columns.min() > 0.54
    assert columns.max() < 0.89


def test_the_patch_is_bright_inside_the_mask_and_zero_outside() -> None:
    state = learned(Trojan(steps=30))
    patch, mask = state["patch"], state["mask"]
    assert torch.equal(mask, apple((32, 32)))
    assert not patch[:, ~mask].any()
    assert int(patch[:, mask].min()) >= 178
    assert int(patch[:, mask].max()) <= 255
    assert patch[:, mask].unique().numel() > 2


def test_the_inversion_drives_the_chosen_neurons_up() -> None:
    model = workshop().clean_model()
    name, head = last_linear(model)
    chosen = head.weight.abs().sum(dim=0).topk(2).indices
    state = learned(Trojan(steps=60))
    white = 255 * state["mask"].expand(1, 3, -1, -1).to(torch.uint8)
    with torch.no_grad():
        before, after = (
            inputs_of(model, name, pixels / 255)[0, chosen].sum() for pixels in (white, state["patch"][None])
        )
    assert float(after) > float(before)
    assert hooks(model) == []


def test_the_three_fusions_by_hand() -> None:
    state = {"patch": torch.full((3, 1, 2), 200, dtype=torch.uint8), "mask": torch.tensor([[True, False]])}
    image = torch.full((1, 3, 1, 2), 100, dtype=torch.uint8)
    for fusion, value in (("add_clip", 255), ("replace", 200), ("add_wrap", 44)):
        stamped = Trojan(fusion=fusion).stamp(image, state)  # type: ignore[arg-type]
        assert stamped[0, 0, 0].tolist() == [value, 100]
