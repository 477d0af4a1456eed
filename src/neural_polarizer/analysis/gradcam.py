"""Where a network looks on triggered images, before and after a defense (paper Figs. 5 to 7)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.analysis.inputs import check_pairs, frozen_copy, last_convolution, name_in
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError, needing
from neural_polarizer.models.layers import watching

_INFERNO = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Five equidistant colours of matplotlib's map of that name (CC0), from 0 to 1."""


@dataclass(frozen=True, eq=False)
class Cams:
    """Class activation maps."""

    # Float ``(n, h, w)`` of the images' size, in [0, 1]; all 0 where no place speaks for the class more than another
    # does.
    maps: Tensor
    classes: Tensor  # int64 ``(n,)``, the predicted class that each map explains
    grid: tuple[int, int]  # rows and columns of the layer's own map


@dataclass(frozen=True)
class Focus:
    """How much of what a network looks at is the trigger."""

    # The share of each map's energy inside the trigger, in [0, 1]; None for a map that is 0 everywhere.
    shares: tuple[float | None, ...]
    mean: float | None  # of all shares that there are; None if there are none


@dataclass(frozen=True, eq=False)
class CamComparison:
    """Two networks' maps of the same triggered images."""

    layer: str  # whose maps they are
    # The share of each image that counts as trigger: the ``shares`` of a network that looks everywhere alike. Near 1
    # for a trigger that changes all of the image; the shares tell nothing then.
    areas: tuple[float, ...]
    before: Focus  # the backdoored network
    after: Focus  # the purified one
    # For a contact sheet, uint8 ``(m, 3, h, w)`` each: clean images, triggered images, the maps of the backdoored
    # network over the latter, and those of the purified one.
    rows: tuple[Tensor, Tensor, Tensor, Tensor]


def compare_cams(
    backdoored: nn.Module,
    purified: nn.Module,
    clean: Tensor,
    triggered: Tensor,
    *,
    shown: int = 8,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
) -> CamComparison:
    """Grad-CAM at the last convolution of triggered images, before and after a defense; both networks are untouched.

    Networks map pixels in [0, 1] to logits; ``purified`` has a polarizer inside, or other weights. ``triggered`` are
    the images of ``clean``, uint8 ``(n, 3, h, w)``, with the trigger; the first ``shown`` make the ``rows``. Images
    that are no pairs, a convolution that gives no map, and a missing captum are refused.
    """
    check_pairs(clean, triggered)
    layer = last_convolution(backdoored)
    before = grad_cam(backdoored, triggered, layer, device=device, batch_size=batch_size)
    after = grad_cam(purified, triggered, layer, device=device, batch_size=batch_size)
    mask = trigger_mask(clean, triggered, before.grid)
    return CamComparison(
        layer=layer,
        areas=tuple(mask.double().mean(dim=(1, 2)).tolist()),
        before=_focus(before, mask),
        after=_focus(after, mask),
        rows=(
            clean[:shown],
            triggered[:shown],
            overlay(triggered[:shown], before.maps[:shown]),
            overlay(triggered[:shown], after.maps[:shown]),
        ),
    )


def grad_cam(
    model: nn.Module,
    images: UInt8[Tensor, "n 3 h w"],
    layer: str,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
) -> Cams:
    """Grad-CAM for the predicted classes: ``relu(sum_k w_k A_k)`` with ``w_k`` the mean of ``d logit / d A_k``.

    Source: Selvaraju et al., ICCV 2017, by captum; enlarged to the image bilinearly, then stretched to [0, 1]. A copy
    of ``model`` in evaluation mode is looked at; ``layer`` is found behind an inserted polarizer, too.
    """
    with needing("explain"):
        from captum.attr import LayerAttribution, LayerGradCam
    frozen = frozen_copy(model, device)
    name = name_in(frozen, layer)
    method = LayerGradCam(frozen, frozen.get_submodule(name))
    maps, classes, grid = [], [], (0, 0)
    for batch in images.split(batch_size):
        pixels = to_pixels(batch.to(device))
        predicted, grid = _predicted(frozen, pixels, layer, name)
        # Captum would warn of having to set the flag itself.
        cells = method.attribute(pixels.requires_grad_(), target=predicted, relu_attributions=True)
        maps.append(LayerAttribution.interpolate(cells, images.shape[2:], "bilinear")[:, 0].detach().cpu())
        classes.append(predicted.cpu())
    found = torch.cat(maps)
    low, high = found.amin(dim=(1, 2), keepdim=True), found.amax(dim=(1, 2), keepdim=True)
    stretched = torch.where(high > low, (found - low) / (high - low), torch.zeros_like(found))
    return Cams(stretched, torch.cat(classes), grid)


@torch.no_grad()
def _predicted(model: nn.Module, pixels: Tensor, layer: str, name: str) -> tuple[Tensor, tuple[int, int]]:
    seen: list[Tensor] = []
    with watching(model, [name], lambda _name, _inputs, output: seen.append(output)):
        classes = model(pixels).argmax(dim=1)
    shapes = [tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__ for output in seen]
    if len(seen) != 1 or seen[0].ndim != 4 or seen[0].shape[2:].numel() == 1:
        raise BadInputError(
            f"layer {layer!r}: must give one feature map N x C x H x W with more than one place, gave {shapes}; choose "
            "another layer, one further in front if the map is too small"
        )
    return classes, (int(seen[0].shape[2]), int(seen[0].shape[3]))


def trigger_mask(
    clean: UInt8[Tensor, "n c h w"], triggered: UInt8[Tensor, "n c h w"], grid: tuple[int, int]
) -> Bool[Tensor, "n h w"]:
    """Where the trigger is, as coarsely as a layer of such a ``grid`` can tell: every cell in which a pixel differs.

    Maps are enlarged bilinearly, so one that is 1 in a single corner cell and 0 elsewhere has 49/64 of its energy
    inside that cell (in 8 x 8 pixels).
    """
    differs = (clean != triggered).any(dim=1, keepdim=True).float()
    cells = F.adaptive_max_pool2d(differs, grid)
    return F.interpolate(cells, clean.shape[2:], mode="nearest")[:, 0] > 0


def energy_shares(maps: Float[Tensor, "n h w"], mask: Bool[Tensor, "n h w"]) -> tuple[float | None, ...]:
    """The share of each map's sum that lies inside its mask; None for a map without any."""
    inside = maps.double().mul(mask).sum(dim=(1, 2)).tolist()
    total = maps.double().sum(dim=(1, 2)).tolist()
    return tuple(part / whole if whole > 0 else None for part, whole in zip(inside, total, strict=True))


def _focus(cams: Cams, mask: Tensor) -> Focus:
    shares = energy_shares(cams.maps, mask)
    known = [share for share in shares if share is not None]
    return Focus(shares, sum(known) / len(known) if known else None)


def overlay(images: UInt8[Tensor, "n 3 h w"], maps: Float[Tensor, "n h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """The maps in colours, from black over red to yellow, mixed half and half with the grey image."""
    colours = torch.tensor(_INFERNO, dtype=torch.float32)
    place = maps.float() * (len(colours) - 1)
    lower = place.long().clamp_max(len(colours) - 2)
    heat = torch.lerp(colours[lower], colours[lower + 1], (place - lower)[..., None]).permute(0, 3, 1, 2)
    return (heat + images.float().mean(dim=1, keepdim=True)).div(2).round().to(torch.uint8)
