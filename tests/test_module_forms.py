"""Modules as users have them: what comes back has their dtype, modes and flags, and what cannot be used is told."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neural_polarizer as npz
from neural_polarizer import BadInputError, ImageSet, Purified
from neural_polarizer.api import deploying
from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses import ANP, Audit, Defense, Outcome, Run
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.models.normalize import Normalized
from toys import TinyNet, assert_same, made, snapshot, tiny_images, tiny_model

CLEAN = tiny_images(16)
ONE: dict[str, Any] = {"device": "cpu", "force": True}
METHODS: dict[str, dict[str, Any]] = {
    "npd": {"epochs": 1, "batch_size": 8, "site": "after:features"},
    "ft": {"schedule.epochs": 1},
    "fp": {"schedule.epochs": 1},
    "nad": {"teacher.epochs": 1, "student.epochs": 1},
    "nc": {"epochs": 1, "schedule.epochs": 1},
    "anp": {"iterations": 1},
    "i-bau": {"rounds": 1},
    "ep": {"batches": 1},
}


def purified(model: nn.Module, method: str = "npd", **more: Any) -> Purified:
    return npz.purify(model, CLEAN, method, **{**METHODS[method], **ONE, **more})


def floats_of(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in model.state_dict().items() if value.is_floating_point()}


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


def test_weights_too_large_for_the_callers_type_are_told() -> None:
    @dataclass(frozen=True)
    class Swollen(Defense):
        def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
            with torch.no_grad():
                model.get_parameter("network.head.weight").fill_(1e6)
            return Outcome(model)

    with pytest.raises(BadInputError, match=r"network\.head\.weight\) is too large for torch.float16"):
        Swollen().repair(tiny_model().half(), CLEAN, seed=0)


# --- what comes after ------------------------------------------------------------------------------------------------


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


# --- what cannot be used ---------------------------------------------------------------------------------------------


class Changed(nn.Module):
    def __init__(self, change: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net = tiny_model()
        self.change = change

    def forward(self, pixels: Tensor) -> Any:
        return self.change(self.net, pixels)


def scripted() -> nn.Module:
    return torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), torch.rand(2, 3, 8, 8))


def exported() -> nn.Module:
    return torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), (torch.rand(2, 3, 8, 8),)).module()


class Locked(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.kept = self.head.weight * 2  # still part of a computation


class Keeping(TinyNet):
    """Keeps what it has computed, as code that looks at features does."""

    def forward(self, images: Tensor) -> Tensor:
        self.kept = self.features(images)
        return self.head(self.pool(self.kept).flatten(1))


class InHalf(TinyNet):
    """Computes in bfloat16, whatever it is given."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(images)


@pytest.mark.parametrize("kind", [Keeping, InHalf])
@pytest.mark.parametrize("method", ["npd", "ft"])
def test_networks_that_keep_what_they_compute_or_choose_its_type_are_purified(kind: type[TinyNet], method: str) -> None:
    settings: dict[str, Any] = {"epochs": 1} if method == "npd" else {}
    found = npz.purify(made(kind()), CLEAN, method, device="cpu", force=True, **settings)
    assert npz.evaluate(found, CLEAN, device="cpu").n_test == len(CLEAN)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a dict": (lambda: tiny_model().state_dict(), "must be a torch.nn.Module.*, got OrderedDict; build the network"),
    "a function": (lambda: torch.relu, r"must be a torch.nn.Module from pixels to logits, got builtin_function"),
    "TorchScript": (scripted, "the model is TorchScript, which cannot be taken apart; give the Python module"),
    "exported": (
        exported,
        "the model is a program of torch.export, which cannot be taken apart; give the Python module",
    ),
    "TorchScript inside": (lambda: nn.Sequential(scripted()), "the model is TorchScript"),
    "no values": (lambda: tiny_model().to("meta"), "on the device meta, which hold no values"),
    "lazy layers": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
        "has lazy layers, whose sizes are known only",
    ),
    "channels last": (
        lambda: Changed(lambda net, x: net(x.permute(0, 3, 1, 2))),
        r"channels last.*pixels.permute\(0, 2, 3, 1\)",
    ),
    "tuple": (lambda: Changed(lambda net, x: (net(x), x)), "must give logits N x K, .* but it gives a tuple"),
    "dict": (lambda: Changed(lambda net, x: {"logits": net(x)}), "but it gives a dict"),
    "answers": (lambda: Changed(lambda net, x: net(x).argmax(dim=1)), "it gives torch.int64, as after argmax"),
    "a fault of its own": (
        lambda: Changed(lambda net, x: {"a": net(x)}["b"]),
        r"cannot take images .* \(KeyError: 'b'\)",
    ),
    "NaN": (lambda: Changed(lambda net, x: net(x) * torch.nan), "it gives NaN for the first images"),
    "no gradients": (
        lambda: Changed(torch.no_grad()(lambda net, x: net(x))),
        "gives logits without gradients.*torch.no_grad",
    ),
    "inference mode": (
        lambda: Changed(torch.inference_mode()(lambda net, x: net(x))),
        "gives logits without gradients",
    ),
    "detached": (lambda: Changed(lambda net, x: net(x).detach()), "gives logits without gradients"),
    "a probability": (
        lambda: Changed(lambda net, x: net(x)[:, :1].sigmoid()),
        "one number from 0 to 1 for each image, as after a sigmoid",
    ),
    "one logit for four classes": (lambda: Changed(lambda net, x: net(x)[:, :1]), "label 3, but the model knows 2"),
    "maps": (lambda: Changed(lambda net, x: x), r"but it gives \(2, 3, 8, 8\) for 2 images"),
    "another size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), "cannot take images N x 3 x 8 x 8"),
    "five channels": (lambda: nn.Conv2d(5, 4, 8), "cannot take images N x 3 x 8 x 8"),
    "cannot be copied": (Locked, "the model cannot be copied"),
    "few classes": (lambda: made(Normalized(TinyNet(3), (0.5,) * 3, (0.2,) * 3)), "has label 3, but the model knows 3"),
}


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning", "ignore:.*jit:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(name: str) -> None:
    build, reason = REFUSED[name]
    clean = replace(CLEAN, labels=CLEAN.labels % 2) if name == "a probability" else CLEAN
    with pytest.raises(BadInputError, match=reason) as caught:
        npz.purify(build(), clean, "ft", device="cpu", force=name != "a probability")
    assert "\n" not in str(caught.value)


def test_one_image_at_a_flat_site_is_told_and_not_a_traceback() -> None:
    one = CLEAN.select(torch.tensor([0]))
    with pytest.raises(BadInputError, match="1 image in a batch give the features at this site a single value"):
        npz.purify(tiny_model(), one, "npd", site="before:head", init="default", warmup_epochs=1, epochs=1, **ONE)


YES_NO = replace(CLEAN, labels=CLEAN.labels % 2)


class OneLogit(nn.Module):
    """A yes/no model: one logit, with or without an axis for it."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.net, self.flat = made(TinyNet()), flat

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.get_submodule("net")(pixels)
        logit = logits[:, 2] - logits[:, 1]
        return logit if self.flat else logit[:, None]


@pytest.mark.parametrize("method", ["npd", "ft"])
@pytest.mark.parametrize("flat", [False, True])
def test_one_logit_stands_for_two_classes_and_comes_back_as_one(method: str, flat: bool) -> None:
    model = made(OneLogit(flat))
    both = made(TwoLogits(model))
    site = {"site": "after:net.features"} if method == "npd" else {}
    found = npz.purify(model, YES_NO, method, **{**METHODS[method], **ONE, **site})
    assert any("one logit z was taken for the two logits (0, z)" in note for note in found.notes)
    pixels = to_pixels(YES_NO.images)
    with torch.no_grad():
        assert found.model(pixels).shape == model(pixels).shape
        hits = (found.model(pixels).flatten() > 0).long() == YES_NO.labels
    assert found.clean_acc is not None
    assert found.clean_acc[1] == pytest.approx(float(hits.double().mean()))
    assert npz.evaluate(found, YES_NO).acc == pytest.approx(found.clean_acc[1])
    assert npz.evaluate(model, YES_NO).acc == npz.evaluate(both, YES_NO).acc == found.clean_acc[0]
    if method == "npd":
        assert found.site == "after:net.features"
        with torch.no_grad():
            torch.testing.assert_close(npz.fold(found, YES_NO).model(pixels), found.model(pixels))


class TwoLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        logit = self.model(pixels).reshape(-1, 1)
        return torch.cat((torch.zeros_like(logit), logit), dim=1)


def test_one_logit_behind_a_normalisation_comes_back_behind_it() -> None:
    model = made(Normalized(OneLogit(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))).double()
    found = npz.purify(model, YES_NO, "ft", **{**METHODS["ft"], **ONE}).model
    assert type(found) is Normalized
    assert found.state_dict().keys() == model.state_dict().keys()
    assert {value.dtype for value in found.parameters()} == {torch.float64}
    assert torch.equal(found.get_buffer("mean"), model.get_buffer("mean"))


def test_probabilities_are_told() -> None:
    found = purified(nn.Sequential(tiny_model(), nn.Softmax(dim=1)), "fp")
    assert any("probabilities" in note for note in found.notes)


# --- grey images -----------------------------------------------------------------------------------------------------


def test_grey_images_get_as_many_channels_as_the_model_takes() -> None:
    grey = ImageSet(CLEAN.images[:, :1].contiguous(), CLEAN.labels, CLEAN.classes, "grey")
    three = ImageSet(grey.images.expand(-1, 3, -1, -1).contiguous(), CLEAN.labels, CLEAN.classes, "three")
    narrow = made(nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)))
    wide = made(TinyNet())
    for model in (narrow, wide):
        assert npz.evaluate(model, grey, device="cpu") == npz.evaluate(model, three, device="cpu")
        found = [npz.purify(model, images, "ft", **{**METHODS["ft"], **ONE}) for images in (grey, three)]
        assert_same(found[0].model.state_dict(), found[1].model.state_dict())


# --- single defects --------------------------------------------------------------------------------------------------


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
    [(range(16), 1), (range(9), None), (range(0, 16, 4), None)],  # all; too few; of class 0 only
)
def test_too_few_images_and_those_of_one_class_accuse_nobody(rows: range, accused: int | None) -> None:
    clean = CLEAN.select(torch.tensor([*rows]))
    found = Accuser().repair(tiny_model(), clean, seed=0)
    assert found.suspect == accused
    assert found.audit is not None
    assert ("class 1 stands out" in found.audit.summary) is (accused is not None)
    assert Accuser(target=1).repair(tiny_model(), clean, seed=0).suspect == 1  # the user says so
