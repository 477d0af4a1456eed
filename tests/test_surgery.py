"""Where the polarizer goes, and the network cut in two there; always compared with the network itself."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.surgery import Cut, Site, cut, full_name, insert
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from toys import Residual, TinyNet, Untraceable, made, polarizers, snapshot, tiny_model

MEAN_STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _pixels(n: int = 3, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(5)).to(dtype)


def test_sites_are_read_and_written_alike() -> None:
    for text in ("before:layer4.1.conv1", "after:layer4"):
        assert str(Site.parse(text)) == text
    assert Site.parse("before:a.b") == Site("before", "a.b")


@pytest.mark.parametrize("text", ["layer4", "behind:layer4", "after:", "before:", "", ":layer4"])
def test_other_forms_of_a_site_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"expected before:NAME or after:NAME, as in after:layer4"):
        Site.parse(text)


def test_an_unknown_site_names_the_nearest_modules() -> None:
    network = PreActResNet18(4, width=2)
    with pytest.raises(BadInputError, match=r"'after:layer4.2.conv1': no such module; .* layer4\.1\.conv1"):
        full_name(network, Site("after", "layer4.2.conv1"))
    with pytest.raises(BadInputError, match=r"'after:qqqq': no such module; the nearest names are .*linear"):
        insert(network, Site("after", "qqqq"), Polarizer(2))
    with pytest.raises(BadInputError, match="no such module"):
        features_at(network, Site("after", ""), _pixels())


def test_a_normalisation_around_the_network_is_not_counted() -> None:
    network = TinyNet()
    assert full_name(network, Site("after", "features.0")) == "features.0"
    assert full_name(Normalized(network, *MEAN_STD), Site("after", "features.0")) == "network.features.0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", ["before", "after"])
def test_insertion_applies_the_very_polarizer_there_and_leaves_the_network_alone(side: str, dtype: torch.dtype) -> None:
    network, pixels = made(TinyNet()).to(dtype), _pixels(dtype=dtype)
    before = snapshot(network)
    polarizer = polarizers(1, 6).to(dtype)
    polarized = insert(network, Site.parse(f"{side}:features.4"), polarizer)
    features = network.features
    assert isinstance(features, nn.Sequential)
    first = features[:4] if side == "before" else features[:5]
    second = features[4:] if side == "before" else features[5:]
    expected = network.head(network.pool(second(polarizer(first(pixels)))).flatten(1))  # type: ignore[operator]
    assert_close(polarized(pixels), expected)
    assert not torch.allclose(expected, network(pixels), atol=1e-2)
    assert any(module is polarizer for module in polarized.modules())
    assert_close(snapshot(network)[0], before[0], rtol=0.0, atol=0.0)
    assert snapshot(network)[1:] == before[1:]
    with torch.no_grad():
        for parameter in polarized.parameters():
            parameter.zero_()
    assert_close(snapshot(network)[0], before[0], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("site", ["before:layer4.1.conv1", "after:layer4", "after:conv1", "after:layer2.0.shortcut.0"])
def test_a_freshly_inserted_polarizer_keeps_the_logits(site: str) -> None:
    network, pixels = made(PreActResNet18(4, width=2)), _pixels()
    place = Site.parse(site)
    polarized = insert(network, place, Polarizer(features_at(network, place, pixels).channels).eval()).requires_grad_(
        False
    )
    expected = network(pixels).detach()
    assert float((polarized(pixels) - expected).abs().max()) < 1e-3 * float(expected.abs().max())


def test_modules_with_further_arguments_keep_them() -> None:
    class Scaled(nn.Module):
        def forward(self, features: Tensor, factor: float, *, shift: float) -> Tensor:
            return features * factor + shift

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scaled = Scaled()

        def forward(self, images: Tensor) -> Tensor:
            return self.scaled(images, 2.0, shift=0.5).flatten(1)

    for side in ("before", "after"):
        polarizer = polarizers(2, 3)
        polarized = insert(Network(), Site.parse(f"{side}:scaled"), polarizer)
        pixels = _pixels(size=2)
        expected = polarizer(pixels) * 2 + 0.5 if side == "before" else polarizer(pixels * 2 + 0.5)
        assert_close(polarized(pixels), expected.flatten(1))


def test_a_module_with_two_names_has_its_polarizer_under_both() -> None:
    """A layer under the one name alone would never run if the network calls the other."""

    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.same = self.conv

        def forward(self, images: Tensor) -> Tensor:
            return self.same(images).flatten(1)

    network, pixels, polarizer = Alias(), _pixels(size=4), polarizers(6, 4)
    polarized = insert(network, Site("after", "conv"), polarizer)
    assert_close(polarized(pixels), polarizer(network.conv(pixels)).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "tiny": (TinyNet, ("before:features.0", "after:features.0", "before:features.3", "after:features", "after:pool")),
    "residual": (Residual, ("after:stem", "before:inner", "after:inner", "before:last", "after:last")),
    "preact": (
        lambda: PreActResNet18(4, width=2),
        ("before:layer4.1.conv1", "before:layer4.0.conv1", "after:layer3.0.conv2", "after:layer4.0.shortcut"),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "normalized"])
@pytest.mark.parametrize(("name", "site"), [(name, site) for name in NETWORKS for site in NETWORKS[name][1]])
def test_the_two_parts_of_a_cut_give_the_networks_logits(name: str, site: str, wrapped: bool) -> None:
    network, pixels, place = NETWORKS[name][0](), _pixels(7), Site.parse(site)
    network = made(Normalized(network, *MEAN_STD) if wrapped else network)
    polarizer = polarizers(3, features_at(network, place, pixels).channels)
    polarized = insert(network, place, polarizer)
    parts = cut(polarized, polarizer, pixels[:2])
    assert isinstance(parts, Cut)
    values = parts.prefix(pixels)
    assert_close(parts.tail(*values), polarized(pixels))
    assert_close(parts.tail(*(value[[4, 1]] for value in values)), polarized(pixels[[4, 1]]))
    assert not any(module is polarizer for module in parts.prefix.modules())
    assert sum(module is polarizer for module in parts.tail.modules()) == 1


def test_the_tail_follows_the_polarizer_and_nothing_of_the_prefix_is_computed_twice() -> None:
    network, place = made(PreActResNet18(4, width=2)), Site.parse("before:layer4.1.conv1")
    polarizer = Polarizer(16).eval()
    parts = cut(insert(network, place, polarizer), polarizer, _pixels(2))
    assert isinstance(parts, Cut)
    values = parts.prefix(_pixels())
    assert [tuple(value.shape) for value in values] == [(3, 16, 2, 2)] * 2  # the block's input (shortcut) and bn1's
    before = parts.tail(*values)
    with torch.no_grad():
        polarizer.norm.bias.add_(1.0)
    assert not torch.allclose(parts.tail(*values), before, atol=1e-3)
    assert {name.split(".")[0] for name, _ in parts.tail.named_parameters()} == {"layer4", "linear"}


def test_gradients_of_the_tail_are_those_of_the_network() -> None:
    network, pixels, place = made(Residual()), _pixels(), Site("after", "inner")
    polarizer = polarizers(4, 5)
    polarized = insert(network, place, polarizer)
    parts = cut(polarized, polarizer, pixels)
    assert isinstance(parts, Cut)
    with torch.no_grad():
        values = parts.prefix(pixels)
    ours = torch.autograd.grad(parts.tail(*values).square().sum(), list(polarizer.parameters()))
    theirs = torch.autograd.grad(polarized(pixels).square().sum(), list(polarizer.parameters()))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_network_that_looks_at_its_data_cannot_be_cut_and_says_so() -> None:
    network, polarizer = made(Untraceable()), Polarizer(6).eval()
    found = cut(insert(network, Site("after", "features"), polarizer), polarizer, _pixels())
    assert isinstance(found, str)
    assert re.match("the network cannot be traced: TraceError: symbolically traced variables .*control flow$", found)


def test_a_value_of_the_whole_batch_cannot_cross_the_cut() -> None:
    class BatchMean(Residual):
        def forward(self, images: Tensor) -> Tensor:
            stem = self.stem(images)
            return self.head((self.inner(stem) - stem.mean(dim=0, keepdim=True)).mean(dim=(2, 3)))

    network, polarizer = made(BatchMean()), Polarizer(5).eval()
    found = cut(insert(network, Site("after", "inner"), polarizer), polarizer, _pixels())
    assert found == "a value that crosses the cut does not belong to single images"


def test_a_cut_with_other_logits_is_refused() -> None:
    class Moody(TinyNet):
        """Traced as it is on its first call, other ever after."""

        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            Moody.calls += 1
            return super().forward(images) * Moody.calls

    network, polarizer = made(Moody()), Polarizer(6).eval()
    found = cut(insert(network, Site("after", "features"), polarizer), polarizer, _pixels())
    assert found == "the traced network gives other logits than the network itself"


def test_a_polarized_network_can_be_copied_and_its_state_loaded() -> None:
    network, pixels = tiny_model(), _pixels()
    polarized = insert(network, Site("after", "features"), polarizers(5, 6))
    twin = copy.deepcopy(polarized)
    assert_close(twin(pixels), polarized(pixels), rtol=0.0, atol=0.0)
    fresh = insert(network, Site("after", "features"), Polarizer(6)).eval()
    fresh.load_state_dict(polarized.state_dict())
    assert_close(fresh(pixels), polarized(pixels), rtol=0.0, atol=0.0)


class Encoder(nn.Module):
    """Tokens through an encoder of torch's, which in evaluation takes the weights of its parts and calls none."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(self.patch(images).flatten(2).transpose(1, 2)).mean(dim=1))


@pytest.mark.parametrize(
    "site", ["after:layers.layers.1.norm1", "before:layers.layers.0.linear1", "before:layers.layers.1"]
)
@pytest.mark.parametrize("grad", [False, True])
def test_a_layer_inside_torchs_transformers_is_called(site: str, grad: bool) -> None:
    network, layer = made(Encoder()).requires_grad_(False), Polarizer(8, channels_last=True).eval()
    polarized = insert(network, Site.parse(site), layer)
    with torch.set_grad_enabled(grad):
        before = polarized(_pixels())
        assert_close(before, network(_pixels()), rtol=1e-4, atol=1e-4)
        layer.mix.weight.data.zero_()
        assert not torch.equal(polarized(_pixels()), before)  # to the last bit, if nothing called it


def test_the_network_is_not_cut_inside_a_module_of_torchs() -> None:
    layer = Polarizer(8, channels_last=True).eval()
    polarized = insert(made(Encoder()), Site("after", "layers.layers.1.norm1"), layer)
    assert cut(polarized, layer, _pixels()) == "the layer is inside a module of torch's, which cannot be divided"
