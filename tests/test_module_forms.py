"""Modules as users have them: what comes back has their dtype, modes and flags."""

import copy
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import neural_polarizer as npz
from module_cases import CLEAN, METHODS, purified
from neural_polarizer import BadInputError, ImageSet
from neural_polarizer.api import deploying
from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses import ANP, Audit, Defense, Outcome, Run
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.models.forms import copied, in_float32
from neural_polarizer.models.normalize import Normalized
from toys import TinyNet, assert_same, made, snapshot, tiny_model


def floats_of(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in model.state_dict().items() if value.is_floating_point()}


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_the_result_of_every_defense_has_the_form_of_the_callers_model(method: str) -> None:
    model = tiny_model().bfloat16().train()
    model.get_submodule("network.features").eval()
    model.get_submodule("network.head").requires_grad_(False)
    before = snapshot(model)
    result = purified(model, method).model
    after = snapshot(model)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]
    assert set(floats_of(result).values()) == {torch.bfloat16}
    flags = {name.replace(".module", ""): value.requires_grad for name, value in result.named_parameters()}
    assert {name: flags[name] for name, _ in model.named_parameters()} == {
        name: value.requires_grad for name, value in model.named_parameters()
    }
    modes = {name.replace(".module", ""): part.training for name, part in result.named_modules()}
    assert all(modes[name] == part.training for name, part in model.named_modules())
    assert all(value.grad is None for value in result.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_frozen_weights_keep_their_bits_and_the_layer_takes_their_type(dtype: torch.dtype) -> None:
    model = tiny_model().double()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.rand_like(value) * 1e-12)  # what float32 cannot hold
    model = model.to(dtype)
    result = purified(model)
    weights = dict(result.model.named_parameters())
    for name, value in model.named_parameters():
        kept = weights.get(name, weights.get(name.replace("features.", "features.module.")))
        assert kept is not None
        assert torch.equal(kept, value)
    assert result.polarizer is not None
    assert {value.dtype for value in result.polarizer.parameters()} == {dtype}
    pixels = to_pixels(CLEAN.images).to(dtype)
    assert result.model.eval()(pixels).dtype == dtype


def test_mixed_types_are_kept_one_by_one() -> None:
    model = tiny_model().half()
    model.get_submodule("network.features.1").float()
    found = floats_of(purified(model, "fp").model)
    assert found == floats_of(model)
    assert len(set(found.values())) == 2


def test_a_half_model_learns_what_the_float_model_of_the_same_weights_learns() -> None:
    half = tiny_model().half()
    whole = copy.deepcopy(half).float()
    found, expected = purified(half).polarizer, purified(whole).polarizer
    assert found is not None
    assert expected is not None
    assert_same(
        found.state_dict(),
        {name: value.half() if value.is_floating_point() else value for name, value in expected.state_dict().items()},
    )


def test_frozen_models_and_other_layouts_of_memory_come_back_as_they_were() -> None:
    frozen = tiny_model().requires_grad_(False)
    assert not any(value.requires_grad for value in purified(frozen).model.parameters())
    model = tiny_model().to(memory_format=torch.channels_last)
    weight = dict(purified(model).model.named_parameters())["network.features.module.0.weight"]
    assert weight.stride() == model.get_parameter("network.features.0.weight").stride()


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch, of Python 3.13.0
@torch.no_grad()
def test_a_compiled_model_gives_what_the_module_in_it_gives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)).eval()
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    compiled(to_pixels(CLEAN.images[:2]))  # code that no hook is called in
    wanted, found = (purified(each, site=None).model.state_dict() for each in (model, compiled))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def keeping(model: nn.Module) -> nn.Module:
    """Its own hook keeps features in it, with their part in a computation."""
    model.__dict__["kept"] = {}
    convolution = model.get_submodule("network.features.0")
    convolution.register_forward_hook(lambda _module, _args, found: model.__dict__["kept"].update(found=[found]))
    return model


def keeping_elsewhere(model: nn.Module) -> nn.Module:
    """Its own hook keeps features in a queue of an object."""
    kept = model.__dict__["kept"] = SimpleNamespace(latest=deque(maxlen=2))
    model.get_submodule("network.features.0").register_forward_hook(
        lambda _module, _args, found: kept.latest.append(found)
    )
    return model


def pruned(model: nn.Module) -> nn.Module:
    prune.l1_unstructured(model.get_submodule("network.features.0"), "weight", 0.3)
    return model


def normed(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and in many checkpoints
        nn.utils.weight_norm(model.get_submodule("network.features.0"))
    return model


@pytest.mark.parametrize("change", [keeping, keeping_elsewhere, pruned, normed])
@pytest.mark.parametrize("method", ["npd", "ft"])
def test_models_that_keep_what_they_computed_can_be_purified(change: Any, method: str) -> None:
    model = change(tiny_model())
    pixels = to_pixels(CLEAN.images)
    before = model(pixels).detach()  # with a gradient, so that what is kept cannot simply be copied
    assert npz.sites(model, 8)
    if change is keeping:
        twin = copied(model)
        assert twin.__dict__["kept"]["found"][0].data_ptr() != model.__dict__["kept"]["found"][0].data_ptr()
    result = purified(model, method).model
    assert torch.equal(model(pixels), before)
    first = next(
        each for name, each in result.named_parameters() if "features" in name and ".0." in name and each.ndim > 1
    )
    answered = result(pixels).detach()
    with torch.no_grad():
        first.mul_(-1)
    assert not torch.equal(result(pixels), answered)  # the copy computes from its own parameters


class Counting(TinyNet):
    """Counts how often it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = nn.Buffer(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.runs.add_(1)
        return super().forward(images)


def test_a_model_that_is_saved_is_not_run(tmp_path: Path) -> None:
    model = Counting()
    npz.save(model, tmp_path / "a.safetensors")
    assert model.runs.item() == 0


def compiled(model: nn.Module) -> nn.Module:
    found = torch.compile(model, backend="eager")
    assert isinstance(found, nn.Module)
    return found


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "compiled": lambda: compiled(made(TinyNet())),
    "parallel": lambda: nn.DataParallel(made(TinyNet())),
    "both, normalised inside": lambda: compiled(nn.DataParallel(tiny_model())),
    "compiled inside": lambda: Normalized(compiled(made(TinyNet())), (0.5,) * 3, (0.2,) * 3).eval(),
    "parallel inside": lambda: Normalized(nn.DataParallel(made(TinyNet())), (0.5,) * 3, (0.2,) * 3).eval(),
}


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch, of Python 3.13.0
@pytest.mark.parametrize("kind", WRAPPED)
def test_what_wraps_a_model_is_in_no_file_and_stays_in_the_callers_model(tmp_path: Path, kind: str) -> None:
    model = WRAPPED[kind]()
    before = snapshot(model)
    result = purified(model)
    assert result.site == "after:features"
    pixels = to_pixels(CLEAN.images)
    with torch.no_grad():
        wanted, plain = result.model(pixels), in_float32(model)(pixels)
        result.save(tmp_path / "run")
        npz.save(model, tmp_path / "a.safetensors")
        torch.testing.assert_close(npz.load(tmp_path / "run", arch=model)(pixels), wanted)
        torch.testing.assert_close(npz.load(tmp_path / "a.safetensors", arch=TinyNet)(pixels), plain)
        layered = npz.load_polarizer(model, tmp_path / "run" / "polarizer.safetensors")
        torch.testing.assert_close(layered(pixels), wanted)
        for suffix in (".pt", ".safetensors", ".pt2"):
            assert npz.export(model, tmp_path / f"b{suffix}", CLEAN).deviation < 1e-5
        torch.testing.assert_close(npz.load(tmp_path / "b.safetensors", arch=model)(pixels), plain)
        assert "_orig_mod" not in npz.fold(compiled(result.model), CLEAN).how
    after = snapshot(model)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]


def test_weights_too_large_for_the_callers_type_are_told() -> None:
    @dataclass(frozen=True)
    class Swollen(Defense):
        def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
            with torch.no_grad():
                model.get_parameter("network.head.weight").fill_(1e6)
            return Outcome(model)

    with pytest.raises(BadInputError, match=r"network\.head\.weight\) is too large for torch.float16"):
        Swollen().repair(tiny_model().half(), CLEAN, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_evaluate_fold_and_export_take_results_of_every_type(dtype: torch.dtype, tmp_path: Any) -> None:
    result = purified(tiny_model().to(dtype))
    assert npz.evaluate(result, CLEAN, device="cpu") == npz.evaluate(result.model, CLEAN, device="cpu")
    folded = npz.fold(result, CLEAN)
    assert not any(isinstance(module, PolarizedModule) for module in folded.model.modules())
    assert set(floats_of(folded.model).values()) == {dtype}
    written = npz.export(result, tmp_path / "a.safetensors", CLEAN)
    assert written.n_images == 16
    assert set(floats_of(result.model).values()) == {dtype}


def test_evaluate_leaves_a_half_model_as_it_was() -> None:
    model = tiny_model().half().train()
    before = snapshot(model)
    npz.evaluate(model, CLEAN, device="cpu")
    after = snapshot(model)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]


def test_folding_compares_the_logits_on_a_limited_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    result, seen = purified(tiny_model()), []
    forward = TinyNet.forward

    def counting(self: TinyNet, images: Tensor) -> Tensor:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(TinyNet, "forward", counting)
    monkeypatch.setattr(deploying, "FOLDED_IMAGES", 5)
    npz.fold(result, CLEAN)
    assert max(seen) == 5


def test_purifying_twice_is_refused_before_any_work() -> None:
    once = purified(tiny_model())
    for model in (once.model, copy.deepcopy(once.model).half()):
        with pytest.raises(BadInputError, match="has been purified already and holds a polarizer; fold it first"):
            purified(model)
    assert purified(npz.fold(once, CLEAN).model, site="before:pool").polarizer is not None
    tuned = purified(once.model, "ft")  # a defense that inserts nothing may follow
    assert any(isinstance(module, PolarizedModule) for module in tuned.model.modules())


def test_anp_is_the_same_on_networks_with_dropout_and_leaves_the_global_rng_alone() -> None:
    network = made(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
    )
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(ANP(iterations=6, batch_size=8).masks(network, CLEAN, Run(seed=0)))
        assert torch.equal(torch.get_rng_state(), state)
    assert_same(found[0], found[1])


def test_the_normalisation_travels_in_the_state_dict_and_old_ones_still_load() -> None:
    first, other = tiny_model(), Normalized(TinyNet(), (0.0,) * 3, (1.0,) * 3).eval()
    pixels = to_pixels(CLEAN.images)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(pixels), first(pixels))
    old = {name: value for name, value in first.state_dict().items() if name.startswith("network.")}
    kept = Normalized(TinyNet(), (0.0,) * 3, (1.0,) * 3)
    assert kept.load_state_dict(old) == ([], [])
    assert kept.mean.flatten().tolist() == [0.0] * 3


@dataclass(frozen=True, kw_only=True)
class Accuser(Defense):
    """A defense that leaves the model as it is and accuses class 1."""

    target: int | None = None

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        return Outcome(model, suspect=1, audit=Audit("class 1 stands out", {}))


@pytest.mark.parametrize(
    ("rows", "accused"),
    [
        ([*range(16)], 1),
        ([*range(9)], None),  # too few
        ([*range(0, 16, 4)] * 3, None),  # of class 0 only
        ([*range(0, 16, 4), *range(1, 16, 4)] * 2, None),  # and of the one that is accused
        ([*range(0, 16, 4), *range(2, 16, 4)] * 2, 1),  # of two others
    ],
)
def test_too_few_images_and_those_of_one_class_accuse_nobody(rows: list[int], accused: int | None) -> None:
    clean = CLEAN.select(torch.tensor(rows))
    found = Accuser().repair(tiny_model(), clean, seed=0)
    assert found.suspect == accused
    assert found.audit is not None
    assert ("class 1 stands out" in found.audit.summary) is (accused is not None)
    assert Accuser(target=1).repair(tiny_model(), clean, seed=0).suspect == 1  # the user says so


def test_folding_and_loading_a_layer_leave_each_module_in_its_own_mode(tmp_path: Path) -> None:
    """A wrapper that is made after ``eval()`` is in training mode itself; the network inside must not be."""
    network = made(TinyNet())
    wrapped = Normalized(network, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert wrapped.training
    result = purified(wrapped)
    pixels = to_pixels(CLEAN.images[:4])
    expected = result.model(pixels)
    folded = npz.fold(result, CLEAN)
    result.save(tmp_path / "run")
    loaded = npz.load_polarizer(wrapped, tmp_path / "run" / "polarizer.safetensors")
    for model in (folded.model, loaded):
        assert model.training
        assert not any(part.training for name, part in model.named_modules() if name)
        assert torch.allclose(model(pixels[:1]), expected[:1], atol=1e-4)
