"""What ``Defense.repair`` does around every method."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses import DEFENSES, Defense, Outcome, Run
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.forms import float_type
from neural_polarizer.settings import changed, places
from neural_polarizer.train.schedule import Schedule
from toys import tiny_images, tiny_model


@dataclass(frozen=True, kw_only=True)
class Noisy(Defense):
    """Draws from torch's global generator, and leaves the model in another state than it got it."""

    spoil: float = 1.0

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        assert not any(part.training for part in model.modules())
        with run.timed("draw"), torch.no_grad():
            weight = model.get_parameter("network.head.weight")
            assert weight.dtype == torch.float32
            weight.add_(torch.randn_like(weight) * self.spoil)
        return Outcome(model.train().requires_grad_(False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_result_has_the_callers_type_modes_and_flags(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    model.get_submodule("network.features").train()
    model.get_parameter("network.head.bias").requires_grad_(False)
    found = Noisy().repair(model, tiny_images(8), seed=0).model
    assert float_type(found) == dtype
    assert [part.training for part in found.modules()] == [part.training for part in model.modules()]
    assert [each.requires_grad for each in found.parameters()] == [each.requires_grad for each in model.parameters()]


@dataclass(frozen=True, kw_only=True)
class Sited(Noisy):
    """Names of settings that other methods have, with other meanings."""

    site: str = "laboratory"
    data: str = "clean"


def test_the_names_of_settings_say_nothing_of_a_method() -> None:
    once = admitted(tiny_model(), tiny_images(8), device="cpu", force=True).repaired(
        changed(NPD(), {**NPD.smoke, "site": "after:features"}), seed=0, device="cpu"
    )
    assert Sited().repair(once.model, tiny_images(8), seed=0).site is None  # inserts nothing, so it may follow
    assert Sited().sees_mixture is None


def test_what_a_method_draws_without_a_generator_comes_from_the_seed() -> None:
    model = tiny_model()

    def head(seed: int) -> Tensor:
        return Noisy().repair(model, tiny_images(8), seed=seed).model.get_parameter("network.head.weight")

    torch.manual_seed(1)
    first, state = head(0), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(head(0), first)
    assert not torch.equal(head(1), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_record_says_how_the_result_came_about() -> None:
    found = Noisy(spoil=0.5).repair(tiny_model(), tiny_images(8), seed=3)
    assert (found.defense, found.seed, found.device) == (Noisy(spoil=0.5), 3, "cpu")
    assert list(found.seconds) == ["draw"]


def test_gradients_are_there_where_the_caller_has_switched_them_off() -> None:
    settings = NPD(epochs=1, batch_size=8)
    with torch.no_grad():
        off = settings.repair(tiny_model(), tiny_images(16), seed=0)
    on = settings.repair(tiny_model(), tiny_images(16), seed=0)
    assert off.polarizer is not None
    assert on.polarizer is not None
    torch.testing.assert_close(off.polarizer.state_dict(), on.polarizer.state_dict(), rtol=0.0, atol=0.0)


def test_weights_that_are_not_finite_are_an_error_unless_they_were_so_before() -> None:
    with pytest.raises(BadInputError, match="the training diverged: weights are NaN or infinite"):
        Noisy(spoil=1e39).repair(tiny_model(), tiny_images(8), seed=0)
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("network.head.bias")[0] = -torch.inf  # a class that is switched off
    assert not Noisy().repair(model, tiny_images(8), seed=0).model.get_parameter("network.head.bias").isfinite().all()


@pytest.mark.parametrize("seed", [None, True, 1.5, "0"])
def test_a_seed_is_a_whole_number(seed: Any, unchecked: None) -> None:
    with pytest.raises(BadInputError, match="the seed must be a whole number, got"):
        Noisy().repair(tiny_model(), tiny_images(8), seed=seed)


def test_a_method_needs_an_algorithm() -> None:
    with pytest.raises(TypeError, match="_run"):
        Defense()  # type: ignore[abstract]


class Largest(nn.Module):
    """Notes the largest batch that the network behind it has seen."""

    seen: list[int] = []  # noqa: RUF012 - shared by all copies, on purpose

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_model()

    def forward(self, pixels: Tensor) -> Tensor:
        if type(pixels) is Tensor:
            self.seen.append(len(pixels))
        return self.network(pixels)


TWICE = {"nc": 4, "sau": 2}
"""Methods that send several forms of a batch at once, as their settings say: so many of them."""


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name, kind in DEFENSES.items() if not hasattr(kind, "site")])
def test_no_pass_is_larger_than_the_batch_size(method: str) -> None:
    settings: Defense = changed(DEFENSES[method](), DEFENSES[method].smoke)
    settings = changed(settings, dict.fromkeys(places(settings, "batch_size"), 6))
    Largest.seen.clear()
    model = Largest()
    patient = admitted(model, tiny_images(24), force=True, batch_size=settings.at_once)
    patient.repaired(settings, seed=0)
    at_most = 6 * TWICE.get(method, 1) if settings.at_once == 6 else 256
    assert max(Largest.seen) <= at_most


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method, kind in DEFENSES.items()
        for name in places(kind(), "optimizer")
        if method != "nc"  # it finds no trigger here to unlearn
    ],
)
def test_the_optimizer_that_the_record_names_is_the_one_that_learns(
    method: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    optimize = Schedule.optimize

    def noted(schedule: Schedule, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        used.append(schedule.optimizer)
        return optimize(schedule, parameters)

    monkeypatch.setattr(Schedule, "optimize", noted)
    settings: Defense = changed(changed(DEFENSES[method](), DEFENSES[method].smoke), {name: "adamw"})
    patient = admitted(tiny_model(), tiny_images(24), force=True, batch_size=settings.at_once)
    patient.repaired(settings, seed=0)
    assert "adamw" in used
