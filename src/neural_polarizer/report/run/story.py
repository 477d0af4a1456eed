"""What was done to the model, in a handful of sentences, and where the new layer sits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neural_polarizer.defenses import DEFENSES, story_of
from neural_polarizer.report.run.guard import guard_summary
from neural_polarizer.report.values import count


@dataclass(frozen=True)
class Stage:
    """One box in the drawing of the network."""

    title: str
    note: str
    kind: str  # "end" for what goes in and comes out, "frozen", or "new"


@dataclass(frozen=True)
class Story:
    """The sentences, and the boxes from the image to the answer; no boxes if no layer was inserted."""

    sentences: tuple[str, ...]
    stages: tuple[Stage, ...]


def story(record: Mapping[str, Any]) -> Story:
    """Tell what the method did; methods that are not known here are named."""
    method, found = record["method"], audit_summary(record)
    images = f"{count(record['n_clean'])} clean images from the defender"
    told = () if found is None else (found,)
    if method in DEFENSES and DEFENSES[method].inserts:
        where, _, layer = record["site"].partition(":")
        return Story(_sentences(record, f"{where} {layer}", images, told), _stages(where, layer))
    applied = f"The defense {method} was applied to a copy of the model, with the settings listed below."
    seen = f"It saw {images}; no image with the real trigger was used."
    if record.get("mixture"):
        seen = f"It saw {count(record['mixture']['n'])} images of the poisoned training set."
    return Story((*(story_of(method) or (applied,)), seen, *told, "The original file was only read."), ())


def audit_summary(record: Mapping[str, Any]) -> str | None:
    """What the defense has found in the model, in words; None if it looks for nothing."""
    return record["audit"]["summary"] if record["audit"] else None


def _sentences(record: Mapping[str, Any], place: str, images: str, found: tuple[str, ...]) -> tuple[str, ...]:
    epochs, guarded = record["config"].get("epochs"), guard_summary(record)
    structure = record["config"].get("structure", "conv-bn")
    form = "a linear map of the feature channels, the same at every place, and a batch norm"
    form = form if structure == "conv-bn" else f"one of the structure {structure}"
    for_epochs = f" for {count(epochs)} epoch{'' if epochs == 1 else 's'}" if epochs else ""
    return (
        "Every weight of the original network was frozen, and its file was only read.",
        f"One small layer, the polarizer, was inserted {place}: {form}.",
        f"Only this layer was trained{for_epochs}, on {images}; no image with the real trigger was used.",
        *found,
        *story_of(record["method"]),
        "The layer learned to block such perturbations and to let everything else pass, "
        "so that clean images keep their answer and a trigger loses its grip.",
        *(() if guarded is None else (guarded,)),
    )


def _stages(where: str, layer: str) -> tuple[Stage, ...]:
    polarizer, site = Stage("Polarizer", "new, trained", "new"), Stage(layer, "frozen", "frozen")
    return (
        Stage("Image", "in", "end"),
        Stage("Earlier layers", "frozen", "frozen"),
        *((polarizer, site) if where == "before" else (site, polarizer)),
        Stage("Later layers", "frozen", "frozen"),
        Stage("Class", "out", "end"),
    )
