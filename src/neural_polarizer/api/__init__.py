"""The functions that users call: ``purify`` and what comes before and after it."""

from neural_polarizer.api.data import Classes as Classes
from neural_polarizer.api.data import Images as Images
from neural_polarizer.api.deploying import export as export
from neural_polarizer.api.deploying import fold as fold
from neural_polarizer.api.files import load as load
from neural_polarizer.api.files import load_polarizer as load_polarizer
from neural_polarizer.api.files import save as save
from neural_polarizer.api.measuring import audit as audit
from neural_polarizer.api.measuring import evaluate as evaluate
from neural_polarizer.api.measuring import sites as sites
from neural_polarizer.api.purified import Purified as Purified
from neural_polarizer.api.purifying import purify as purify
