"""What clean images alone tell about a backdoor: no trigger and no triggered image is needed."""

from neural_polarizer.audit.evidence import Evidence, collect
from neural_polarizer.audit.score import Score, score
from neural_polarizer.audit.spectrum import Spectrum, spectrum
from neural_polarizer.audit.target import ChosenTarget, choose_target

__all__ = ["ChosenTarget", "Evidence", "Score", "Spectrum", "choose_target", "collect", "score", "spectrum"]
