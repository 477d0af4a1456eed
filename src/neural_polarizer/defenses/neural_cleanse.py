"""NC (Wang et al., 2019): invert a small trigger for every class, and unlearn those that are suspiciously small."""

import copy
import time
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Purified
from neural_polarizer.defenses.fine_tuning import RECIPE, fine_tuned, repaired
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from neural_polarizer.train import Progress, Schedule, silent

TINY = 1e-7


@dataclass(frozen=True, eq=False)
class Inversion:
    """What the inversion found.

    Args:
        masks: how much each pixel belongs to the trigger, ``(k, 1, h, w)`` in [0, 1].
        patterns: its colours, ``(k, 3, h, w)`` in [0, 1].
        reached: which classes were reached at the wanted rate.
        anomaly: index of each class; more than 2 is suspicious where the mask is smaller than the median.
        flagged: the suspicious classes.
    """

    masks: Tensor
    patterns: Tensor
    reached: Tensor
    anomaly: Tensor
    flagged: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse:
    """Trigger inversion, outlier detection on the masks' sizes, and unlearning.

    Source: Wang et al., "Neural Cleanse", IEEE S&P 2019; spec 4.3.
    Departures from the reference: several classes at a time, without any effect on the result; a class that was
    never reached does not enter the statistics; the inverted trigger is not rounded to 8 bits.

    Args:
        epochs: most passes over the clean images for a class.
        batch_size: clean images a step.
        lr: of Adam (betas 0.5 and 0.9) on mask and pattern.
        cost: c0, weight of the mask's size at the start.
        success: share of the images that must reach the class.
        patience: passes in a row before the weight changes.
        threshold: anomaly index beyond which a class is flagged.
        parallel: classes at a time.
        stamped_share: share of the clean images that carry the trigger in the unlearning.
        schedule: of the unlearning.
    """

    epochs: int = 80
    batch_size: int = 256
    lr: float = 0.1
    cost: float = 1e-3
    success: float = 0.98
    patience: int = 5
    threshold: float = 2.0
    parallel: int = 4
    stamped_share: float = 0.2
    schedule: Schedule = field(default=RECIPE)

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.patience, self.parallel) < 1 or not 0 < self.stamped_share <= 1:
            raise BadInputError(
                f"NC needs at least 1 epoch, image a batch, pass of patience and class at a time, a share in (0, 1], "
                f"got {self.epochs}, {self.batch_size}, {self.patience}, {self.parallel}, {self.stamped_share}"
            )

    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Purified:
        """A copy of ``model`` with the flagged triggers unlearned; the model as it is if none is flagged.

        Raises:
            BadInputError: no clean images.
        """
        started = time.perf_counter()
        found = self.invert(model, clean, seed=seed, device=device, progress=progress)
        inverted = time.perf_counter()
        indices = ", ".join(f"{value:.1f}" for value in found.anomaly.tolist())
        note = f"anomaly index of each class: {indices}; flagged: {', '.join(map(str, found.flagged)) or 'none'}"
        if not found.flagged:
            return repaired(copy.deepcopy(model), {"invert": inverted - started}, note)
        training = self._with_triggers(clean, found, seed)
        tuned = fine_tuned(model, training, self.schedule, seed=seed, device=device, progress=progress)
        return repaired(tuned, {"invert": inverted - started, "unlearn": time.perf_counter() - inverted}, note)

    def invert(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Inversion:
        """A trigger for every class, and which of them are suspicious.

        Raises:
            BadInputError: no clean images.
        """
        if len(clean) == 0:
            raise BadInputError(f"{clean.source}: the clean set is empty; NC needs images")
        frozen = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        parts = []
        classes = torch.arange(clean.num_classes)
        for group in classes.split(self.parallel):
            parts.append(self._invert_some(frozen, clean, group, seed=seed, device=torch.device(device)))
            progress("invert", int(group[-1]) + 1, clean.num_classes)
        masks, patterns, reached = (torch.cat(column) for column in zip(*parts, strict=True))
        anomaly, flagged = anomalies(masks.flatten(1).sum(dim=1), reached, self.threshold)
        return Inversion(masks, patterns, reached, anomaly, flagged)

    def _invert_some(
        self, model: nn.Module, clean: ImageSet, classes: Int64[Tensor, " g"], *, seed: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks, patterns and whether they reached their class; all classes see the same batches."""
        count, (height, width) = len(classes), clean.image_size
        raw_mask = torch.ones(count, 1, height, width, device=device, requires_grad=True)
        raw_pattern = torch.ones(count, 3, height, width, device=device, requires_grad=True)
        optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=self.lr, betas=(0.5, 0.9))
        cost = torch.full((count,), self.cost, device=device)
        above = torch.zeros(count, dtype=torch.int64, device=device)
        below = torch.zeros_like(above)
        best_size = torch.full((count,), torch.inf, device=device)
        best_mask, best_pattern = (squash(raw).detach().clone() for raw in (raw_mask, raw_pattern))
        targets = classes.to(device)
        for epoch in range(self.epochs):
            order = torch.randperm(len(clean), generator=stream(seed, "nc", epoch))
            hits = torch.zeros(count, device=device)
            for rows in order.split(self.batch_size):
                pixels = to_pixels(clean.images[rows].to(device))
                mask, pattern = squash(raw_mask), squash(raw_pattern)
                stamped = (1 - mask[:, None]) * pixels + (mask * pattern)[:, None]
                logits = model(stamped.flatten(0, 1)).float()
                wanted = targets.repeat_interleave(len(rows))
                losses = F.cross_entropy(logits, wanted, reduction="none").view(count, -1).mean(dim=1)
                loss = (losses + cost * mask.flatten(1).sum(dim=1)).sum()  # the classes do not touch one another
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                hits += (logits.argmax(dim=1) == wanted).view(count, -1).float().sum(dim=1)
            with torch.no_grad():
                mask, pattern = squash(raw_mask), squash(raw_pattern)
                reached = hits / len(clean) >= self.success
                size = mask.flatten(1).sum(dim=1)
                better = reached & (size < best_size)
                never = best_size.isinf() & ~reached  # nothing yet: keep the last
                best_size = torch.where(better, size, best_size)
                keep = (better | never).view(-1, 1, 1, 1)
                best_mask, best_pattern = torch.where(keep, mask, best_mask), torch.where(keep, pattern, best_pattern)
                above = torch.where(reached, above + 1, 0)
                below = torch.where(reached, 0, below + 1)
                rise, fall = above >= self.patience, below >= self.patience
                cost = torch.where(rise, cost * 2, torch.where(fall, cost / 2**1.5, cost))
                above, below = above.masked_fill(rise, 0), below.masked_fill(fall, 0)
        return best_mask.cpu(), best_pattern.cpu(), best_size.isfinite().cpu()

    def _with_triggers(self, clean: ImageSet, found: Inversion, seed: int) -> ImageSet:
        """The clean images, and for each flagged class a share of them with its trigger and their true labels."""
        order = torch.randperm(len(clean), generator=stream(seed, "nc unlearn"))
        count = max(1, round(self.stamped_share * len(clean)))
        carriers, plain = order[:count], order[count:]
        images, labels = [clean.images[plain]], [clean.labels[plain]]
        for target in found.flagged:
            images.append(stamp(clean.images[carriers], found.masks[target], found.patterns[target]))
            labels.append(clean.labels[carriers])
        return ImageSet(torch.cat(images), torch.cat(labels), clean.classes, clean.source)


def squash(raw: Tensor) -> Tensor:
    """``tanh(raw) / 2 + 0.5``, in (0, 1)."""
    return raw.tanh() / (2 + TINY) + 0.5


def stamp(
    images: UInt8[Tensor, "n c h w"], mask: Float[Tensor, "1 h w"], pattern: Float[Tensor, "c h w"]
) -> UInt8[Tensor, "n c h w"]:
    """The images with an inverted trigger."""
    mixed = (1 - mask) * to_pixels(images) + mask * pattern
    return (mixed * 255).round().clamp(0, 255).to(torch.uint8)


def anomalies(
    sizes: Float[Tensor, " k"], reached: Tensor, threshold: float
) -> tuple[Float[Tensor, " k"], tuple[int, ...]]:
    """``|l - median| / MAD`` of the masks' sizes, and the classes below the median that exceed ``threshold``.

    Classes that were not reached have the index 0. Where the MAD is 0, a size other than the median is infinitely
    anomalous.
    """
    index = torch.zeros_like(sizes)
    known = sizes[reached]
    if len(known) < 3:
        return index, ()
    median = known.quantile(0.5)
    deviation = 1.4826 * (known - median).abs().quantile(0.5)
    gap = (sizes - median).abs()
    index = torch.where(gap > 0, gap / deviation, 0.0) * reached
    flagged = reached & (sizes <= median) & (index > threshold)
    return index, tuple(flagged.nonzero()[:, 0].tolist())
