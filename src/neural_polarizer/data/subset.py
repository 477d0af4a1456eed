"""The defender's clean images: a class-balanced choice, saved so that all defenses get the same one."""

from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from neural_polarizer.data.images import ImageSet, class_counts
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import read_json, write_json
from neural_polarizer.rng import stream

FORMAT = "neural-polarizer-index/1"


def clean_subset(images: ImageSet, n: int, *, seed: int) -> Int64[Tensor, " n"]:
    """Choose ``n`` images without replacement, as equally spread over the classes as their sizes allow.

    Every class gives ``n // K`` images or all that it has; what is then missing is taken one image a class
    at a time, in the order of the classes, from those that have more.

    Returns:
        Sorted indices into ``images``, int64 ``(n,)``; the same for the same labels and seed.

    Raises:
        BadInputError: ``n`` is below 1 or above the number of images.
    """
    if not 1 <= n <= len(images):
        raise BadInputError(f"{images.source}: a clean subset must hold 1..{len(images)} images, got {n}")
    generator = stream(seed, "clean-subset")
    chosen = []
    for label, quota in enumerate(_quotas(class_counts(images).tolist(), n)):
        members = (images.labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:quota].to(members.device)])
    return torch.cat(chosen).sort().values


def _quotas(counts: list[int], n: int) -> list[int]:
    quotas = [min(count, n // len(counts)) for count in counts]
    while (missing := n - sum(quotas)) > 0:
        for label in [label for label, count in enumerate(counts) if quotas[label] < count][:missing]:
            quotas[label] += 1
    return quotas


def write_index(path: Path, indices: Int64[Tensor, " n"], images: ImageSet, seed: int) -> None:
    """Save a choice of ``images`` as JSON, together with the hash of the data that it belongs to."""
    about = {"format": FORMAT, "source": images.source, "sha256": images.sha256(), "seed": seed}
    write_json(path, {**about, "indices": indices.tolist()})


def read_index(path: Path, images: ImageSet) -> Int64[Tensor, " n"]:
    """Read a choice that ``write_index`` saved.

    Raises:
        BadInputError: no such file, another format, made from other images, or indices that do not fit.
    """
    record = read_json(path)
    if record.get("format") != FORMAT:
        raise BadInputError(f"{path}: not an index file (format {record.get('format')!r}, expected {FORMAT!r})")
    if record.get("sha256") != images.sha256():
        raise BadInputError(
            f"{path}: was made from other images ({record.get('source')!r}) than {images.source!r}; "
            "read the same split at the same size, or choose a new subset"
        )
    indices = record.get("indices")
    if not isinstance(indices, list) or not all(type(i) is int and 0 <= i < len(images) for i in indices):
        raise BadInputError(f"{path}: its indices must be whole numbers in 0..{len(images) - 1}")
    if not indices or len(set(indices)) != len(indices):
        raise BadInputError(f"{path}: its indices must be present and must not repeat")
    return torch.tensor(indices, dtype=torch.int64)
