"""Least stand-ins: a polarizer learned from the smallest perturbations that reach a class, whatever the trigger."""

from neural_polarizer.defenses.stand_ins.defense import LeastStandIns as LeastStandIns
