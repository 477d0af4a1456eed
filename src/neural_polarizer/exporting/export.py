"""A model in the formats in which people deploy, read back and compared before it gets its name."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.errors import BadInputError, WrongUsageError, cause
from neural_polarizer.exporting.formats import FORMATS, Format, FormatName
from neural_polarizer.exporting.portable import Portable, portable_form
from neural_polarizer.files import atomic_path, read_json, write_json
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.forms import largest_gap

TOLERANCE = 1e-4  # of a logit in float32
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how it compares with the model that it was made from.

    Args:
        path: the file.
        beside: a second file with what the first cannot say about itself; None for formats with metadata of their own.
        layer: what became of the polarizer, in one line; None if the model had none.
        obstacle: why the original architecture does not take these weights; None if it does, or for a graph, which
            needs none.
        deviation: the largest absolute difference between the logits of the file and the model's.
        largest_logit: the largest absolute logit of the model on the same images.
        n_images: how many images that were.
    """

    path: Path
    beside: Path | None
    layer: str | None
    obstacle: str | None
    deviation: float
    largest_logit: float
    n_images: int


def format_of(path: Path, wanted: FormatName | None = None) -> FormatName:
    """The format of a file of that name."""
    if wanted is not None and path.suffix not in FORMATS[wanted].suffixes:
        endings = " or ".join(FORMATS[wanted].suffixes)
        raise WrongUsageError(f"{path}: a file of format {wanted} must end in {endings}, as its readers go by that")
    fitting: list[FormatName] = [name for name, kind in FORMATS.items() if path.suffix in kind.suffixes]
    if not fitting:
        known = ", ".join(suffix for kind in FORMATS.values() for suffix in kind.suffixes)
        raise WrongUsageError(f"{path}: its ending tells no format; choose one of {known}")
    return fitting[0]


def export_model(
    model: nn.Module,
    path: Path,
    name: FormatName,
    images: ImageSet,
    record: ModelRecord | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write ``model`` to ``path``, without its polarizer where the layers around it can do its work exactly.

    What was written is read back from disk, run, and compared with ``model`` on ``images``, the first of them alone
    and all in batches. Only then does it get its name; until then a file of that name stays as it is.

    Args:
        model: float pixels in [0, 1] to logits; left as it was. The file is in float32.
        path: the file.
        name: its format.
        images: to compare the logits on, at least one. A graph takes images of their size alone, any number at once.
        record: what is known about the model; None takes what it tells itself.
        tolerance: by how much a logit may differ.

    Raises:
        BadInputError: a package is missing, the network cannot be captured as a graph, or the file gives other logits.
        EnvironmentFaultError: the file cannot be written.
    """
    kind = FORMATS[name]
    kind.require()
    portable = portable_form(model, images, record)
    about = portable.description(inside=kind.is_graph)
    beside = None if kind.holds_metadata else _free_beside(path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(kind.encode(portable, about))
        deviation, largest = _checked(temporary, path, kind, portable, images, tolerance)
        if beside is not None:
            write_json(beside, about)
    return Exported(
        path=path,
        beside=beside,
        layer=portable.layer,
        obstacle=None if kind.is_graph else portable.obstacle,
        deviation=deviation,
        largest_logit=largest,
        n_images=len(images),
    )


def _free_beside(path: Path) -> Path:
    """Where the description goes; there may be that of an earlier export, and nothing else."""
    beside = path.with_name(f"{path.name}.json")
    if beside.exists():
        with suppress(BadInputError):
            if {"input", "output", "versions"} <= read_json(beside).keys():
                return beside
        raise BadInputError(f"{beside}: is there already, where the description would go; choose another name")
    return beside


def _checked(
    written: Path, path: Path, kind: Format, portable: Portable, images: ImageSet, tolerance: float
) -> tuple[float, float]:
    """(largest difference of the logits, largest logit) of what was written, which is to become ``path``.

    Refused where it cannot be read back, or gives other logits.
    """
    try:
        pixels = to_pixels(images.images)
        batches = (pixels[:1], *pixels.split(_BATCH))  # one image alone shows a graph of a fixed batch size
        deviation, largest = largest_gap(portable.reference, kind.reader(written, portable), batches)
    except Exception as error:  # torch and onnxruntime have kinds of their own
        why = cause(error, renamed=(str(written), str(path)))
        raise BadInputError(f"{path}: not kept, as it cannot be read back and run ({why})") from None
    if not deviation <= tolerance:  # NaN, too
        raise BadInputError(
            f"{path}: not kept, as its logits differ from the model's by {deviation:.2g} where the largest is "
            f"{largest:.3g}, and {tolerance:.2g} is allowed; try another format or a larger tolerance"
        )
    return deviation, largest
