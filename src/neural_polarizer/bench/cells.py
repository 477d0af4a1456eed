"""The cells of the benchmark: frozen descriptions of all that one record depends on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from neural_polarizer.attacks import Attack, name_of
from neural_polarizer.bench.given import GivenVictim
from neural_polarizer.cache import key_of
from neural_polarizer.defenses import Defense
from neural_polarizer.report.bench.results import Label
from neural_polarizer.runs.attack import Victim
from neural_polarizer.runs.purification import algorithm_of
from neural_polarizer.settings import told

SCHEMA = 1
_LENGTH = 20


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What all cells have in common: an id that hashes ``kind`` and ``request``, and the victim that they need."""

    kind: str

    @property
    def request(self) -> dict[str, Any]:
        """All that the result depends on, as JSON."""
        raise NotImplementedError

    @property
    def needs(self) -> "VictimCell | GivenCell | None":
        """The victim that must be there first."""
        return None

    @cached_property
    def id(self) -> str:
        """The cell's name: a hash of all that its result depends on."""
        return key_of({"schema": SCHEMA, "kind": self.kind, **self.request})[:_LENGTH]


@dataclass(frozen=True, kw_only=True)
class VictimCell(Cell):
    """A backdoored model."""

    data: str  # name of the data set
    images: int | None  # use only so many training images; None: all
    attack: Attack  # its settings
    victim: Victim  # the network and how it is trained
    init: GivenVictim | None = None  # the published network that the backdoor is planted into; None: random weights
    kind: str = "victim"

    @cached_property
    def request(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "images": self.images,
            "attack": {"name": name_of(type(self.attack)), **told(self.attack)},
            "victim": told(self.victim),
            **({} if self.init is None else {"init": _told_of(self.init)}),
        }


@dataclass(frozen=True, kw_only=True)
class GivenCell(Cell):
    """A model that somebody has published, with a backdoor or without, as the manifest tells of it."""

    given: GivenVictim
    kind: str = "given"

    images: ClassVar[None] = None
    """All training images are used."""

    @property
    def data(self) -> str:
        return self.given.data

    @cached_property
    def request(self) -> dict[str, Any]:
        return _told_of(self.given)


def _told_of(given: GivenVictim) -> dict[str, Any]:
    return {
        "data": given.data,
        "network": given.network,
        "profile": given.profile,
        "trigger": None if given.trigger is None else told(given.trigger),
        "sha256": dict(given.hashes),
    }


@dataclass(frozen=True, kw_only=True)
class PurificationCell(Cell):
    """A victim after a defense; with another ``kind``, an analysis of the two."""

    victim: VictimCell | GivenCell  # what is purified
    method: str  # the defense's name
    defense: Defense  # its settings
    n_clean: int  # number of clean images; 0: 5 % of the training images, the same number for each class
    seed: int  # fixes the clean images and the run
    kind: str = "purification"  # "purification", or the analysis that is made of it

    @property
    def needs(self) -> VictimCell | GivenCell:
        return self.victim

    @cached_property
    def request(self) -> dict[str, Any]:
        return {
            "victim": self.victim.id,
            "method": self.method,
            **algorithm_of(self.defense),
            "n_clean": self.n_clean,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class LemmaCell(Cell):
    """The numerical check of Lemma 1 with samples of a seed, which needs no images."""

    seed: int
    kind: str = "lemma1"

    @property
    def request(self) -> dict[str, Any]:
        return {"seed": self.seed}


@dataclass(frozen=True)
class Planned:
    """A cell at its place in a suite."""

    cell: Cell  # what is computed
    labels: Mapping[str, Label]  # its values on the suite's axes
