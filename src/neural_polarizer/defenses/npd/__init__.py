"""The paper's method: Alg. 1 (NPD) and its variants.  ``algorithm`` is to be read beside the paper."""

from neural_polarizer.defenses.npd.defense import NPD as NPD
