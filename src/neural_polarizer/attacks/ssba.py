"""SSBA (Li et al., 2021): an invisible, image-dependent residual that carries a fixed bit string."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState, Workshop, restored
from neural_polarizer.attacks.stamping import in_parts
from neural_polarizer.cache import cached_tensors
from neural_polarizer.data.images import ByteImages, ImageSet, to_bytes, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import global_rng, stream
from neural_polarizer.train.fit import descend

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class SSBA(Attack):
    """The triggered image is what a steganographic encoder makes of the image and one fixed string of bits.

    Encoder and decoder are trained on the attacker's own images with random strings: the picture must stay the same,
    the decoder must read the string. The decoder is only needed for training and for the quality check.

    Source: Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021; StegaStamp (Tancik et
    al., CVPR 2020).
    Departures from the reference: the string is drawn from the seed, without an error-correcting code; the encoder
    need not have StegaStamp's width; a poor encoder is refused.

    Args:
        bits: L, length of the string.
        steps: of training, batches of ``batch_size`` images.
        batch_size: images a step.
        lr: of Adam.
        read_first: share of the bits that must be right before the picture's error begins to count.
        wait: steps from then until its weight begins to rise.
        rise: steps in which the weight rises to ``image_weight``.
        image_weight: of the mean squared error between image and encoded image.
        width: channels of the networks' first stages (32 in StegaStamp); deeper ones have up to 8 times as many.
        residual: add the network's output to the image; False takes its sigmoid for the encoded image.
        min_bit_accuracy: share of the bits that must survive rounding to 8 bits.
        min_psnr: least peak signal-to-noise ratio of the encoded images, in dB.
    """

    title: ClassVar[str] = "SSBA"
    category: ClassVar[Category] = Category("non-additive", "global", "invisible", "specific")
    smoke: ClassVar[Mapping[str, Any]] = {"bits": 4, "width": 4, "steps": 6, "min_bit_accuracy": 0.0, "min_psnr": 0.0}
    laptop: ClassVar[Mapping[str, Any]] = {"bits": 16, "width": 8, "steps": 1500, "lr": 1e-3, "wait": 100, "rise": 600}

    bits: int = 100
    steps: int = 15_000
    batch_size: int = 64
    lr: float = 1e-4
    read_first: float = 0.9
    wait: int = 1000
    rise: int = 3000
    image_weight: float = 10.0
    width: int = 32
    residual: bool = False
    min_bit_accuracy: float = 0.99
    min_psnr: float = 22.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.bits, self.steps, self.batch_size, self.rise) < 1 or self.wait < 0 or self.lr <= 0:
            raise BadInputError(
                f"SSBA needs at least 1 bit, step, image a step and step of rise, a wait of at least 0 and a positive "
                f"learning rate, got {self.bits}, {self.steps}, {self.batch_size}, {self.rise}, {self.wait}, {self.lr}"
            )

    def check(self, images: ImageSet) -> None:
        """The networks halve the image five times."""
        super().check(images)
        if len(set(images.image_size)) > 1 or images.image_size[0] % 32:
            raise BadInputError(f"SSBA needs square images of a multiple of 32 pixels, got {images.image_size}")

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """Train the encoder once for a data set and keep it in the cache; draw the string.

        An encoder that hides or carries the string too badly is refused.
        """
        settings = {name: value for name, value in asdict(self).items() if name not in VICTIM_SETTINGS}
        request = {"data": train.sha256(), "seed": workshop.seed, **settings}
        state = cached_tensors("ssba", request, lambda: self._train(train, workshop))
        report = self.quality(train.images[:CHUNK], state)
        if report["bit_accuracy"] < self.min_bit_accuracy or report["psnr"] < self.min_psnr:
            raise BadInputError(
                f"{train.source}: the encoder carries {report['bit_accuracy']:.1%} of the bits at {report['psnr']:.1f} "
                f"dB, but {self.min_bit_accuracy:.1%} at {self.min_psnr:.1f} dB are asked for; train it for more steps"
            )
        return state

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Encode the fixed string into each image."""
        encoder = restored(lambda: Encoder(self.bits, self.width, self.residual), state, "encoder.").to(images.device)
        secret = state["secret"].to(images.device)

        @torch.no_grad()
        def encoded(part: ByteImages) -> ByteImages:
            return to_bytes(encoder(to_pixels(part), secret.expand(len(part), -1)))

        return in_parts(images, encoded, CHUNK)

    def quality(self, images: ByteImages, state: TriggerState) -> dict[str, float]:
        """``bit_accuracy`` after rounding to 8 bits, and ``psnr`` in dB, a mean over the images."""
        decoder = restored(lambda: Decoder(self.bits, self.width, int(images.shape[2])), state, "decoder.")
        stamped = self.stamp(images, state)
        with torch.no_grad():
            read = decoder(to_pixels(stamped)) > 0
        error = (to_pixels(stamped) - to_pixels(images)).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
        return {
            "bit_accuracy": float((read == state["secret"].bool()).float().mean()),
            "psnr": float((-10 * error.log10()).mean()),
        }

    def _train(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        device = workshop.device
        with global_rng(workshop.seed, "ssba networks"):
            pair = nn.ModuleDict(
                {
                    "encoder": Encoder(self.bits, self.width, self.residual),
                    "decoder": Decoder(self.bits, self.width, train.image_size[0]),
                }
            )
        pair.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(pair.parameters(), lr=self.lr)
        images = train.images.to(device)
        readable_since: int | None = None
        for step in range(self.steps):
            generator = stream(workshop.seed, "ssba", step)
            rows = torch.randint(len(images), (self.batch_size,), generator=generator).to(device)
            secret = torch.randint(2, (self.batch_size, self.bits), generator=generator).float().to(device)
            pixels = to_pixels(images[rows]).contiguous(memory_format=torch.channels_last)
            with workshop.schedule.autocast(device):
                encoded = pair["encoder"](pixels, secret)
                read = pair["decoder"](encoded).float()
            risen = 0.0 if readable_since is None else (step - readable_since - self.wait) / self.rise
            weight = self.image_weight * min(max(risen, 0.0), 1.0)
            loss = F.binary_cross_entropy_with_logits(read, secret) + weight * F.mse_loss(encoded.float(), pixels)
            descend(optimizer, loss)
            if readable_since is None and float(((read > 0) == secret.bool()).float().mean()) > self.read_first:
                readable_since = step
            workshop.progress("encoder", step + 1, self.steps)
        fixed = torch.randint(2, (1, self.bits), generator=stream(workshop.seed, "ssba secret")).float()
        return {**pair.state_dict(), "secret": fixed}


VICTIM_SETTINGS = (
    *("target", "label_rule", "poison_rate", "source", "targets", "cover_ratio"),
    *("min_bit_accuracy", "min_psnr"),
)


class Encoder(nn.Module):
    """A U-Net that writes bits into an image (the network of StegaStamp)."""

    def __init__(self, bits: int, width: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.spread = nn.Linear(bits, 16 * 16 * 3)
        w = width
        plan = [(6, w, 1), (w, w, 2), (w, 2 * w, 2), (2 * w, 4 * w, 2), (4 * w, 8 * w, 2)]
        self.down = nn.ModuleList(nn.Conv2d(before, after, 3, stride, padding=1) for before, after, stride in plan)
        rising = [(8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)]
        self.up = nn.ModuleList(nn.Conv2d(before, after, 2) for before, after in rising)
        joined = [(8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (2 * w + 6, w)]
        self.join = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in joined)
        self.last = nn.Conv2d(w, w, 3, padding=1)
        self.out = nn.Conv2d(w, 3, 1)

    def forward(self, pixels: Float[Tensor, "n 3 s s"], secret: Float[Tensor, "n l"]) -> Tensor:
        spread = self.spread(secret - 0.5).relu().view(-1, 3, 16, 16)
        features = torch.cat([F.interpolate(spread, size=pixels.shape[2:]), pixels - 0.5], dim=1)
        skips = [features]
        for layer in self.down:
            skips.append(layer(skips[-1]).relu())
        rising = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            rising = up(F.pad(F.interpolate(rising, scale_factor=2), (0, 1, 0, 1))).relu()
            skip = skips.pop()
            extra = [skips.pop()] if len(skips) == 1 else []
            rising = join(torch.cat([rising, skip, *extra], dim=1)).relu()
        drawn = self.out(self.last(rising).relu())
        return (pixels + drawn).clamp(0, 1) if self.residual else drawn.sigmoid()


class Decoder(nn.Module):
    """Reads the bits of an encoded image: logits, positive for a one."""

    def __init__(self, bits: int, width: int, size: int) -> None:
        super().__init__()
        w = width
        widths, strides = (3, w, w, 2 * w, 2 * w, 2 * w, 4 * w, 4 * w), (2, 1, 2, 1, 2, 2, 2)
        layers: list[nn.Module] = []
        for (before, after), stride in zip(pairwise(widths), strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]
        flat = (size // 32) ** 2 * 4 * w
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 16 * w), nn.ReLU(), nn.Linear(16 * w, bits))

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n l"]:
        return self.layers(pixels - 0.5)
