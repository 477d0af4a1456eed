"""The result of ``purify``, with all that can be done with it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from html import escape
from os import PathLike
from pathlib import Path

from torch import nn

from neural_polarizer.api import Images
from neural_polarizer.cache import digest_tensors, key_of
from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses import Repaired
from neural_polarizer.errors import BadInputError
from neural_polarizer.exporting.export import TOLERANCE, Exported
from neural_polarizer.exporting.formats import FormatName
from neural_polarizer.files import (
    check_free,
    output_folder,
    read_json,
    sha256_of_file,
    user_path,
    write_json,
    write_text,
    writing,
)
from neural_polarizer.layer.folding.fold import Border, Folded
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.metrics import Metrics
from neural_polarizer.model_files.describe import record_of_model
from neural_polarizer.model_files.record import versions
from neural_polarizer.model_files.save import save_model, save_polarizer
from neural_polarizer.report.run.page import SCHEMA, render_run
from neural_polarizer.runs.inspect import exhibits
from neural_polarizer.runs.purification import RECORD, algorithm_of, settings_of, told_of
from neural_polarizer.runs.purify import POLARIZER, PURIFIED, REPORT


@dataclass(frozen=True, eq=False, kw_only=True)
class Purified(Repaired):
    """A purified classifier: ``model`` is a new module with the dtype, device, mode and flags of the caller's.

    It is neither compiled nor parallel. The whole can be pickled and copied. In a notebook it shows the report.

    Args:
        method: the method's name.
        n_clean: how many clean images it saw.
        num_classes: K.
        classes: their names.
        image_size: height and width of the clean images.
        clean_sha256: of the clean images.
        model_sha256: of the original's parameters and buffers.
    """

    method: str
    n_clean: int
    num_classes: int
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    clean_sha256: str
    model_sha256: str

    def __repr__(self) -> str:
        place = "" if self.site is None else f" at {self.site}"
        suspect = "" if self.suspect is None else f", suspect {self.suspect}"
        accuracy = (
            "" if self.clean_acc is None else "accuracy on clean images {:.3f} -> {:.3f}, ".format(*self.clean_acc)
        )
        count = len(self.notes)
        notes = f"; {count} warning{'' if count == 1 else 's'}" if count else ""
        return (
            f"Purified({self.method}{place}{suspect}, {accuracy}{self.figures['seconds']:.1f} s, {self.precision} on "
            f"{self.device}, seed {self.seed}{notes})"
        )

    def _repr_html_(self) -> str | None:
        """The report, for notebooks; None where jinja2, of the extra "report", is not installed."""
        try:
            page = self.report()
        except BadInputError:
            return None
        return f'<iframe srcdoc="{escape(page)}" style="width: 100%; height: 40em; border: 0"></iframe>'

    @property
    def precision(self) -> str:
        """What the method computed in: "fp32", "bf16", or "mixed" if its parts differ."""
        return self.defense.precision_used

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings of the method, by name, as JSON has them."""
        return settings_of(self.defense)

    @property
    def figures(self) -> Mapping[str, float]:
        """What was measured: seconds, accuracy on the clean images in [0, 1] and, if guarded, the dial's price."""
        found = {"seconds": sum(self.seconds.values())}
        if self.clean_acc is not None:
            found |= {"clean_acc_before": self.clean_acc[0], "clean_acc_after": self.clean_acc[1]}
        if self.guarded is not None:
            point = self.guarded.point
            found |= {"dial": point.dial, "expected_drop": point.drop, "stand_ins": point.stand_ins}
        return found

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """While the block runs, ``model`` computes what the original computes, for comparison.

        Raises:
            BadInputError: the method has inserted no layer that could be left out.
        """
        layers = [each for each in self.model.modules() if isinstance(each, PolarizedModule)]
        if not layers:
            raise BadInputError(
                f"{self.method} has changed the weights; compare with your own model, which is untouched"
            )
        try:
            for each in layers:
                each.enabled = False
            yield
        finally:
            for each in layers:
                each.enabled = True

    def fold(self, images: Images, *, border: Border = "exact") -> Folded:
        """``neural_polarizer.fold`` of this result."""
        from neural_polarizer.api.deploying import fold

        return fold(self, images, border=border)

    def export(
        self, path: str | PathLike[str], images: Images, *, to: FormatName | None = None, tolerance: float = TOLERANCE
    ) -> Exported:
        """``neural_polarizer.export`` of this result."""
        from neural_polarizer.api.deploying import export

        return export(self, path, images, to=to, tolerance=tolerance)

    def report(self) -> str:
        """The report as an HTML page that loads nothing.

        Raises:
            BadInputError: jinja2 is not installed.
        """
        return _rendered(self.record(), self)

    def record(self) -> dict[str, object]:
        """What ``run.json`` says: everything that was done and measured, but for test images, which nobody gave."""
        nothing = asdict(Metrics())
        model = record_of_model(self.model, self.num_classes, self.classes, self.image_size, self.site)
        return {
            "schema": SCHEMA,
            "run_id": self._identity,
            "method": self.method,
            **told_of(self),
            "before": nothing,
            "after": nothing,
            "der": None,
            "seconds": {**self.seconds, "total": self.figures["seconds"]},
            "surrogate": {},
            "model": {"path": None, **asdict(model)},
            "model_sha256": self.model_sha256,
            "data": {},
            "n_clean": self.n_clean,
            "clean_sha256": self.clean_sha256,
            "threats": [],
            "findings": [],
            "warnings": list(self.notes),
            "command": None,
        }

    @property
    def _identity(self) -> str:
        """A hash of all that the result depends on."""
        parts = {
            "model": self.model_sha256,
            "clean": self.clean_sha256,
            **algorithm_of(self.defense),
            "method": self.method,
            "seed": self.seed,
            "versions": versions(),
        }
        return key_of(parts)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the model, its layer, the record and, where jinja2 is installed, the report into ``folder``.

        ``neural_polarizer.load`` reads the model again, ``load_polarizer`` the layer.

        Raises:
            BadInputError: the folder cannot be written to, or holds another run, an attack, or files of these names.
            EnvironmentFaultError: a file cannot be written.
        """
        out = user_path(folder)
        names = () if _holds(out, self._identity) else (PURIFIED, POLARIZER, REPORT, RECORD)
        check_free(out, names)
        output_folder(out, remedy="choose another folder")
        with writing(out, names):
            self._write(out)

    def _write(self, out: Path) -> None:
        described = record_of_model(self.model, self.num_classes, self.classes, self.image_size, self.site)
        record = self.record()
        save_model(out / PURIFIED, self.model, described)
        written = [PURIFIED]
        if self.polarizer is not None:
            save_polarizer(out / POLARIZER, self.polarizer, described)
            written.append(POLARIZER)
        try:
            write_text(out / REPORT, _rendered(record, self))
            written.append(REPORT)
        except BadInputError:  # no jinja2: the record says it all
            (out / REPORT).unlink(missing_ok=True)
        write_json(out / RECORD, record | {"files": {name: sha256_of_file(out / name) for name in written}})


def purified_of(repaired: Repaired, original: nn.Module, clean: ImageSet, num_classes: int, method: str) -> Purified:
    """``repaired`` with what the caller's model, images and words add to it."""
    digest = hashlib.sha256()
    digest_tensors(digest, (*original.named_parameters(), *original.named_buffers()))
    fields = {name: getattr(repaired, name) for name in repaired.__dataclass_fields__}
    return Purified(
        **fields,
        method=method,
        n_clean=len(clean),
        num_classes=num_classes,
        classes=clean.classes,
        image_size=clean.image_size,
        clean_sha256=clean.sha256(),
        model_sha256=digest.hexdigest(),
    )


def _rendered(record: Mapping[str, object], purified: Purified) -> str:
    return render_run(json.loads(json.dumps(record)), exhibits(purified.audit))


def _holds(out: Path, identity: str) -> bool:
    """Whether the folder holds this very result; that of another run is refused."""
    held = [name for name in ("attack.json", RECORD) if (out / name).exists()]
    if held and not (held == [RECORD] and read_json(out / RECORD).get("run_id") == identity):
        raise BadInputError(f"{out}: holds {held[0]} of another run; choose another folder or remove that one")
    return bool(held)


def module_of(model: Purified | nn.Module) -> nn.Module:
    """``model`` itself, or the one that ``purify`` returned."""
    return model.model if isinstance(model, Purified) else model
