"""What the paper shows beside its tables: where networks look, how near perturbations come to triggers, Lemma 1."""

from neural_polarizer.analysis.distances import PerturbationStudy as PerturbationStudy
from neural_polarizer.analysis.distances import Search as Search
from neural_polarizer.analysis.distances import study_perturbations as study_perturbations
from neural_polarizer.analysis.gradcam import CamComparison as CamComparison
from neural_polarizer.analysis.gradcam import compare_cams as compare_cams
from neural_polarizer.analysis.lemma1 import Lemma1 as Lemma1
from neural_polarizer.analysis.lemma1 import check_lemma1 as check_lemma1
