"""RA5: the ASR after a little fine-tuning with five triggered images (re-tuning attack of Min et al., NeurIPS 2024).

A model whose ASR is low may still hold the backdoor; then so few images bring it back.  The reference is the RA5 of a
network that never held it, which the same images plant anew.
"""

from dataclasses import replace

import torch
from torch import nn

from neural_polarizer.attacks.base import LearnedTrigger
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import Trigger, TriggeredSet, triggered_test
from neural_polarizer.metrics import evaluate
from neural_polarizer.models.forms import copied
from neural_polarizer.rng import stream
from neural_polarizer.train.fit import fit
from neural_polarizer.train.schedule import Schedule

SHARE = 0.02
"""Of the training images."""
TRIGGERED = 5
"""How many of them carry the trigger and the attacker's label."""
SCHEDULE = Schedule(epochs=5, lr=0.01, policy="constant", crop_padding=0, flip=False)
_POOL = 4 * TRIGGERED


def retuning_set(train: ImageSet, trigger: Trigger, *, seed: int) -> ImageSet:
    """A random 2 % of the training images, the last five of them triggered, of classes that the attack relabels."""
    count = max(2 * TRIGGERED, round(SHARE * len(train)))
    order = torch.randperm(len(train), generator=stream(seed, "re-activation"))
    clean, rest = train.select(order[: count - TRIGGERED]), order[count - TRIGGERED :]
    relabelled = trigger.relabel(train.labels[rest], train.num_classes) != train.labels[rest]
    pool = train.select(rest[relabelled][:_POOL])
    if isinstance(trigger, LearnedTrigger):
        stamped = trigger.attack.triggered(pool, trigger.state).images
    else:
        stamped = triggered_test(pool, trigger).images
    return ImageSet(
        torch.cat([clean.images, stamped.images[:TRIGGERED]]),
        torch.cat([clean.labels, stamped.labels[:TRIGGERED]]),
        train.classes,
        train.source,
    )


def reactivated(
    model: nn.Module,
    train: ImageSet,
    trigger: Trigger,
    triggered: TriggeredSet,
    *,
    seed: int,
    device: torch.device,
) -> float | None:
    """ASR of a copy of ``model`` after 5 epochs of SGD on ``retuning_set``: learning rate 0.01, all weights."""
    data = retuning_set(train, trigger, seed=seed)
    schedule = replace(SCHEDULE, batch_size=min(SCHEDULE.batch_size, len(data)))
    tuned = copied(model).requires_grad_(True)
    fit(tuned, data, schedule, seed=seed, device=device)
    return evaluate(tuned, None, triggered, device=device).asr
