"""The defenses, by name: NPD and its family, and the baselines they are measured with."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import MappingProxyType
from typing import Any

from neural_polarizer.defenses.anp import ANP as ANP
from neural_polarizer.defenses.base import Defense as Defense
from neural_polarizer.defenses.base import Repaired as Repaired
from neural_polarizer.defenses.base import Run as Run
from neural_polarizer.defenses.clp import CLP as CLP
from neural_polarizer.defenses.cnpd import CNPD as CNPD
from neural_polarizer.defenses.entropy_pruning import EntropyPruning as EntropyPruning
from neural_polarizer.defenses.fine_pruning import FinePruning as FinePruning
from neural_polarizer.defenses.fine_tuning import FineTuning as FineTuning
from neural_polarizer.defenses.fst import FST as FST
from neural_polarizer.defenses.ft_sam import FTSAM as FTSAM
from neural_polarizer.defenses.i_bau import IBAU as IBAU
from neural_polarizer.defenses.nad import NAD as NAD
from neural_polarizer.defenses.neural_cleanse import NeuralCleanse as NeuralCleanse
from neural_polarizer.defenses.npd import NPD as NPD
from neural_polarizer.defenses.npd.presets import AIMS
from neural_polarizer.defenses.result import Audit as Audit
from neural_polarizer.defenses.result import Exhibit as Exhibit
from neural_polarizer.defenses.result import Outcome as Outcome
from neural_polarizer.defenses.rnp import RNP as RNP
from neural_polarizer.defenses.sau import SAU as SAU
from neural_polarizer.defenses.stand_ins import LeastStandIns as LeastStandIns
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import class_named

DEFAULT = "npd-ls"
"""The method of ``purify``."""

DEFENSES: Mapping[str, type[Defense]] = MappingProxyType(
    {
        "npd-ls": LeastStandIns,
        "npd": NPD,
        "npd-tp": NPD,
        "npd-tu": NPD,
        "npd-up": NPD,
        "npd-uu": NPD,
        "ft": FineTuning,
        "fp": FinePruning,
        "nad": NAD,
        "nc": NeuralCleanse,
        "anp": ANP,
        "i-bau": IBAU,
        "ep": EntropyPruning,
        "ft-sam": FTSAM,
        "fst": FST,
        "clp": CLP,
        "rnp": RNP,
        "sau": SAU,
        "cnpd": CNPD,
    }
)
"""All methods.  The presets of the NPD family are in ``npd.presets``; what else belongs to a method is in its class."""


def defense_class(name: str) -> type[Defense]:
    """The defense of that name, or the class at a dotted path such as ``my_lab.mine:Mine``.

    Raises:
        BadInputError: there is no such defense, or what the path names is not one.
    """
    found: Any = class_named("method", name, DEFENSES)
    if isinstance(found, type) and is_dataclass(found) and issubclass(found, Defense):
        return found
    raise BadInputError(
        f"{name!r} is not a defense: a dataclass derived from neural_polarizer.Defense (docs/how-to/add-a-method.md)"
    )


def title_of(name: str) -> str:
    """The name of a method in tables: that of its class; members of the NPD family go by their own names."""
    return name.upper() if name in AIMS else DEFENSES[name].title


def story_of(name: str) -> tuple[str, ...]:
    """What a method does to a model, in sentences; nothing for one that is not ours."""
    return tuple(each.format(aim=AIMS.get(name)) for each in DEFENSES[name].story) if name in DEFENSES else ()
