"""NC (Wang et al., 2019): invert a small trigger for every class, and unlearn those that are suspiciously small."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import MANY_CLASSES, Defense, Run
from neural_polarizer.defenses.fine_tuning import RECIPE, fine_tuned
from neural_polarizer.defenses.inverted_triggers import Inversion, anomalies, squash, stamp
from neural_polarizer.defenses.result import Outcome
from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import check_literals
from neural_polarizer.train.fit import descend
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Defense):
    """Trigger inversion, outlier detection on the masks' sizes, and unlearning.

    Source: Wang et al., "Neural Cleanse", IEEE S&P 2019.
    Departures from the reference: several classes at a time, without any effect on the result; a class that was
    never reached does not enter the statistics; the inverted trigger is not rounded to 8 bits.

    Args:
        images: how many of the clean images the inversion looks at; None: all.
        epochs: passes over them for each class.
        batch_size: clean images a step.
        lr: of Adam (betas 0.5 and 0.9) on mask and pattern.
        cost: c0, weight of the mask's size at the start.
        success: share of the images that must reach the class.
        patience: passes in a row before the weight changes.
        threshold: anomaly index beyond which a class is flagged.
        parallel: classes at a time.
        stamped_share: share of the clean images that carry the trigger in the unlearning.
        precision: of the inversion, "bf16" autocast or "fp32".
        schedule: of the unlearning.
    """

    title: ClassVar[str] = "NC"
    story: ClassVar[tuple[str, ...]] = (
        "Neural Cleanse (NC): for each class, the smallest pattern was sought that leads all images to it.",
        "A class with a much smaller pattern than the rest is suspected; the model is then taught to ignore that "
        "pattern. If none stands out, the model stays as it was.",
    )
    every_class: ClassVar[bool] = True
    smoke: ClassVar[Mapping[str, Any]] = {"images": 40, "epochs": 2, "batch_size": 20, "schedule.epochs": 1}
    laptop: ClassVar[Mapping[str, Any]] = {
        "images": 500,
        "epochs": 30,
        "batch_size": 50,
        "patience": 2,
        "schedule.epochs": 10,
        "schedule.batch_size": 64,
    }

    images: int | None = None
    epochs: int = 80
    batch_size: int = 256
    lr: float = 0.1
    cost: float = 1e-3
    success: float = 0.98
    patience: int = 5
    threshold: float = 2.0
    parallel: int = 4
    stamped_share: float = 0.2
    precision: Precision = "fp32"
    schedule: Schedule = field(default=RECIPE)

    def __post_init__(self) -> None:
        check_literals(self)
        if self.images is not None and self.images < 1:
            raise BadInputError(f"NC needs at least 1 image to invert triggers with, got {self.images}")
        if min(self.epochs, self.batch_size, self.patience, self.parallel) < 1 or not 0 < self.stamped_share <= 1:
            raise BadInputError(
                f"NC needs at least 1 epoch, image a batch, pass of patience and class at a time, a share in (0, 1], "
                f"got {self.epochs}, {self.batch_size}, {self.patience}, {self.parallel}, {self.stamped_share}"
            )

    def cost_of_classes(self, images: int, classes: int) -> str | None:
        """The inversion's images, forwards and backwards."""
        if classes < MANY_CLASSES:
            return None
        seen = min(images, self.images or images)
        return (
            f"NC inverts a trigger for each of {classes:,} classes, with {self.epochs} passes over {seen} images: "
            f"{classes * self.epochs * seen:,} images forwards and backwards (the bar shows the time left after the "
            f"first {min(self.parallel, classes)} classes); a smaller --set images={max(1, seen // 4)} or --set "
            f"epochs={max(1, self.epochs // 4)} makes it less, and npd-ls looks at a few dozen classes only"
        )

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("invert"):
            found = self.invert(model, clean, run)
        audit = found.audit(clean.classes)
        if not found.flagged:
            return Outcome(model, audit)
        with run.timed("unlearn"):
            tuned = fine_tuned(model, self._with_triggers(clean, found, run), self.schedule, run)
        return Outcome(tuned, audit, found.suspect)

    def invert(self, model: nn.Module, clean: ImageSet, run: Run) -> Inversion:
        """A trigger for every class, and which of them are suspicious; ``model`` is left as it is.

        The seed fixes the order of the images, the only randomness.
        """
        shown = torch.randperm(len(clean), generator=run.stream("nc images"))[: self.images]
        clean = clean if self.images is None else clean.select(shown.sort().values)
        frozen = copy.deepcopy(model).to(run.device).eval().requires_grad_(False)
        with torch.no_grad():
            known = frozen(to_pixels(clean.images[:2].to(run.device))).shape[1]
        parts = []
        for group in torch.arange(known).split(self.parallel):
            parts.append(self._invert_some(frozen, clean, group, run))
            run.progress("invert", int(group[-1]) + 1, known)
        masks, patterns, reached = (torch.cat(column) for column in zip(*parts, strict=True))
        anomaly, flagged = anomalies(masks.flatten(1).sum(dim=1), reached, self.threshold)
        return Inversion(masks, patterns, reached, anomaly, flagged)

    def _invert_some(
        self, model: nn.Module, clean: ImageSet, classes: Int64[Tensor, " g"], run: Run
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks, patterns and whether they reached their class; all classes see the same batches."""
        device = run.device
        count, (channels, height, width) = len(classes), clean.images.shape[1:]
        raw_mask = torch.ones(count, 1, height, width, device=device, requires_grad=True)
        raw_pattern = torch.ones(count, channels, height, width, device=device, requires_grad=True)
        optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=self.lr, betas=(0.5, 0.9))
        cost = torch.full((count,), self.cost, device=device)
        above, below = torch.zeros(2, count, dtype=torch.int64, device=device)
        best_size = torch.full((count,), torch.inf, device=device)
        best_mask, best_pattern = (squash(raw).detach().clone() for raw in (raw_mask, raw_pattern))
        targets = classes.to(device)
        for epoch in range(self.epochs):
            order = torch.randperm(len(clean), generator=run.stream("nc", epoch))
            hits = torch.zeros(count, device=device)
            for rows in order.split(self.batch_size):
                pixels = to_pixels(clean.images[rows].to(device))
                mask, pattern = squash(raw_mask), squash(raw_pattern)
                stamped = (1 - mask[:, None]) * pixels + (mask * pattern)[:, None]
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    logits = model(stamped.flatten(0, 1)).float()
                wanted = targets.repeat_interleave(len(rows))
                losses = F.cross_entropy(logits, wanted, reduction="none").view(count, -1).mean(dim=1)
                # the classes do not touch one another
                descend(optimizer, (losses + cost * mask.flatten(1).sum(dim=1)).sum())
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

    def _with_triggers(self, clean: ImageSet, found: Inversion, run: Run) -> ImageSet:
        """The clean images, and for each flagged class a share of them with its trigger and their true labels."""
        order = torch.randperm(len(clean), generator=run.stream("nc unlearn"))
        count = max(1, round(self.stamped_share * len(clean)))
        carriers, plain = order[:count], order[count:]
        images, labels = [clean.images[plain]], [clean.labels[plain]]
        for target in found.flagged:
            images.append(stamp(clean.images[carriers], found.masks[target], found.patterns[target]))
            labels.append(clean.labels[carriers])
        return ImageSet(torch.cat(images), torch.cat(labels), clean.classes, clean.source)
