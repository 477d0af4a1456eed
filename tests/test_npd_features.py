"""Perturbations of what enters the layer, and the fast mode that has no others."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.defenses import neural_polarizer as npd
from neural_polarizer.defenses import npd_aims
from neural_polarizer.perturb import perturb_features
from neural_polarizer.polarizer import Polarizer, shifted
from npd_cases import CASES, MOVED, SMALL, polarizer_of, repaired
from toys import assert_same, hooks, tiny_images, tiny_model

# --- The perturbation itself ------------------------------------------------------------------------------------------

FEATURES = torch.randn(12, 5, 2, 2, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(12) % 4


def predict(shift: Tensor) -> Tensor:
    return (FEATURES + shift).tanh().mean(dim=(2, 3)) @ HEAD


def moved(groups: Tensor, *, radius: float = 0.5, steps: int = 3, targeted: bool = True) -> Tensor:
    return perturb_features(predict, FEATURES.shape[1:], TARGETS, groups, radius=radius, steps=steps, targeted=targeted)


@pytest.mark.parametrize("targeted", [True, False])
def test_perturbations_stay_in_the_ball_and_change_the_loss_as_asked(targeted: bool) -> None:
    before = F.cross_entropy(predict(torch.zeros_like(FEATURES)), TARGETS)
    for groups in (torch.arange(12), torch.zeros(12, dtype=torch.int64)):
        shift = moved(groups, targeted=targeted)
        lengths = shift.flatten(1).norm(dim=1)
        assert bool((lengths <= 0.5001).all())
        assert bool((lengths > 0.1).all())
        assert (F.cross_entropy(predict(shift), TARGETS) < before) == targeted
    assert not moved(torch.arange(12), steps=0).any()


def test_groups_have_one_perturbation_and_images_of_others_do_not_matter_to_it() -> None:
    groups = torch.tensor([7, 7, -3, 7, 5, 5, 5, 5, 5, 5, 5, 5])
    shift = moved(groups)
    assert torch.equal(shift[0], shift[1])
    assert torch.equal(shift[0], shift[3])
    assert not torch.equal(shift[0], shift[2])
    assert not torch.equal(shift[0], shift[4])
    assert_close(shift[2], moved(torch.arange(12))[2])


def test_a_shift_counts_in_norms_of_the_image_and_ends_with_its_block() -> None:
    polarizer = Polarizer(5).eval()
    shift = torch.full_like(FEATURES, 0.1)
    norms = FEATURES.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    plain = polarizer(FEATURES)
    with shifted(polarizer, shift):
        found = polarizer(FEATURES)
    assert_close(found, polarizer(FEATURES + 0.1 * norms))
    with pytest.raises(ZeroDivisionError), shifted(polarizer, shift):
        _ = 1 / 0
    assert torch.equal(polarizer(FEATURES), plain)
    assert hooks(polarizer) == []


# --- In a run ---------------------------------------------------------------------------------------------------------


def passes(monkeypatch: pytest.MonkeyPatch, **changes: object) -> int:
    """Images that go through what lies in front of the layer, less those of the start."""
    seen: list[int] = []
    cut = npd._Learner._cut

    def watched(self: npd._Learner, probe: Tensor) -> object:
        prefix, tail = cut(self, probe)

        def counted(pixels: Tensor) -> tuple[Tensor, ...]:
            seen.append(len(pixels))
            return prefix(pixels)

        return counted, tail

    with monkeypatch.context() as patched:
        patched.setattr(npd._Learner, "_cut", watched)
        repaired(tiny_model(), tiny_images(24), replace(MOVED, **changes))  # type: ignore[arg-type]
    return sum(seen) - 24


def test_the_fast_mode_computes_what_lies_in_front_of_the_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(monkeypatch, speed="fast") == 0
    assert passes(monkeypatch, feature_share=1.0) == 0
    half, none = passes(monkeypatch, feature_share=0.5, target=1), passes(monkeypatch, target=1)
    assert 0.3 * none < half < 0.7 * none


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_where_pixels_have_no_aim_all_is_done_in_features_unless_there_are_none(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(npd_aims, "aim_of_pixels", lambda pixels, features: None)
    settings = replace(MOVED, suspect=True, feature_share=share)
    expected = replace(MOVED, speed="fast") if share else MOVED
    found, other = (polarizer_of(repaired(tiny_model(), tiny_images(24), each)) for each in (settings, expected))
    assert_same(found.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("fast", "features"))])
def test_a_run_is_repeatable_and_the_setting_matters(name: str) -> None:
    settings, clean = CASES[name], tiny_images(24)
    first, second, in_pixels = (
        polarizer_of(repaired(tiny_model(), clean, each)).state_dict()
        for each in (settings, settings, replace(settings, speed="exact", feature_share=0.0))
    )
    assert_same(first, second)
    assert not torch.equal(first["mix.weight"], in_pixels["mix.weight"])


def test_the_aim_is_the_class_that_features_reach_most_easily() -> None:
    """One class is closer to all images than the others are."""
    for chosen in range(4):
        model = tiny_model()
        with torch.no_grad():
            model.get_parameter("network.head.bias")[chosen] += 1.0
        audit = repaired(model, tiny_images(24), replace(SMALL, speed="fast", epochs=0)).audit
        assert audit is not None
        assert f"towards class {chosen}" in audit.summary
        margins = torch.tensor(audit.by_class["margin_in_features"])
        assert int(margins.argmax()) == chosen
