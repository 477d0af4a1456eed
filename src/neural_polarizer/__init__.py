"""Purify an image classifier that may carry a backdoor, with the evidence."""

from neural_polarizer.api import Purified as Purified
from neural_polarizer.api import evaluate as evaluate
from neural_polarizer.api import export as export
from neural_polarizer.api import fold as fold
from neural_polarizer.api import load as load
from neural_polarizer.api import purify as purify
from neural_polarizer.attacks import Attack as Attack
from neural_polarizer.attacks import BadNets as BadNets
from neural_polarizer.attacks import Blended as Blended
from neural_polarizer.data.images import ImageSet as ImageSet
from neural_polarizer.data.poison import TriggeredSet as TriggeredSet
from neural_polarizer.data.sources import read_images as read_images
from neural_polarizer.defenses.base import Defense as Defense
from neural_polarizer.defenses.base import Run as Run
from neural_polarizer.defenses.npd import NeuralPolarizer as NeuralPolarizer
from neural_polarizer.defenses.result import Audit as Audit
from neural_polarizer.defenses.result import Exhibit as Exhibit
from neural_polarizer.defenses.result import Outcome as Outcome
from neural_polarizer.errors import BadInputError as BadInputError
from neural_polarizer.errors import EnvironmentFaultError as EnvironmentFaultError
from neural_polarizer.errors import NeuralPolarizerError as NeuralPolarizerError
from neural_polarizer.errors import WrongUsageError as WrongUsageError
from neural_polarizer.exporting import Exported as Exported
from neural_polarizer.folding import Folded as Folded
from neural_polarizer.metrics import Metrics as Metrics
from neural_polarizer.metrics import defense_effectiveness as defense_effectiveness
from neural_polarizer.models.normalize import Normalized as Normalized
from neural_polarizer.polarizer import Polarizer as Polarizer
from neural_polarizer.train import Schedule as Schedule

__version__ = "0.2.0"
