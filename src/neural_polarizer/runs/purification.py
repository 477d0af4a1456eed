"""What is to be purified and with what, whether that goes together, and which run it is."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from neural_polarizer.cache import key_of, set_damaged_aside, whole_record
from neural_polarizer.data.images import ImageSet, count_shared
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.defenses.base import Defense, Repaired
from neural_polarizer.errors import BadInputError, refusing
from neural_polarizer.metrics import Metrics
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.model_files.record import versions
from neural_polarizer.report.run.page import render_run
from neural_polarizer.report.run.verdict_files import run_files
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.settings import told

RECORD = "run.json"
ATTACK_RECORD = "attack.json"


def settings_of(defense: Defense) -> dict[str, Any]:
    """The fields of the dataclass as JSON has them; text for what JSON has no form for."""
    return json.loads(json.dumps(told(defense), default=str))


def algorithm_of(defense: Defense) -> dict[str, Any]:
    """What ids know of a defense: its settings, and its revision unless that is the first."""
    return {"defense": settings_of(defense), **({} if defense.revision == 1 else {"revision": defense.revision})}


def told_of(done: Repaired) -> dict[str, Any]:
    """What the record of a run says of the result itself, whoever asked for it."""
    audit, guarded = done.audit, done.guarded
    return {
        "site": done.site,
        "site_reason": done.site_reason,
        "seed": done.seed,
        "suspect": done.suspect,
        "revision": done.defense.revision,
        "config": settings_of(done.defense) | ({} if done.site is None else {"site": done.site}),
        "clean_acc": dict(zip(("before", "after"), done.clean_acc or (None, None), strict=True)),
        "history": [dict(each) for each in done.history],
        "guarded": None if guarded is None else asdict(guarded),
        "audit": None if audit is None else {"summary": audit.summary, "by_class": dict(audit.by_class)},
        "device": done.device,
        "precision": done.defense.precision_used,
        "versions": versions(),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Purification:
    """One run: the model, the images, the defense and the seed."""

    loaded: LoadedModel  # the suspicious model
    pool: ImageSet  # clean images; the defender's are ``n_clean`` of them (all if None), balanced over the classes
    defense: Defense  # its settings
    method: str  # the defense's name, for the record
    n_clean: int | None  # number of clean images to use
    seed: int  # fixes the choice of the images, the order of the batches and the random starts
    evidence: Evidence  # test data, only for the figures before and after
    sources: Mapping[str, str | int | None]  # data specs, for the record
    # Poisoned training images, for a defense whose setting ``data`` is "mixture": it gets these instead of the clean
    # ones, and the record says so.
    mixture: ImageSet | None = None
    force: bool = False  # go on where the model does no better than guessing on the clean images, with a warning

    def check(self) -> None:
        """Refuse what does not go together.

        A file could not tell a second layer from the first one, and only a defense that is declared to see poisoned
        images may be given some.
        """
        wanted = self.defense.sees_mixture
        if wanted and self.mixture is None:
            raise BadInputError(
                f"{self.method} with data=mixture needs poisoned training images: give them with --mixture"
            )
        if self.mixture is not None and not wanted:
            raise BadInputError(f"{self.method} sees clean images only: leave the mixture out")
        if self.loaded.record.site is not None and self.defense.inserts:
            raise BadInputError(
                f"{self.loaded.path}: has a polarizer already, {self.loaded.record.site}; purify its folded model "
                "instead, which polarizer purify --fold writes beside it"
            )

    def identity(self, clean: ImageSet) -> str:
        """A hash of all that the result depends on; ``clean`` are the defender's images."""
        test, triggered = self.evidence.test, self.evidence.triggered
        loaded, record = self.loaded, self.loaded.record
        form = {
            "weights": loaded.weights,
            "definition": record.definition,
            "output": record.output,
            "grey": record.grey or None,
        }
        parts = {
            "model": [loaded.sha256, record.mean, record.std, *[each for each in form.items() if each[1] is not None]],
            "clean": clean.sha256(),
            "test": None if test is None else test.sha256(),
            "triggered": None if triggered is None else triggered.images.sha256(),
            **algorithm_of(self.defense),
            "method": self.method,
            "seed": self.seed,
            "versions": versions(),
            **({} if self.mixture is None else {"mixture": self.mixture.sha256()}),
        }
        return key_of(parts)

    def remarks(self, before: Metrics, clean: ImageSet) -> list[str]:
        """What a reader of the result must know."""
        found = []
        if self.mixture is not None:
            found.append(
                f"exception: {self.method} was given {len(self.mixture)} images of the poisoned training set "
                f"({self.mixture.source}), as in its publication; all other defenses see clean images only, so its "
                "figures do not compare with theirs"
            )
        elif self.defense.sees_mixture is False:
            found.append(
                f"{self.method} was given clean images only; in its publication it sees poisoned training images "
                "(--mixture), without which there is little for it to find"
            )
        if before.acc is not None and before.acc < 0.5:
            found.append(
                f"the model classifies only {100 * before.acc:.1f} % of the clean test images correctly before "
                "anything was done: check --profile (normalisation) and the order of the classes"
            )
        shared = 0 if self.evidence.test is None else count_shared(clean, self.evidence.test)
        if shared > 0:
            found.append(
                f"{shared} of {len(clean)} clean images are test images, too, so ACC is better than it would be"
            )
        return found


def chosen_images(pool: ImageSet, n_clean: int | None, seed: int) -> tuple[Int64[Tensor, " n"], ImageSet]:
    """The defender's images, and their places in the pool: ``n_clean``, balanced over the classes, or all if None."""
    rows = torch.arange(len(pool)) if n_clean is None else clean_subset(pool, n_clean, seed=seed)
    return rows, pool.select(rows)


def finished(out: Path, identity: str, written: Collection[str]) -> dict[str, Any] | None:
    """The record of this very run, if ``out`` holds it already; None if it holds none that is whole.

    A run whose record or files ``written`` have been damaged since is set aside; an attack or another run is refused,
    and so is a record that is not as this version writes it.
    """
    if (out / ATTACK_RECORD).exists():
        raise BadInputError(f"{out}: holds an attack, which would be mixed up with the result; choose another --out")
    if not (out / RECORD).exists():
        return None
    found = whole_record(out / RECORD, written)
    if found is None:
        return None
    if found.get("run_id") != identity:
        raise BadInputError(
            f"{out}: holds another run (method {found.get('method')}, seed {found.get('seed')}); "
            "choose another --out or remove that folder"
        )
    if set_damaged_aside(out / RECORD, found, written):
        return None
    said = f"{out / RECORD}: is damaged, or of another version"
    with refusing(said, Exception, then="; choose another --out or remove that folder"):  # it may hold anything
        _check_shown(found)
    return found


def _check_shown(record: Mapping[str, Any]) -> None:
    """Raise whatever a record raises that lacks what is shown of a run or reckoned with."""
    render_run(record, ())
    run_files(record)
    said = (*record["warnings"], *record.get("threats", ()), *record["findings"])
    " ".join((*said, record.get("fold", {"remark": ""})["remark"]))
    if (record["test_sha256"] is None) != (record["after"]["acc"] is None):
        raise ValueError("'acc'")
