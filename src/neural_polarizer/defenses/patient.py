"""Whether it makes sense to repair a model with these images, and what the repair did to the accuracy on them."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import MOST_AT_ONCE, Defense, Repaired
from neural_polarizer.defenses.fitting import check_classes, understood
from neural_polarizer.defenses.guard import Guarded
from neural_polarizer.metrics import predict
from neural_polarizer.models.forms import check_module, in_float32, let_go
from neural_polarizer.models.normalize import two_logits
from neural_polarizer.plausibility.examine import ACCEPTED_LOSS, Finding, examine, harm_done
from neural_polarizer.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Patient:
    """A model that is ready to be repaired."""

    original: nn.Module  # as the caller has it; never changed
    working: nn.Module  # the same in float32 on the CPU, in evaluation mode
    clean: ImageSet  # the clean images, with as many channels as the model takes
    finding: Finding  # what the model makes of them
    notes: tuple[str, ...]  # what the user should know
    yes_no: bool = False  # whether the original gives one logit z, for which the working model gives (0, z)

    def repaired(
        self,
        defense: Defense,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        shown: ImageSet | None = None,
        progress: Progress = silent,
    ) -> Repaired:
        """What ``defense`` makes of the model (``Defense.repair``), with the accuracy on the clean images.

        If it ruined the model, or lost more than its guard's budget or than is accepted, the first of the notes says
        so. ``shown`` are the images that the defense sees; None are the clean ones.
        """
        images = self.clean if shown is None else shown
        found = defense.repair(self.original, images, seed=seed, device=device, progress=progress)
        result = in_float32(let_go(found.model))
        result = two_logits(result) if self.yes_no else result
        answers = predict(result, self.clean, device=device, batch_size=defense.at_once)
        hits = int((answers == self.clean.labels).sum())
        harm = harm_done(self.finding, hits, int(self.clean.labels.unique().numel()))
        cost = _cost(found.guarded, self.finding.accuracy - hits / len(answers))
        return replace(
            found,
            clean_acc=(self.finding.accuracy, hits / len(answers)),
            notes=(*((harm,) if harm else cost), *found.notes, *self.notes, *self.clean.notes),
        )


def admitted(
    model: nn.Module,
    clean: ImageSet,
    *,
    device: torch.device | str = "cpu",
    force: bool = False,
    batch_size: int = MOST_AT_ONCE,
    progress: Progress = silent,
) -> Patient:
    """Check that a model can be repaired with these images, and that it makes sense of them.

    The model may be in any floating-point type, on any device, in any mode, and is left as it was. With ``force``, one
    that does no better than guessing is admitted with a note, and not refused. ``batch_size`` is the most images in a
    forward pass.
    """
    found = understood(in_float32(check_module(model)), clean)
    images, logits = found.images, found.logits
    check_classes(images, int(logits.shape[1]))
    notes: tuple[str, ...] = ()
    if found.yes_no:
        notes = ("a yes/no model: its one logit z was taken for the two logits (0, z)",)
    if bool(((logits >= 0) & (logits <= 1)).all()) and bool(((logits.sum(dim=1) - 1).abs() < 1e-4).all()):
        notes = (
            *notes,
            "the model's outputs are probabilities that sum to 1, whose gradients are weak; give the logits before the "
            "softmax if you can",
        )
    finding = examine(found.model, images, device=device, batch_size=batch_size, progress=progress)
    if not force:
        finding.require_sense()
    remark = () if finding.remark is None else (finding.remark,)
    notes = (*notes, *remark, *_gap(images, finding.num_classes))
    return Patient(model, found.model, images, finding, notes, found.yes_no)


def _cost(guarded: Guarded | None, lost: float) -> tuple[str, ...]:
    """A note of a loss on all clean images that is over the budget, where the guard saw none, or there is no guard."""
    over = guarded is not None and guarded.over(lost) and not guarded.over(guarded.lost)
    if not over and (guarded is not None or round(lost, 9) <= ACCEPTED_LOSS):
        return ()
    budget = "" if guarded is None else f", more than the budget of {100 * guarded.budget:.1f}"
    return (
        f"on the clean images the result loses {100 * lost:.1f} points of accuracy{budget}; compare both models on "
        "test images before you use this",
    )


def _gap(images: ImageSet, known: int) -> tuple[str, ...]:
    """A note of classes without images, of which the accuracy on the clean images says nothing."""
    there = int(images.labels.unique().numel())
    if there == known:
        return ()
    said = f"{known - there} of {known} classes have no clean image, so accuracy on them is not protected"
    if there == 1:
        said += "; that on the clean images shows no harm, as a model that gives all images their class has 100 %"
    return (said,)
