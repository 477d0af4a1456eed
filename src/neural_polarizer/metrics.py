"""ACC, ASR, RA and DER, from one place; fractions in [0, 1], percent only when shown."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.data.poison import TriggeredSet
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.forms import copied, device_of, evaluating
from neural_polarizer.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How a classifier does; None where there was nothing to measure it on.

    Args:
        acc: ACC, share of the clean test images classified correctly.
        asr: ASR, share of the triggered test images classified as their poison label.
        ra: RA, share of the same triggered images classified as their true label.
        n_test: number of clean test images.
        n_triggered: number of triggered test images.
    """

    acc: float | None = None
    asr: float | None = None
    ra: float | None = None
    n_test: int = 0
    n_triggered: int = 0


@torch.no_grad()
def predict(
    model: nn.Module,
    images: ImageSet,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    progress: Progress = silent,
) -> Int64[Tensor, " n"]:
    """The most likely class of each image; the model is put into evaluation mode for the time being.

    Args:
        model: float pixels in [0, 1] to logits; its modes are restored afterwards. On another device a copy computes.
        images: what to classify.
        device: where to compute.
        batch_size: images a forward pass.
        progress: told about every batch.

    Raises:
        BadInputError: the model's output is not one logit a class of ``images``.
    """
    if len(images) == 0:
        return torch.empty(0, dtype=torch.int64)
    found, batches = [], images.images.split(batch_size)
    there = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
    network = model if device_of(model) == there else copied(model).to(there)
    with evaluating(network):
        for done, batch in enumerate(batches, start=1):
            logits = network(to_pixels(batch.to(device)).contiguous(memory_format=torch.channels_last))
            found.append(_checked(logits, images).argmax(dim=1).cpu())
            progress("evaluate", done, len(batches))
    return torch.cat(found)


def _checked(logits: object, images: ImageSet) -> Tensor:
    """What a model gave; refused unless it is one logit for each class of ``images``."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] <= int(images.labels.max()):
        form = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        low, high = (int(edge) for edge in images.labels.aminmax())
        counted = "; they seem to be counted from 1: subtract 1" if form[1:] == (high,) and low == 1 else ""
        raise BadInputError(
            f"{images.source}: has label {high}, but the model's output is {form}; it needs N x K with a logit "
            f"for every class{counted}"
        )
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise BadInputError(
            f"the model must give logits, one for every class, but it gives {kind} numbers, as after argmax; "
            "leave that out of its forward"
        )
    return logits


def evaluate(
    model: nn.Module,
    test: ImageSet | None = None,
    triggered: TriggeredSet | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Metrics:
    """ACC on ``test``, ASR and RA on ``triggered``, in evaluation mode and float32.

    Triggered images whose poison label equals the true one say nothing about the attack and are left out
    (all-to-one drops the target class, all-to-all nothing).

    Raises:
        BadInputError: a set is empty, or the model's output does not fit.
    """
    acc = asr = ra = None
    attacked = 0
    if test is not None:
        if len(test) == 0:
            raise BadInputError(f"{test.source}: the test set is empty")
        found = predict(model, test, device=device, progress=progress)
        acc = share(found == test.labels)
    if triggered is not None:
        told = triggered.images.labels != triggered.true_labels
        attacked = int(told.sum())
        if attacked == 0:
            raise BadInputError(f"{triggered.images.source}: no triggered image has a poison label of its own")
        images, true_labels = triggered.images.select(told), triggered.true_labels[told]
        found = predict(model, images, device=device, progress=progress)
        asr, ra = share(found == images.labels), share(found == true_labels)
    return Metrics(acc=acc, asr=asr, ra=ra, n_test=0 if test is None else len(test), n_triggered=attacked)


def share(hits: Tensor) -> float:
    """The share that is True."""
    return hits.double().mean().item()


def defense_effectiveness(before: Metrics, after: Metrics) -> float | None:
    """DER (paper section 4.1, first eq. 7), in [0, 1]; 0.5 for an unchanged model, None if a rate is missing."""
    if before.acc is None or before.asr is None or after.acc is None or after.asr is None:
        return None
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2
