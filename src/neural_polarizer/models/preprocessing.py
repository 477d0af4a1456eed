"""How a network's own library says that its images are to be prepared."""

from dataclasses import dataclass

from neural_polarizer.models.architecture import Architecture

_TORCHVISION_FIXED = {"vit_": 224, "maxvit_": 224}  # by the beginning of the name, the side without an option


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Pixels in [0, 1] to what a network expects."""

    source: str  # whose configuration says so, for remarks
    mean: tuple[float, ...]  # of the normalisation, a channel
    std: tuple[float, ...]  # likewise, positive
    # Height and width, where the network demands a size or its configuration is about this very network; else None.
    image_size: tuple[int, int] | None = None
    resampling: str = "bilinear"  # how its library resizes; we do it bilinearly
    cropped: bool = False  # whether its library cuts off the border; we do not


def own_preprocessing(architecture: str) -> Preprocessing | None:
    """What timm's configuration, or that of torchvision's pretrained weights, says; None where there is none.

    The image size is told only of networks that accept no other: that of the others is not the library's to say. The
    name is one that ``models.build`` has accepted.
    """
    asked = Architecture.parse(architecture)
    if asked.library == "timm":
        return _of_timm(asked)
    return _of_torchvision(asked) if asked.library == "torchvision" else None


def _of_timm(asked: Architecture) -> Preprocessing | None:
    import timm

    options, found = dict(asked.options), timm.get_pretrained_cfg(asked.name)
    if found is None or len(found.mean) != 3 or len(found.std) != 3:
        return None
    side = options.get("img_size")
    fixed = tuple(found.input_size[1:]) if found.fixed_input_size else None
    size = fixed if side is None else (side, side)
    return Preprocessing(
        source=f"timm's configuration of {asked.name}",
        mean=tuple(map(float, found.mean)),
        std=tuple(map(float, found.std)),
        image_size=None if size is None or "resize" in options else (int(size[0]), int(size[1])),
        resampling=str(found.interpolation),
        cropped=found.crop_pct < 1 and found.crop_mode == "center",
    )


def _of_torchvision(asked: Architecture) -> Preprocessing:
    import torchvision

    options, name = dict(asked.options), asked.name
    meant = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    usual = next((side for start, side in _TORCHVISION_FIXED.items() if name.startswith(start)), None)
    side = options.get("image_size", usual)
    return Preprocessing(
        source=f"torchvision's pretrained {name}",
        mean=tuple(map(float, meant.mean)),
        std=tuple(map(float, meant.std)),
        image_size=None if side is None or "resize" in options else (side, side),
        resampling=str(meant.interpolation.value),
        cropped=True,
    )
