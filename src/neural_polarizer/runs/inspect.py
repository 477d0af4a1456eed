"""What the report shows beside the figures: fresh perturbations against both models, and pictures."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_bytes, to_pixels
from neural_polarizer.data.poison import TriggeredSet
from neural_polarizer.defenses import Audit, Defense, Outcome
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.npd.aims import targets_of
from neural_polarizer.defenses.npd.presets import preset
from neural_polarizer.defenses.result import Suspect
from neural_polarizer.perturb import Ball, perturb
from neural_polarizer.report.html import Picture
from neural_polarizer.report.pictures import amplify, contact_sheet
from neural_polarizer.rng import stream

TRIED, SAMPLES = 256, 8
"""So many images are perturbed, and so many are shown."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the result may be measured on; never seen by the defense."""

    test: ImageSet | None = None
    triggered: TriggeredSet | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the images were read."""
        sets = (self.test, None if self.triggered is None else self.triggered.images)
        return tuple(dict.fromkeys(note for images in sets if images is not None for note in images.notes))


def inspect(
    model: nn.Module,
    purified: Outcome,
    clean: ImageSet,
    defense: Defense,
    evidence: Evidence,
    device: torch.device,
    seed: int,
) -> tuple[dict[str, float], list[Picture]]:
    """Fresh targeted perturbations against both models on clean images, and pictures for the report.

    They aim at the class that is known or suspected to be the attacker's, one for all images, as its trigger would;
    without such a class each aims at its image's runner-up. NPD's are made with its own settings, all other defenses
    are tried with the shipped ones of NPD or NPD-TU.
    """
    shipped = preset("npd") if purified.suspect is None else preset("npd-tu", target=purified.suspect)
    probe = defense if isinstance(defense, NPD) else shipped
    rows = torch.randperm(len(clean), generator=stream(seed, "inspect"))[:TRIED]
    labels, pixels = clean.labels[rows].to(device), to_pixels(clean.images[rows].to(device))
    aim = purified.suspect if probe.target is None else probe.target
    radius = max(probe.radii)
    success = []
    perturbed = pixels
    for network in (purified.model, model):  # the original last: its perturbations are shown
        placed = network.to(device).eval()
        try:
            perturbed, share = _attack(placed, pixels, labels, probe, aim, radius, defense.at_once)
        finally:
            network.to("cpu")
        success.append(share)
    pictures = [*exhibits(purified.audit), *_pictures(pixels.cpu(), perturbed.cpu(), evidence)]
    return {"before": success[1], "after": success[0], "radius": radius}, pictures


def _attack(
    model: nn.Module,
    pixels: Float[Tensor, "n c h w"],
    labels: Tensor,
    probe: NPD,
    aim: Suspect | None,
    radius: float,
    at_once: int,
) -> tuple[Tensor, float]:
    """The perturbed images, and the share of those not of their target's class that are taken for it.

    A perturbation for all images is made with the first ``at_once`` of them, those of single images batch by batch.
    """
    logits = _logits(model, pixels, at_once)
    targets = targets_of(aim, logits, labels)
    batches = list(zip(pixels.split(at_once), targets.split(at_once), strict=True))
    found = partial(
        perturb,
        model,
        ball=Ball(probe.norm, radius),
        steps=max(probe.steps, 2),
        step_size=probe.step_size,
        rule=probe.step_rule,
    )
    if aim is None:
        deltas = torch.cat([found(some, wanted) for some, wanted in batches])
    else:
        deltas = found(*batches[0], universal=True)[:1]
    perturbed = (pixels + deltas).clamp(0, 1)
    reached = (_logits(model, perturbed, at_once).argmax(dim=1) == targets)[targets != labels]
    return perturbed, float(reached.float().mean()) if len(reached) else 0.0


@torch.no_grad()
def _logits(model: nn.Module, pixels: Float[Tensor, "n c h w"], at_once: int) -> Float[Tensor, "n k"]:
    return torch.cat([model(some) for some in pixels.split(at_once)])


def exhibits(audit: Audit | None) -> list[Picture]:
    """The pictures of what a defense has found."""
    return [
        Picture(
            title=exhibit.title,
            caption=exhibit.caption,
            png=contact_sheet(exhibit.rows, scale=max(1, 64 // exhibit.rows[0].shape[2])),
            group="What the defense found",
        )
        for exhibit in (() if audit is None else audit.exhibits)
    ]


def _pictures(pixels: Tensor, perturbed: Tensor, evidence: Evidence) -> list[Picture]:
    pixels, perturbed = pixels[:SAMPLES], perturbed[:SAMPLES]
    scale = max(1, 64 // pixels.shape[2])
    sheets = [
        Picture(
            title="Perturbed clean images",
            caption="Rows: clean image, the same with a targeted perturbation against the original model (the stand-in "
            "for the unknown trigger), and only the perturbation, amplified.",
            png=contact_sheet([to_bytes(pixels), to_bytes(perturbed), amplify(perturbed - pixels)], scale=scale),
            group="Perturbations",
        )
    ]
    if evidence.test is not None and evidence.triggered is not None:
        sheets.insert(0, _trigger_picture(evidence.test, evidence.triggered, scale))
    return sheets


def _trigger_picture(test: ImageSet, triggered: TriggeredSet, scale: int) -> Picture:
    shown = triggered.images.images[:SAMPLES]
    clean = _untriggered(test, triggered)
    if clean is None:
        rows, caption = [shown], "Test images with the trigger, as the model receives them."
    else:
        rows = [clean[:SAMPLES], shown, amplify(to_pixels(shown) - to_pixels(clean[:SAMPLES]))]
        caption = "Rows: clean test image, the same with the trigger, and the difference, amplified."
    return Picture(title="Triggered images", caption=caption, png=contact_sheet(rows, scale=scale), group="Trigger")


def _untriggered(test: ImageSet, triggered: TriggeredSet) -> Tensor | None:
    """The clean form of each triggered image, where the order of the rows tells it."""
    told = torch.ones(len(test), dtype=torch.bool)
    if len(triggered) != len(test):
        told = test.labels != triggered.images.labels[0]
    if torch.equal(test.labels[told], triggered.true_labels) and test.image_size == triggered.images.image_size:
        return test.images[told]
    return None
