"""What clean images tell about a backdoor: no trigger and no triggered image is needed."""

from neural_polarizer.audit.finding import Audited, Verdict, audited
from neural_polarizer.audit.spectrum import Spectrum, spectrum
from neural_polarizer.audit.target import ChosenTarget, choose_target

__all__ = ["Audited", "ChosenTarget", "Spectrum", "Verdict", "audited", "choose_target", "spectrum"]
