"""What was done to the model, in a handful of sentences, and where the new layer sits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neural_polarizer.defenses import DEFENSES, story_of
from neural_polarizer.report.run.audit import audit_summary
from neural_polarizer.report.run.guard import guard_summary
from neural_polarizer.report.values import count, table


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
    method = str(record.get("method") or "npd")
    if method not in DEFENSES or not hasattr(DEFENSES[method], "site"):  # the class; ``inserts`` is for its instances
        return Story((*_told(record, method), "The original file was only read."), ())
    site = str(record.get("site") or "")
    where, _, layer = site.partition(":")
    if not layer:
        where, layer = "at", site
    return Story(_sentences(record, where, layer, story_of(method)), _stages(where, layer))


def _told(record: Mapping[str, Any], method: str) -> tuple[str, ...]:
    """What a method without a new layer did, what it saw, and what it found."""
    applied = f"The defense {method} was applied to a copy of the model, with the settings listed below."
    mixture, found = table(record, "mixture"), audit_summary(record)
    if mixture:
        seen = f"It saw {count(mixture.get('n')) or 'some'} images of the poisoned training set."
    else:
        seen = f"It saw {_images(record)} from the defender; no image with the real trigger was used."
    return (*(story_of(method) or (applied,)), seen, *(() if found is None else (found,)))


def _images(record: Mapping[str, Any]) -> str:
    images = count(record.get("n_clean"))
    return f"{images} clean images" if images else "a few clean images"


def _sentences(record: Mapping[str, Any], where: str, layer: str, told: tuple[str, ...]) -> tuple[str, ...]:
    epochs, found = count(table(record, "config").get("epochs")), audit_summary(record)
    for_epochs = f" for {epochs} epoch{'' if epochs == '1' else 's'}" if epochs else ""
    guarded = guard_summary(record)
    return (
        "Every weight of the original network was frozen, and its file was only read.",
        f"One small layer, the polarizer, was inserted {where} {layer or 'the chosen layer'}: "
        "a linear map of the feature channels, the same at every place, and a batch norm.",
        f"Only this layer was trained{for_epochs}, on {_images(record)} from the defender; "
        "no image with the real trigger was used.",
        *(() if found is None else (found,)),
        *told,
        "The layer learned to block such perturbations and to let everything else pass, "
        "so that clean images keep their answer and a trigger loses its grip.",
        *(() if guarded is None else (guarded,)),
    )


def _stages(where: str, layer: str) -> tuple[Stage, ...]:
    polarizer = Stage("Polarizer", "new, trained", "new")
    site = Stage(layer or "Chosen layer", "frozen", "frozen")
    middle = (polarizer, site) if where == "before" else (site, polarizer)
    return (
        Stage("Image", "in", "end"),
        Stage("Earlier layers", "frozen", "frozen"),
        *middle,
        Stage("Later layers", "frozen", "frozen"),
        Stage("Class", "out", "end"),
    )
