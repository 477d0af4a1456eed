"""Token sequences, maps with the channels last and flat features: the same layer, algorithm and files as for maps."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer import purify
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.features import Features
from neural_polarizer.layer.folding.fold import fold_polarizer
from neural_polarizer.layer.polarizer import Polarizer, batch_statistics, shifted
from neural_polarizer.layer.structures import make_polarizer, polarizer_for
from neural_polarizer.layer.surgery import Cut, PolarizedModule, Site, cut, insert
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.build import build
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.perturb import Ball
from toys import made, polarizers, tiny_images

PIXELS = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Tokens(nn.Module):
    """Patches to tokens, one residual block, a norm, and a head that reads the first token."""

    def __init__(self, num_classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.first = _Block(width)
        self.second = _Block(width)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 5)
        self.head = nn.Linear(5, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = self.norm(self.second(self.first(tokens)))
        return self.head(self.project(tokens)[:, 0])


class ByFirstToken(Tokens):
    """Takes the first token as soon as the norm is done."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        return self.head(self.project(self.norm(self.second(self.first(tokens)))[:, 0]))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.mix(self.norm(tokens)).mean(dim=1, keepdim=True).relu()


def far(channels: int, seed: int = 3) -> Polarizer:
    """A polarizer for the last axis, far from the identity."""
    twin, layer = made(Polarizer(channels), seed), Polarizer(channels, channels_last=True)
    layer.load_state_dict(
        {name: value.squeeze((2, 3)) if name == "mix.weight" else value for name, value in twin.state_dict().items()}
    )
    return layer.eval()


@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6)])
def test_it_is_the_convolution_along_the_last_axis(shape: tuple[int, ...]) -> None:
    features = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    rows = features.flatten(0, -2)[:, :, None, None]
    twin = made(Polarizer(6), 3)
    assert_close(far(6)(features), twin(rows).flatten(1).view_as(features))
    layer, twin = far(6), polarizers(3, 6)
    with batch_statistics(layer, follow=True):
        inside = layer(features)
    twin.train()
    assert_close(inside, twin(rows).flatten(1).view_as(features), rtol=1e-4, atol=1e-4)
    assert_close(layer.norm.running_var, twin.norm.running_var)
    assert not layer.norm.training


def test_calibrated_it_is_the_exact_identity_and_trained_it_cannot_be() -> None:
    layer, features = Polarizer(6, channels_last=True).eval(), 3 * torch.randn(4, 7, 6) + 1
    rows = features.flatten(0, 1)
    layer.calibrate(rows.mean(0), rows.var(0))
    assert_close(layer(features), features, rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInputError, match="still the identity"):
        far(6).calibrate(rows.mean(0), rows.var(0))


def test_the_weights_of_a_saved_layer_tell_its_form() -> None:
    layer = polarizer_for("conv-bn", far(6).state_dict())
    assert layer is not None
    assert layer.channels_last
    assert polarizer_for("conv-bn", {"mix.weight": torch.zeros(6, 5)}) is None
    assert polarizer_for("conv-bn", {"mix.weight": torch.zeros(6, 0)}) is None


def test_other_structures_need_maps() -> None:
    with pytest.raises(BadInputError, match=r"structure osad needs a feature map .* has features NLC"):
        make_polarizer("osad", Features((7, 6), "NLC"), torch.Generator())


@pytest.mark.parametrize("shape", [(6,), (7, 6)])
def test_perturbations_are_measured_over_the_whole_image_and_shifts_are_added(shape: tuple[int, ...]) -> None:
    values = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    delta = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))
    assert_close(
        Ball("l2", torch.tensor([0.1, 0.2, 0.3, 0.4])).project(delta).flatten(1).norm(dim=1),
        torch.tensor([0.1, 0.2, 0.3, 0.4]),
    )
    layer = far(6)
    with shifted(layer, delta):
        assert_close(layer(values), far(6)(values + delta))


@pytest.mark.long
@pytest.mark.parametrize("site", ["before:second", "after:norm", "before:head"])
def test_npd_starts_from_the_models_own_logits_and_learns_the_layer_alone(site: str) -> None:
    network = made(Tokens())
    images = tiny_images(24)
    still = purify(network, images, "npd", site=site, epochs=1, lr=1e-12, batch_size=8, force=True)
    pixels = images.images.float() / 255
    with torch.no_grad():
        expected = network(pixels)
        assert_close(still.model(pixels), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert still.polarizer is not None
    assert still.polarizer.channels_last
    assert not any("full forward" in note for note in still.notes)  # the network was cut, not run as a whole
    moved = purify(network, images, "npd", site=site, epochs=2, batch_size=8, force=True)
    assert moved.polarizer is not None
    weight = moved.polarizer.mix.weight.detach()
    assert float((weight - torch.eye(len(weight))).abs().max()) > 1e-4
    weights = dict(network.named_parameters())
    kept = {name: value for name, value in moved.model.named_parameters() if "polarizer" not in name}
    assert len(kept) == len(weights)
    assert all(torch.equal(value, weights[name.replace(".module", "")]) for name, value in kept.items())


def test_by_itself_the_layer_goes_to_the_beginning_of_the_last_stage() -> None:
    found = purify(made(Tokens()), tiny_images(8), "npd", epochs=1, batch_size=4, force=True)
    assert found.site == "before:first"
    assert found.site_reason is not None
    assert found.site_reason.startswith("before:first: of ")


def test_the_cut_gives_the_networks_logits() -> None:
    layer = far(6)
    polarized = insert(made(Tokens()), Site("before", "second"), layer)
    parts = cut(polarized, layer, PIXELS)
    assert isinstance(parts, Cut)
    assert_close(parts.tail(*parts.prefix(PIXELS)), polarized(PIXELS))


@pytest.mark.parametrize(
    ("kind", "site", "channels", "how", "kept"),
    [
        (Tokens, "after:project", 5, "folded into project", True),
        (Tokens, "before:head", 5, "folded into head", True),
        (Tokens, "after:norm", 6, "folded into project", True),
        (ByFirstToken, "after:norm", 6, "folded into project", True),
        (Tokens, "before:second", 6, "folded into one linear layer at its own site", False),
    ],
)
@torch.no_grad()
def test_a_folded_network_is_the_purified_one(
    kind: type[Tokens], site: str, channels: int, how: str, kept: bool
) -> None:
    network = made(kind())
    purified = insert(network, Site.parse(site), far(channels))
    folded = fold_polarizer(purified, PIXELS)
    assert_close(folded.model(PIXELS), purified(PIXELS), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(purified(PIXELS), network(PIXELS), atol=1e-2)
    assert folded.how == how
    assert (folded.exact, folded.architecture_kept) == (True, kept)


@pytest.mark.long
@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_a_purified_transformer_comes_back_to_the_bit(tmp_path: Path, folded: bool) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    architecture = "timm:test_vit?img_size=32"
    network = made(build(architecture, 4))
    site = Site.parse("before:blocks.5")
    model = insert(Normalized(network, (0.5,) * 3, (0.2,) * 3).eval(), site, far(64))
    pixels = torch.rand(3, 3, 32, 32)
    if folded:
        result = fold_polarizer(model, pixels)
        assert result.how.endswith("linear layer at its own site")
        model = result.model
    record = ModelRecord(architecture=architecture, num_classes=4, mean=(0.5,) * 3, std=(0.2,) * 3, site=str(site))
    save_model(tmp_path / "purified.safetensors", model, record)
    loaded = load_model(tmp_path).model
    assert torch.equal(loaded(pixels), model(pixels))
    (wrapped,) = [module for module in loaded.modules() if isinstance(module, PolarizedModule)]
    assert isinstance(wrapped.polarizer, nn.Linear if folded else Polarizer)


def test_a_network_may_ask_a_wrapped_part_for_its_attributes() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images).flatten(1)[:, : self.conv.out_channels]

    polarized = insert(Asking(), Site("after", "conv"), made(Polarizer(4)))
    assert polarized(PIXELS).shape == (5, 4)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = polarized.conv.nothing_like_this  # type: ignore[union-attr]
