"""What modules take and give: other outputs than one logit a class are understood, or refused in one line."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neural_polarizer as npz
from module_cases import CLEAN, METHODS, ONE, purified
from neural_polarizer import BadInputError, ImageSet
from neural_polarizer.data.images import to_pixels
from neural_polarizer.models.normalize import Normalized, two_logits
from toys import TinyNet, assert_same, made, tiny_model


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
        self.lock = threading.Lock()


class Keeping(TinyNet):
    """Keeps what it has computed, as code that looks at features does."""

    def forward(self, images: Tensor) -> Tensor:
        self.kept = self.features(images)
        return self.head(self.pool(self.kept).flatten(1))


class Logging(Keeping):
    """Keeps it in lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.log: dict[str, list[tuple[Tensor, int]]] = {"features": []}

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.log["features"] = [(self.kept, len(self.log))]
        return logits


def with_sparse_buffer() -> nn.Module:
    model = tiny_model()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    return model


class InHalf(TinyNet):
    """Computes in bfloat16, whatever it is given."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(images)


@pytest.mark.long
@pytest.mark.parametrize("kind", [Keeping, Logging, InHalf])
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
    "sparse buffers": (with_sparse_buffer, r"buffers of the layout torch.sparse_coo; give it with dense ones"),
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


@pytest.mark.long
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


@pytest.mark.long
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


def test_grey_images_get_as_many_channels_as_the_model_takes() -> None:
    grey = ImageSet(CLEAN.images[:, :1].contiguous(), CLEAN.labels, CLEAN.classes, "grey")
    three = ImageSet(grey.images.expand(-1, 3, -1, -1).contiguous(), CLEAN.labels, CLEAN.classes, "three")
    narrow = made(nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)))
    wide = made(TinyNet())
    for model in (narrow, wide):
        assert npz.evaluate(model, grey, device="cpu") == npz.evaluate(model, three, device="cpu")
        found = [npz.purify(model, images, "ft", **{**METHODS["ft"], **ONE}) for images in (grey, three)]
        assert_same(found[0].model.state_dict(), found[1].model.state_dict())


def test_a_yes_no_network_that_gives_more_than_its_logit_is_asked_which() -> None:
    class Pair(nn.Module):
        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            return pixels.mean(dim=(1, 2, 3))[:, None], pixels

    assert isinstance(two_logits(Pair())(torch.rand(2, 3, 4, 4)), tuple)  # check_takes then names --output
