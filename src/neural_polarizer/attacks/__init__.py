"""The attacks, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from neural_polarizer.attacks.adap import AdapBlend as AdapBlend
from neural_polarizer.attacks.adap import AdapPatch as AdapPatch
from neural_polarizer.attacks.badnets import BadNets as BadNets
from neural_polarizer.attacks.base import Attack as Attack
from neural_polarizer.attacks.base import LearnedTrigger as LearnedTrigger
from neural_polarizer.attacks.base import Workshop as Workshop
from neural_polarizer.attacks.blended import Blended as Blended
from neural_polarizer.attacks.bpp import Bpp as Bpp
from neural_polarizer.attacks.discreet import Discreet as Discreet
from neural_polarizer.attacks.evasive import Evasive as Evasive
from neural_polarizer.attacks.frequency import CTRL as CTRL
from neural_polarizer.attacks.frequency import FTrojan as FTrojan
from neural_polarizer.attacks.grond import Grond as Grond
from neural_polarizer.attacks.input_aware import InputAware as InputAware
from neural_polarizer.attacks.lc import LC as LC
from neural_polarizer.attacks.lf import LF as LF
from neural_polarizer.attacks.recipes import implant as implant
from neural_polarizer.attacks.sig import SIG as SIG
from neural_polarizer.attacks.ssba import SSBA as SSBA
from neural_polarizer.attacks.trojan import Trojan as Trojan
from neural_polarizer.attacks.wanet import WaNet as WaNet
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import class_named

ATTACKS: Mapping[str, type[Attack]] = MappingProxyType(
    {
        "badnets": BadNets,
        "blended": Blended,
        "input-aware": InputAware,
        "lf": LF,
        "ssba": SSBA,
        "trojan": Trojan,
        "wanet": WaNet,
        "sig": SIG,
        "lc": LC,
        "bpp": Bpp,
        "ftrojan": FTrojan,
        "ctrl": CTRL,
        "adap-blend": AdapBlend,
        "adap-patch": AdapPatch,
        "grond": Grond,
        "evasive": Evasive,
        "discreet": Discreet,
    }
)


def attack_class(name: str) -> type[Attack]:
    """The attack of that name, or the class at a dotted path such as ``my_lab.ghost:Ghost``."""
    found = class_named("attack", name, ATTACKS)
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise BadInputError(f"{name!r} is not a subclass of neural_polarizer.attacks.Attack")
    return found


def name_of(kind: type[Attack]) -> str:
    """The name under which ``attack_class`` finds it."""
    names = [name for name, known in ATTACKS.items() if kind is known]
    return names[0] if names else f"{kind.__module__}:{kind.__qualname__}"
