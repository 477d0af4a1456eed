"""Other layers in the polarizer's place, for comparison (paper Table 13)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.by_class import ByClass
from neural_polarizer.layer.features import Features
from neural_polarizer.layer.polarizer import Norm, Polarizer, Structure

WITHOUT_NORM: tuple[Structure, ...] = ("linear", "linear-light", "conv", "mlp")


def make_polarizer(structure: Structure, features: Features, generator: torch.Generator) -> Polarizer:
    """A new layer; all but "osdn" begin as the identity ("mlp" where no feature is negative).

    The generator draws the weights of "osad" and "osdn"; the others draw nothing. All but "conv-bn" are made for
    feature maps N x C x H x W alone.
    """
    if structure == "by-class":
        raise BadInputError("structure by-class is made of a learned layer for each class: take the method cnpd")
    if features.layout != "NCHW" and structure != "conv-bn":
        raise BadInputError(
            f"structure {structure} needs a feature map N x C x H x W, and the site has features {features.layout}; "
            "take another site or conv-bn"
        )
    return _FORMS[structure][1](features, generator)


def polarizer_for(structure: Structure, tensors: Mapping[str, Tensor]) -> Polarizer | None:
    """A layer of the size that the weights of a saved one have; None if they tell no size."""
    if structure == "by-class":
        return _by_class(tensors)
    name = _FORMS[structure][0]
    sized = tensors.get(name)
    if sized is None or sized.numel() == 0:
        return None
    if structure == "conv-bn" and sized.ndim == 2:
        return Polarizer(len(sized), channels_last=True) if len(sized) ** 2 == sized.numel() else None
    # A convolution here has at least a quarter of a square's weights: a small file cannot make a huge layer.
    fits = sized.ndim == 3 if name == "scale" else sized.ndim == 4 and len(sized) ** 2 <= 4 * sized.numel()
    shape = tuple(sized.shape[:3])
    return make_polarizer(structure, Features(shape, "NCHW"), torch.Generator()) if fits else None


def _by_class(tensors: Mapping[str, Tensor]) -> ByClass | None:
    """Each layer is sized by weights of its own, so that a small file makes no huge one."""
    parts: list[dict[str, Tensor]] = []
    while part := {name: value for name, value in tensors.items() if name.startswith(f"layers.{len(parts)}.")}:
        parts.append({name.split(".", 2)[2]: value for name, value in part.items()})
    layers = [layer for part in parts if (layer := polarizer_for("conv-bn", part)) is not None]
    return ByClass(layers) if layers and len(layers) == len(parts) else None


class OtherStructure(Polarizer):
    """A layer of other parts that is inserted, cut at, trained and saved as the polarizer is, but not folded.

    It has neither ``mix`` nor ``norm`` of the polarizer; what it has under these names is its own.

    Shape: ``(n, c, h, w)`` to the same shape.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)  # without the polarizer's parts

    @property
    def channels_last(self) -> bool:
        return False

    def calibrate(self, mean: Float[Tensor, " c"], var: Float[Tensor, " c"]) -> None:
        """Change nothing: no norm of this layer reads the features themselves."""


class StackedPolarizer(OtherStructure):
    """Two polarizers, one behind the other.

    Source: paper Table 13, "(Conv-BN)x2".  Departures: none.
    """

    structure: Structure = "conv-bn-x2"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Polarizer(channels)
        self.second = Polarizer(channels)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.second(self.first(features))

    def calibrate(self, mean: Float[Tensor, " c"], var: Float[Tensor, " c"]) -> None:
        """Calibrate both: what the first one gives are the features again."""
        self.first.calibrate(mean, var)
        self.second.calibrate(mean, var)


class ElementwiseAffine(OtherStructure):
    """A factor and a summand for each value of a feature map ``(c, h, w)``, so for images of one size only.

    Source: paper Table 13, "Linear". Departures: begins as the identity, as in the authors' code; the paper says
    "randomly".
    """

    structure: Structure = "linear"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(*shape))
        self.shift = nn.Parameter(torch.zeros(*shape))

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if features.shape[1:] != self.scale.shape:
            raise BadInputError(
                f"a layer of structure {self.structure} is made for feature maps {tuple(self.scale.shape)}, got "
                f"{tuple(features.shape[1:])}: give it images of the size that it was learned with, or learn a conv-bn"
            )
        return features * self.scale + self.shift


class ChannelAffine(ElementwiseAffine):
    """A factor and a summand for each channel.

    Source: the authors' code, "linear_light".  Departures: none.
    """

    structure: Structure = "linear-light"

    def __init__(self, channels: int) -> None:
        super().__init__((channels, 1, 1))

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return features * self.scale + self.shift


class ElementwiseMLP(ElementwiseAffine):
    """Two ``ElementwiseAffine`` with a ReLU between them; negative features are lost from the start.

    Source: the authors' code, "mlp".  Departures: none.
    """

    structure: Structure = "mlp"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.second = ElementwiseAffine(shape)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.second(super().forward(features).relu())


class PointwiseConv(OtherStructure):
    """The polarizer without its batch norm.

    Source: the authors' code, "onlyconv".  Departures: none.
    """

    structure: Structure = "conv"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = _conv(channels, channels, bias=False)
        nn.init.dirac_(self.mix.weight)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.mix(features)


class SelfAttentionDenoiser(OtherStructure):
    """One residual block of non-local denoising: every position looks at all others; the identity at first.

    ``x + BN(out(y))``, where position i of y is the mean of ``value(x)`` weighted by ``softmax_j(theta_i . phi_j)``.

    Source: paper Table 13, "OSAD".  Departures: weights that the paper leaves open are drawn as torch
    does.
    """

    structure: Structure = "osad"

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.theta = _conv(channels, inner)
        self.phi = _conv(channels, inner)
        self.value = _conv(channels, inner)
        self.out = _conv(inner, channels)
        self.norm = nn.BatchNorm2d(channels)
        for scores in (self.theta, self.phi):
            nn.init.normal_(scores.weight, std=0.01, generator=generator)
            assert scores.bias is not None
            nn.init.zeros_(scores.bias)
        for layer in (self.value, self.out):
            _draw(layer, generator)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        theta, phi, value = (layer(features).flatten(2) for layer in (self.theta, self.phi, self.value))
        attention = (theta.transpose(1, 2) @ phi).softmax(dim=2)
        seen = value @ attention.transpose(1, 2)
        return features + self.norm(self.out(seen.unflatten(2, features.shape[2:])))

    @property
    def inner_norms(self) -> Sequence[Norm]:
        return (self.norm,)


class DualAttentionDenoiser(OtherStructure):
    """One residual block of dual attention: an update that a gate a channel and then a gate a position let through.

    ``relu(u * gates + x)`` with ``u = relu(BN(mix(x)))``; never the identity.

    Source: paper Table 13, "OSDN", which leaves open that the gate of positions reads the update behind the
    gate of channels.  Departures: weights are drawn as torch does.
    """

    structure: Structure = "osdn"

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.mix = _conv(channels, channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = _conv(channels, hidden)
        self.expand = _conv(hidden, channels)
        self.spatial = _conv(2, 1, kernel_size=7, bias=False)
        self.spatial_norm = nn.BatchNorm2d(1)
        for layer in (self.mix, self.squeeze, self.expand, self.spatial):
            _draw(layer, generator)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        update = self.norm(self.mix(features)).relu()
        pooled = (update.mean(dim=(2, 3), keepdim=True), update.amax(dim=(2, 3), keepdim=True))
        mean, largest = (self.expand(self.squeeze(values).relu()) for values in pooled)
        update = update * (mean + largest).sigmoid()
        seen = torch.cat([update.amax(dim=1, keepdim=True), update.mean(dim=1, keepdim=True)], dim=1)
        update = update * self.spatial_norm(self.spatial(seen)).sigmoid()
        return (update + features).relu()

    @property
    def inner_norms(self) -> Sequence[Norm]:
        return (self.norm, self.spatial_norm)


def _conv(inputs: int, outputs: int, *, kernel_size: int = 1, bias: bool = True) -> nn.Conv2d:
    """Of unchanged height and width, still without values: it draws nothing from torch's global generator."""
    made: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, inputs, outputs, kernel_size=kernel_size, padding=kernel_size // 2, bias=bias
    )
    return made


@torch.no_grad()
def _draw(layer: nn.Conv2d, generator: torch.Generator) -> None:
    """Torch's own initialisation, from a generator: uniform, up to one over the root of the inputs of a value."""
    bound = layer.weight[0].numel() ** -0.5
    for parameter in layer.parameters():
        parameter.uniform_(-bound, bound, generator=generator)


_FORMS: Mapping[Structure, tuple[str, Callable[[Features, torch.Generator], Polarizer]]] = {
    "conv-bn": ("mix.weight", lambda like, _: Polarizer(like.channels, channels_last=like.layout != "NCHW")),
    "conv-bn-x2": ("first.mix.weight", lambda like, _: StackedPolarizer(like.channels)),
    "linear": ("scale", lambda like, _: ElementwiseAffine(like.shape)),
    "linear-light": ("scale", lambda like, _: ChannelAffine(like.channels)),
    "conv": ("mix.weight", lambda like, _: PointwiseConv(like.channels)),
    "mlp": ("scale", lambda like, _: ElementwiseMLP(like.shape)),
    "osad": ("out.weight", lambda like, generator: SelfAttentionDenoiser(like.channels, generator)),
    "osdn": ("mix.weight", lambda like, generator: DualAttentionDenoiser(like.channels, generator)),
}
"""The tensor whose shape tells the size of a layer, and what makes it."""
