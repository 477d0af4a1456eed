"""The functions that users call: ``purify`` and what comes before and after it."""

from neural_polarizer.api.data import Classes as Classes
from neural_polarizer.api.data import Images as Images
from neural_polarizer.api.functions import audit as audit
from neural_polarizer.api.functions import evaluate as evaluate
from neural_polarizer.api.functions import export as export
from neural_polarizer.api.functions import fold as fold
from neural_polarizer.api.functions import load as load
from neural_polarizer.api.functions import load_polarizer as load_polarizer
from neural_polarizer.api.functions import purify as purify
from neural_polarizer.api.functions import save as save
from neural_polarizer.api.functions import sites as sites
from neural_polarizer.api.purified import Purified as Purified
