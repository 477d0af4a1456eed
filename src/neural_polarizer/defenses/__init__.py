"""The defenses: NPD and its family, and the baselines they are measured with."""

from neural_polarizer.defenses.anp import ANP as ANP
from neural_polarizer.defenses.entropy_pruning import EntropyPruning as EntropyPruning
from neural_polarizer.defenses.fine_pruning import FinePruning as FinePruning
from neural_polarizer.defenses.fine_tuning import FineTuning as FineTuning
from neural_polarizer.defenses.i_bau import IBAU as IBAU
from neural_polarizer.defenses.nad import NAD as NAD
from neural_polarizer.defenses.neural_cleanse import NeuralCleanse as NeuralCleanse
from neural_polarizer.defenses.neural_polarizer import NeuralPolarizer as NeuralPolarizer
