"""Where a polarizer can go: what bypasses a place, what the channels are, which place is taken; in many networks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.features import Features, features_of
from neural_polarizer.layer.sites import Candidate, candidates, choose_site, default_site, features_at, last_map
from neural_polarizer.layer.structures import make_polarizer
from neural_polarizer.layer.surgery import Site, insert
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from toys import Residual, TinyNet, Untraceable, hooks, made, snapshot


def _pixels(n: int = 3, size: int = 16) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def _free(network: nn.Module, pixels: Tensor) -> dict[str, Features]:
    return {str(each.site): each.features for each in candidates(network, pixels) if not each.bypassed}


class _Odd(nn.Module):
    """Modules that no polarizer fits: run twice, never, or without a tensor of known channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.twice = nn.ReLU()
        self.never = nn.Conv2d(3, 3, 1)
        self.pair = _Pair()
        self.flat = nn.Flatten()
        self.rows = nn.Flatten(2)
        self.keyword = _Keyword()
        self.head = nn.Linear(192, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.twice(self.twice(self.conv(images)))
        features = self.keyword(features=self.pair(features)[0])
        self.rows(features)
        return self.head(self.flat(features))


class _Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features


class _Keyword(nn.Module):
    def forward(self, *, features: Tensor) -> Tensor:
        return features + 1


@pytest.mark.parametrize(
    ("site", "match"),
    [
        ("after:twice", r"'after:twice': runs 2 times in a forward pass; it must run exactly once"),
        ("before:never", "runs 0 times"),
        ("after:pair", r"needs features N x C x H x W, .*, found no tensor"),
        ("after:rows", r"found \(3, 3, 64\)"),
        ("before:keyword", "found no tensor"),
    ],
)
def test_unusable_sites_are_refused_and_no_hook_stays(site: str, match: str) -> None:
    network = _Odd().eval()
    with pytest.raises(BadInputError, match=match):
        features_at(network, Site.parse(site), _pixels(size=8))
    assert hooks(network) == []


def test_features_on_both_sides_of_a_module() -> None:
    network = made(TinyNet(width=6))
    expected = {
        "before:features.0": (3, 16, 16),
        "after:features.0": (6, 16, 16),
        "before:pool": (6, 8, 8),
        "after:pool": (6, 1, 1),
    }
    for site, shape in expected.items():
        assert features_at(network, Site.parse(site), _pixels()) == Features(shape, "NCHW")
    assert features_at(network, Site.parse("before:head"), _pixels()) == Features((6,), "NC")


class _Turning(nn.LayerNorm):
    """A norm of the channels in front that turns the axes itself, as timm and torchvision have it."""


@pytest.mark.parametrize(
    ("shape", "neighbours", "layout"),
    [
        ((9, 4, 4), [], "NCHW"),
        ((4, 4, 9), [], "NHWC"),
        ((4, 6, 9), [], "NCHW"),  # the shape tells nothing
        ((4, 4, 9), [nn.BatchNorm2d(4)], "NCHW"),
        ((9, 4, 4), [nn.Linear(4, 2)], "NHWC"),
        ((4, 4, 4), [nn.LayerNorm(4)], "NHWC"),
        ((4, 4, 4), [_Turning(4)], "NCHW"),
        ((9, 4, 4), [_Turning(9)], "NCHW"),
        ((7, 4), [], "NLC"),
        ((7, 4), [nn.Linear(4, 2), nn.Dropout()], "NLC"),
        ((7, 4), [nn.Conv1d(7, 2, 1)], None),
        ((4,), [], "NC"),
        ((2, 3, 4, 5), [], None),
        ((0, 4, 4), [], None),
    ],
)
def test_the_layers_beside_a_value_tell_its_layout_or_else_its_shape(
    shape: tuple[int, ...], neighbours: list[nn.Module], layout: str | None
) -> None:
    found = features_of(torch.zeros(2, *shape), neighbours)
    assert (None if found is None else found.layout) == layout
    assert found is None or found.shape == shape
    assert features_of(torch.zeros(2, *shape, dtype=torch.int64), neighbours) is None


def test_no_hook_stays_when_the_network_raises() -> None:
    network = made(TinyNet())
    for look in (
        lambda: features_at(network, Site("after", "features.0"), torch.rand(2, 5, 8, 8)),
        lambda: default_site(network, torch.rand(2, 5, 8, 8)),
    ):
        with pytest.raises(RuntimeError, match="channels"):
            look()
    assert hooks(network) == []


def test_what_a_shortcut_leads_around_is_bypassed() -> None:
    network = made(Residual())
    found = {str(each.site): each.bypassed for each in candidates(network, _pixels())}
    assert found == {
        "before:stem": False,
        "after:stem": False,
        "before:inner": True,
        "after:inner": True,
        "before:last": True,  # the value of both paths of the block, but a second shortcut leads past it
        "after:last": True,
        "before:head": False,
    }


def test_in_front_of_a_layer_that_is_not_the_only_reader_is_bypassed() -> None:
    """The paper's own site: its block's shortcut reads the same values."""
    network = made(PreActResNet18(4, width=2))
    bypassed = {str(each.site): each.bypassed for each in candidates(network, _pixels())}
    assert bypassed["before:layer4.0.conv1"]
    assert bypassed["before:layer4.1.conv1"]
    assert not bypassed["before:layer4.1"]
    assert not bypassed["after:layer4.0.bn1"]  # both readers come behind it


def test_paths_are_counted_exactly_however_many_there_are() -> None:
    """Sixty doublings make more paths than a float can count one by one."""

    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(60)])

        def forward(self, images: Tensor) -> Tensor:
            for layer in self.layers:
                images = layer(images) + images
            return images.mean(dim=(2, 3))

    found = candidates(made(Doubling()), _pixels(size=2))
    assert [each.bypassed for each in found if each.site.name == "layers.30"] == [True, True]


def test_a_network_that_cannot_be_traced_has_candidates_all_the_same() -> None:
    assert _free(made(Untraceable()), _pixels()).keys() == _free(made(TinyNet()), _pixels()).keys()


def test_operations_behind_a_place_fall_from_all_to_none() -> None:
    found = candidates(made(TinyNet()), _pixels())
    shares = [each.behind for each in found]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    by_site = {str(each.site): each.behind for each in found}
    first, second, head = 16 * 16 * 3 * 6 * 9, 8 * 8 * 6 * 6 * 9, 6 * 4
    assert by_site["before:features.3"] == pytest.approx((second + head) / (first + second + head))


def test_the_logits_and_places_that_run_twice_are_no_candidates() -> None:
    names = {str(each.site) for each in candidates(_Odd().eval(), _pixels(size=8))}
    assert "after:head" not in names
    assert not any("twice" in name or "rows" in name or "never" in name for name in names)


class _Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 2)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            images = images.round()
        return self.head(images.flatten(1))


def test_a_network_without_a_gradient_to_the_pixels_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"no gradient leads from the model's logits to its pixels"):
        candidates(_Blind().eval(), _pixels(size=8))


def _candidate(
    name: str, behind: float, *, bypassed: bool = False, layout: str = "NCHW", shape: tuple[int, ...] = (4, 2, 2)
) -> Candidate:
    return Candidate(Site("before", name), Features(shape, layout), behind, bypassed)  # type: ignore[arg-type]


def test_the_first_free_place_of_the_last_stage_with_enough_behind_it_is_taken() -> None:
    found = [
        _candidate("a", 1.0, shape=(4, 4, 4)),
        _candidate("b", 0.4, shape=(4, 4, 4)),
        _candidate("c.0.inner", 0.31),
        _candidate("c.0", 0.3, bypassed=True),
        _candidate("c.1", 0.25),
        _candidate("c.2", 0.25),
        _candidate("d.0", 0.09),
        _candidate("d", 0.04),
        _candidate("e.0", 0.08, shape=(4, 1, 1)),
        _candidate("e", 0.07, layout="NC", shape=(4,)),
        _candidate("f", 0.01),
    ]
    choice = choose_site(found)
    assert str(choice.site) == "before:c.2"  # between blocks, and behind an activation rather than before it
    assert choice.reason.startswith("before:c.2: of 10 places that nothing bypasses, the first of the last stage with")
    assert choice.reason.endswith("(24.2%, its flat head aside)")
    assert str(choose_site(found[8:]).site) == "before:e.0"  # a map of one pixel where there is no other
    assert str(choose_site(found[9:]).site) == "before:e"  # flat features where there is nothing else
    assert str(choose_site(found[10:]).site) == "before:f"  # and too little behind rather than no site at all
    with pytest.raises(BadInputError, match=r"no place in this network .*polarizer sites --all"):
        choose_site(found[3:4])


def test_of_a_stage_that_is_most_of_the_network_the_last_place_is_taken() -> None:
    found = [_candidate("a", 0.9), _candidate("b", 0.2), _candidate("c", 0.1), _candidate("d", 0.02)]
    choice = choose_site(found)
    assert str(choice.site) == "before:c"
    assert choice.reason.startswith("before:c: of 4 places that nothing bypasses, the last with several pixels")
    assert str(choose_site(found[1:]).site) == "before:b"


def test_the_last_map_is_the_deepest_place_with_several_pixels_that_nothing_bypasses() -> None:
    found = [
        _candidate("a", 0.9),
        _candidate("b", 0.2),
        _candidate("c", 0.1, bypassed=True),
        _candidate("d", 0.05, shape=(4, 1, 1)),
        _candidate("e", 0.02, layout="NC", shape=(4,)),
    ]
    assert str(last_map(found)) == "before:b"
    assert last_map(found[2:]) is None
    pixels = _pixels(size=32)
    network = made(PreActResNet18(4, width=2))
    assert str(last_map(candidates(network, pixels))) == "after:layer4"


def test_operations_on_flat_features_are_no_depth() -> None:
    """Of a network with 30 % of its operations in a flat head, "c" has 3 % of the others behind it, and "b" 14 %."""
    flat = _candidate("e", 0.3, layout="NC", shape=(4,))
    found = [_candidate("a", 1.0), _candidate("b", 0.4), _candidate("c", 0.32), _candidate("d", 0.3), flat]
    choice = choose_site(found)
    assert str(choice.site) == "before:b"
    assert choice.reason.endswith("(14.3%, its flat head aside)")


def test_a_network_of_flat_features_alone_has_a_site() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    assert str(default_site(network, _pixels())) == "after:0"


def test_positions_are_the_pixels_or_tokens_and_flat_features_have_one() -> None:
    shapes = {"NCHW": (3, 4, 5), "NHWC": (4, 5, 3), "NLC": (20, 3), "NC": (3,)}
    assert [Features(shape, layout).positions for layout, shape in shapes.items()] == [20, 20, 20, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (TinyNet(), "before:features.3"),
        (Residual(), "after:stem"),
        (PreActResNet18(4, width=2), "before:layer4.1"),
        (Normalized(TinyNet(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), "before:features.3"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.ReLU(), nn.Linear(5, 2)), "before:1"),
    ],
    ids=["tiny", "residual", "preact", "normalized", "flat"],
)
def test_the_site_of_small_networks(network: nn.Module, expected: str) -> None:
    assert str(default_site(network.eval(), _pixels())) == expected


TORCHVISION = {
    "resnet18": "before:layer4.1",
    "mobilenet_v2": "before:features.15",
    "mobilenet_v3_small": "before:features.10",
    "shufflenet_v2_x0_5": "before:conv5",
    "squeezenet1_1": "before:features.9",
    "mnasnet0_5": "before:layers.13",
    "efficientnet_b0": "before:features.7",
    "regnet_y_400mf": "before:trunk_output.block4.block4-1",
    "densenet121": "before:features.denseblock3",
    "googlenet": "before:inception5a",
    "swin_t": "before:features.7",
}
TIMM = {
    "test_vit": "before:blocks.5",
    "test_resnet": "before:layer4",
    "test_convnext": "before:stages.3.blocks",
    "test_efficientnet": "before:blocks.3",
    "test_nfnet": "before:stages",
    "test_mambaout": "before:stages.3",
    "convnext_atto": "before:stages.3.blocks",
    "vit_tiny_patch16_224": "before:blocks.11",
    "swin_tiny_patch4_window7_224": "before:layers.3.blocks",
    "resmlp_12_224": "before:blocks.11",
    "ghostnet_050": "before:global_pool",
}


def _torchvision(name: str) -> tuple[nn.Module, int]:
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return models.get_model(name, weights=None, num_classes=4, **options), 64


def _timm(name: str) -> tuple[nn.Module, int]:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    sized = {"img_size": 64} if any(word in name for word in ("vit", "resmlp")) else {}
    sized = {"img_size": 56} if name.startswith("swin") else sized
    return timm.create_model(name, pretrained=False, num_classes=4, **sized), sized.get("img_size", 64)


MANY: dict[str, tuple[Callable[[str], tuple[nn.Module, int]], str]] = {
    **{f"torchvision:{name}": (_torchvision, site) for name, site in TORCHVISION.items()},
    **{f"timm:{name}": (_timm, site) for name, site in TIMM.items()},
}


def _polarized(network: nn.Module, each: Candidate, pixels: Tensor) -> nn.Module:
    """With a polarizer there that has been calibrated on ``pixels``."""
    polarizer = make_polarizer("conv-bn", each.features, torch.Generator()).eval()
    polarized, seen = insert(network, each.site, polarizer), []
    handle = polarizer.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    polarized(pixels)
    handle.remove()
    rows = seen[0].movedim(-1 if polarizer.channels_last else 1, -1).flatten(0, -2)
    polarizer.calibrate(rows.mean(0), rows.var(0, correction=0))
    return polarized


@pytest.mark.long
@pytest.mark.parametrize("name", MANY)
@torch.no_grad()
def test_at_every_candidate_a_calibrated_polarizer_keeps_the_logits_and_the_network(name: str) -> None:
    make, expected = MANY[name]
    torch.manual_seed(0)
    network, size = make(name.partition(":")[2])
    network.eval()
    pixels, before = _pixels(2, size), snapshot(network)
    found = candidates(network, pixels)
    logits = network(pixels)
    for each in found:
        if not each.bypassed:
            assert_close(
                _polarized(network, each, pixels)(pixels),
                logits,
                rtol=1e-3,
                atol=1e-4 * float(logits.abs().max()),
                msg=str(each),
            )
    assert str(choose_site(found).site) == expected
    after = snapshot(network)
    assert_close(after[0], before[0], rtol=0.0, atol=0.0)
    assert after[1:] == before[1:]


class _TimeFirst(nn.Module):
    """Rows as time steps in front of the images, then images in front again."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(48, 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.inner(images.permute(2, 0, 1, 3).flatten(2)).mean(dim=0))


class _Pieces(nn.Module):
    """Quarters of an image as images of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        quarters = torch.cat([half for part in images.chunk(2, 2) for half in part.chunk(2, 3)])
        return self.head(self.inner(quarters).mean(dim=(2, 3)).unflatten(0, (4, -1)).mean(dim=0))


@pytest.mark.parametrize("kind", [_TimeFirst, _Pieces])
def test_features_that_are_not_those_of_single_images_are_no_place(kind: Callable[[], nn.Module]) -> None:
    network = made(kind())
    assert [str(each.site) for each in candidates(network, _pixels())] == ["before:head"]
    with pytest.raises(BadInputError, match=r"found \(\d+, .*\) for N = 3 images"):
        features_at(network, Site("after", "inner"), _pixels())


def test_a_network_without_any_place_is_told_what_to_do() -> None:
    with pytest.raises(BadInputError, match=r"no place in this network.* use a method without a layer"):
        choose_site([])
