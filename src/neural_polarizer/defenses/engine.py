"""A frozen network with a polarizer in it, cut in front of the layer: what defenses that learn one compute with."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.fitting import check_classes
from neural_polarizer.defenses.schedule import batches, steps_an_epoch
from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError, refusing
from neural_polarizer.layer.polarizer import Polarizer, Structure, shifted
from neural_polarizer.layer.sites import Candidate, candidates, choose_site, features_at
from neural_polarizer.layer.structures import make_polarizer
from neural_polarizer.layer.surgery import Cut, Site, cut, insert
from neural_polarizer.models.forms import let_go
from neural_polarizer.rng import stream

Values = tuple[Tensor, ...]
"""What the part in front of the layer gives for a batch: all that the rest of the network needs."""


class Engine:
    """A polarized copy of a network, and what its frozen part gives for the clean images, computed once.

    The copy is in evaluation mode; only the polarizer takes gradients. Where the network cannot be cut
    (``surgery.cut``), the values are the pixels themselves and the rest is the whole network, which ``notes`` says.

    ``model``, from float pixels in [0, 1] to logits ``(n, k)``, is left as it is. ``seed`` draws the first weights of
    structures that need random ones, the only randomness here. ``site`` is ``before:NAME`` or ``after:NAME``; None
    takes ``layer.sites.choose_site``. ``batch_size`` is the images in a batch; ``compile`` uses torch.compile for
    ``predict``.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        site: str | None = None,
        structure: Structure = "conv-bn",
        batch_size: int = 64,
        precision: Precision = "fp32",
        compile: bool = False,  # noqa: A002 - as the setting is called
        device: torch.device | str = "cpu",
    ) -> None:
        if len(clean) == 0:
            raise BadInputError(f"{clean.source}: the clean set is empty; NPD needs at least a few images a class")
        self.device = torch.device(device)
        self.images = clean.images.to(self.device)  # uint8 ``(n, c, h, w)``
        self.labels = clean.labels.to(self.device)  # int64 ``(n,)``
        self.steps = steps_an_epoch(len(clean), batch_size)
        self.notes: list[str] = []  # what the user should be warned of, in words
        self._batch_size = batch_size
        self._half = precision == "bf16"
        frozen = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        probe = to_pixels(self.images[:4])
        # Why the layer is where it is, and where else it could be; nothing if somebody named the site.
        self.site_reason: str | None = None
        self.sites: Sequence[Candidate] = ()
        if site is None:
            self.sites = candidates(frozen, probe)
            choice = choose_site(self.sites)
            self.site, self.site_reason = choice.site, choice.reason
        else:
            self.site = Site.parse(site)
        self.features = features_at(frozen, self.site, probe)
        self.polarizer = make_polarizer(structure, self.features, stream(seed, "structure")).to(self.device).eval()
        self.model = insert(let_go(frozen), self.site, self.polarizer).to(memory_format=torch.channels_last)
        # Torch's attention is asked for what is private to it.
        with refusing(f"site {str(self.site)!r}: the network cannot run with a layer there", AttributeError):
            self.num_classes = _num_classes(self.model, probe)
        check_classes(clean, self.num_classes)
        self._prefix, self._tail, self._entry = self._parts(probe)
        self._predict = torch.compile(self._whole) if compile else self._whole
        self.values = self._cached()  # what ``front`` gives for the images; not to be changed

    def front(self, pixels: Float[Tensor, "n c h w"]) -> Values:
        """What the network makes of ``pixels`` in front of the layer."""
        with self._autocast():
            return self._prefix(pixels)

    def logits(self, values: Values, shift: Float[Tensor, "m ..."] | None = None) -> Float[Tensor, "n k"]:
        """What the rest of the network makes of ``values``, which stay as they are.

        ``shift`` is added to the layer's input: ``(n, *features.shape)``, or ``(1, *features.shape)`` for all images.
        """
        moved = nullcontext() if shift is None else shifted(self.polarizer, shift)
        with self._autocast(), moved:
            # Copies, as the network may change its input in place.
            return self._tail(*(value.clone() for value in values)).float()

    def predict(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Float32 logits of ``pixels``."""
        return self._predict(pixels)

    @torch.no_grad()
    def layer_input(self, values: Values) -> Float[Tensor, "n ..."]:
        """What the layer reads for ``values``, ``(n, *features.shape)``, in the dtype that the network computes in."""
        if self._entry is not None:
            return values[self._entry]
        found: list[Tensor] = []
        with self.polarizer.register_forward_pre_hook(lambda _layer, args: found.append(args[0].clone())):
            self.logits(values)
        return found[0]

    @torch.no_grad()
    def calibrate(self) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
        """Give the layer the clean images' statistics, with which it is the exact identity if it ever is.

        Returns mean and variance of each channel of the layer's input.
        """
        mean, var = self._statistics(self.polarizer)
        self.polarizer.calibrate(mean, var)
        for norm in self.polarizer.inner_norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            for statistic, values in zip((norm.running_mean, norm.running_var), self._statistics(norm), strict=True):
                statistic.copy_(values)
        return mean, var

    def batches(self, seed: int, phase: str, epoch: int) -> Iterator[Int64[Tensor, " b"]]:
        """The rows of each batch of one epoch, in an order that the three arguments fix."""
        for rows in batches(len(self.labels), self._batch_size, seed=seed, phase=phase, epoch=epoch):
            yield rows.to(self.device)

    def _whole(self, pixels: Tensor) -> Tensor:
        with self._autocast():
            return self._tail(*self._prefix(pixels)).float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)

    def _parts(self, probe: Tensor) -> tuple[Callable[[Tensor], Values], Callable[..., Tensor], int | None]:
        parts = cut(self.model, self.polarizer, probe)
        if isinstance(parts, Cut):
            return parts.prefix, parts.tail, parts.entry
        self.notes.append(f"full forward passes instead of cached features: {parts}")
        self._check_batches()
        return lambda pixels: (pixels,), self.model, None

    @torch.no_grad()
    def _check_batches(self) -> None:
        """Refuse a network that splits its batches, as perturbations of the layer's input are those of a whole one."""
        pixels = to_pixels(self.images[: self._batch_size])
        found: list[int] = []
        with self.polarizer.register_forward_pre_hook(lambda _layer, args: found.append(len(args[0]))):
            self.model(pixels)
        if not found:
            raise BadInputError(f"site {str(self.site)!r}: the network does not always run it; choose another site")
        if found != [len(pixels)]:
            raise BadInputError(
                f"site {str(self.site)!r}: the layer reads {found[0]} images at once where the network is given "
                f"{len(pixels)}; give a batch_size of at most {found[0]}, or choose another site"
            )

    @torch.no_grad()
    def _cached(self) -> Values:
        parts = [
            self.front(to_pixels(images).contiguous(memory_format=torch.channels_last))
            for images in self.images.split(self._batch_size)
        ]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _statistics(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Mean and variance, in float64, of each channel of the input of ``layer`` for the clean images."""
        sums: list[tuple[Tensor, Tensor, int]] = []

        def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            features = args[0].double()
            axis = features.ndim - 1 if isinstance(layer, Polarizer) and layer.channels_last else 1
            others = [each for each in range(features.ndim) if each != axis]
            count = features.numel() // features.shape[axis]
            sums.append((features.sum(others), features.square().sum(others), count))

        with layer.register_forward_pre_hook(note):
            for start in range(0, len(self.labels), self._batch_size):
                self.logits(tuple(value[start : start + self._batch_size] for value in self.values))
        first, second, count = (sum(column) for column in zip(*sums, strict=True))
        mean = first / count
        return mean, (second / count - mean.square()).clamp_min(0)


@torch.no_grad()
def _num_classes(model: nn.Module, probe: Tensor) -> int:
    output = model(probe)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise BadInputError("the model must give logits N x K, one for every class")
    return int(output.shape[1])
