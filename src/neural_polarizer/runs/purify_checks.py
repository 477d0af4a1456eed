"""Which purification a folder holds, and what to warn of beside its figures."""

import hashlib
import json
from pathlib import Path
from typing import Any

from neural_polarizer.data.duplicates import count_shared
from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Defense
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import read_json
from neural_polarizer.metrics import Metrics
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.model_files.record import versions
from neural_polarizer.runs.damage import set_damaged_aside
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.settings import told

RECORD = "run.json"
ATTACK_RECORD = "attack.json"


def settings_of(defense: Defense) -> dict[str, Any]:
    """The fields of the dataclass as JSON has them; text for what JSON has no form for."""
    fields: Any = defense
    found: dict[str, Any] = json.loads(json.dumps(told(fields), default=str))
    return found


def algorithm_of(defense: Defense) -> dict[str, Any]:
    """What ids know of a defense: its settings, and its revision unless that is the first."""
    return {"defense": settings_of(defense), **({} if defense.revision == 1 else {"revision": defense.revision})}


def check_no_layer(loaded: LoadedModel, defense: Defense) -> None:
    """One model holds one polarizer; its file could not tell two of them apart.

    Raises:
        BadInputError: ``defense`` would insert a second one.
    """
    if loaded.record.site is not None and defense.inserts:
        raise BadInputError(
            f"{loaded.path}: has a polarizer already, {loaded.record.site}; purify its folded model instead, which "
            f"polarizer purify --fold writes beside it"
        )


def run_id(
    loaded: LoadedModel,
    clean: ImageSet,
    defense: Defense,
    evidence: Evidence,
    mixture: ImageSet | None,
    method: str,
    seed: int,
) -> str:
    """A hash of all that the result depends on."""
    test, triggered = evidence.test, evidence.triggered
    record = loaded.record
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
        **algorithm_of(defense),
        "method": method,
        "seed": seed,
        "versions": versions(),
        **({} if mixture is None else {"mixture": mixture.sha256()}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finished(out: Path, identity: str) -> dict[str, Any] | None:
    """The record of this very run, if ``out`` holds it already; None if it holds none that is whole.

    A run whose files have been damaged since is set aside.

    Raises:
        BadInputError: it holds an attack or another run.
    """
    if (out / ATTACK_RECORD).exists():
        raise BadInputError(f"{out}: holds an attack, which would be mixed up with the result; choose another --out")
    if not (out / RECORD).exists():
        return None
    found = read_json(out / RECORD)
    if found.get("run_id") == identity:
        return None if set_damaged_aside(out / RECORD, found) else found
    raise BadInputError(
        f"{out}: holds another run (method {found.get('method')}, seed {found.get('seed')}); "
        "choose another --out or remove that folder"
    )


def check_mixture(defense: Defense, method: str, mixture: ImageSet | None) -> None:
    """Refuse poisoned training images for a defense that is not declared to see them, and the other way round.

    Raises:
        BadInputError: they do not go together.
    """
    wanted = getattr(defense, "data", "clean") == "mixture"
    if wanted and mixture is None:
        raise BadInputError(f"{method} with data=mixture needs poisoned training images: give them with --mixture")
    if mixture is not None and not wanted:
        raise BadInputError(f"{method} sees clean images only: leave the mixture out")


def remarks(
    method: str,
    defense: Defense,
    before: Metrics,
    clean: ImageSet,
    test: ImageSet | None,
    mixture: ImageSet | None,
) -> list[str]:
    """What a reader of the result must know."""
    found = []
    if mixture is not None:
        found.append(
            f"exception: {method} was given {len(mixture)} images of the poisoned training set ({mixture.source}), as "
            "in its publication; all other defenses see clean images only, so its figures do not compare with theirs"
        )
    elif getattr(defense, "data", None) == "clean":
        found.append(
            f"{method} was given clean images only; in its publication it sees poisoned training images (--mixture), "
            "without which there is little for it to find"
        )
    if before.acc is not None and before.acc < 0.5:
        found.append(
            f"the model classifies only {100 * before.acc:.1f} % of the clean test images correctly before anything "
            "was done: check --profile (normalisation) and the order of the classes"
        )
    shared = 0 if test is None else count_shared(clean, test)
    if shared > 0:
        found.append(f"{shared} of {len(clean)} clean images are test images, too, so ACC is better than it would be")
    return found
