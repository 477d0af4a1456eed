"""The attacks, by name."""

from types import MappingProxyType

from neural_polarizer.attacks.badnets import BadNets as BadNets
from neural_polarizer.attacks.base import DataPoisoning as DataPoisoning
from neural_polarizer.attacks.blended import Blended as Blended

ATTACKS = MappingProxyType({"badnets": BadNets, "blended": Blended})
