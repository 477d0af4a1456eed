"""``purify`` for MindSpore networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
from mindspore import nn

from neural_polarizer.data.convert import as_image_set
from neural_polarizer.defenses.npd.presets import Preset, Target, preset
from neural_polarizer.defenses.npd.settings import NPDSettings
from neural_polarizer.errors import BadInputError
from neural_polarizer.mindspore.npd import Learner
from neural_polarizer.mindspore.polarizer import Polarizer
from neural_polarizer.progress import Progress, silent
from neural_polarizer.settings import changed


@dataclass(frozen=True, eq=False)
class PurifiedCell:
    """A purified classifier; what ``defenses.base.Repaired`` is for PyTorch.

    Args:
        cell: a new network in evaluation mode; the one that was given is untouched.
        polarizer: the learned layer inside ``cell``.
        site: where it sits, as ``before:NAME`` or ``after:NAME``.
        history: one record an epoch (losses, clean accuracy and surrogate success on the defender's own images).
        seconds: wall-clock by phase.
        notes: what the user should be warned of, in words.
    """

    cell: nn.Cell
    polarizer: Polarizer
    site: str
    history: Sequence[Mapping[str, float]]
    seconds: Mapping[str, float]
    notes: Sequence[str]


def purify(
    cell: nn.Cell,
    clean: Any,
    method: str = "npd",
    *,
    site: str | None = None,
    seed: int = 0,
    target: Target = None,
    name: Preset = "shipped",
    profile: str | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> PurifiedCell:
    """Take a backdoor out of a MindSpore classifier with a few clean images.

    Nothing that is passed in is changed, and nothing is printed or written. It computes where MindSpore's context says.

    Args:
        cell: from float32 pixels in [0, 1], ``(n, c, h, w)``, to logits ``(n, k)``.
        clean: an ``ImageSet``, or a data set of (image, label) as ``neural_polarizer.purify`` takes it.
        method: "npd", "npd-tp", "npd-tu", "npd-up" or "npd-uu".
        site: where to put the layer, ``before:NAME`` or ``after:NAME`` of a cell whose feature map is N x C x H x W;
            None takes the preset's, and "shipped" has none.
        seed: fixes the order of the batches.
        target: the attacker's class, or "next" for all-to-all; only for "npd-tp" and "npd-tu".
        name: which settings to start from: "shipped", "paper" or "reference".
        profile: which data set the images are like, such as "gtsrb"; the paper's settings depend on it.
        progress: called as ``progress(phase, done, total)``.
        settings: fields of ``NPDSettings`` that replace the preset's, such as ``epochs=5``.

    Raises:
        BadInputError: network, data or settings cannot be used; the message says what to do.
    """
    if not isinstance(cell, nn.Cell):
        raise BadInputError(f"expected a mindspore.nn.Cell, got {type(cell).__name__}")
    if ms.get_context("mode") != ms.PYNATIVE_MODE:
        raise BadInputError("MindSpore is in graph mode: call mindspore.set_context(mode=mindspore.PYNATIVE_MODE)")
    own = {"site": site} if site is not None else {}
    chosen: NPDSettings = changed(preset(method, name=name, profile=profile, target=target), {**own, **settings})
    _check_supported(chosen)
    learner = Learner(chosen, cell, as_image_set(clean), seed)
    history, notes = learner.learn(progress), tuple(learner.notes)
    return PurifiedCell(learner.finished(), learner.polarizer, learner.site, history, learner.seconds, notes)


def _check_supported(settings: NPDSettings) -> None:
    if settings.site is None:
        raise BadInputError("name the site of the layer, such as site='before:layer4.1': MindSpore networks have none")
    if settings.structure != "conv-bn":
        raise BadInputError(f"structure {settings.structure}: MindSpore networks get only conv-bn; leave it out")
    if settings.precision != "fp32":
        raise BadInputError(f"precision {settings.precision}: MindSpore networks compute in fp32; leave it out")
    if settings.compile:
        raise BadInputError("compile is for PyTorch; leave it out")
