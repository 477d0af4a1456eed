"""The settings of the NPD family, with their meaning and their checks."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from neural_polarizer.defenses.schedule import cosine
from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.polarizer import Structure
from neural_polarizer.layer.structures import WITHOUT_NORM
from neural_polarizer.losses import BceTerms, LossForm
from neural_polarizer.perturb import StepRule
from neural_polarizer.settings import check_literals

Target = int | Literal["next"] | None
"""A class, "next" for ``(y + 1) mod K``, or None: the runner-up class of each image (eq. 4)."""


@dataclass(frozen=True, kw_only=True)
class NPDSettings:
    """How to learn the polarizer; the defaults are the shipped preset of ``npd`` (docs/research/defaults.md).

    Args:
        perturbation: "sample" gives each image its own, "universal" one to each batch (TU, UU).
        goal: "targeted" descends towards a class (eqs. 8, 10), "untargeted" away from the label (eq. 7).
        target: the attacker's class if known (TP, TU), "next" for ``(y + 1) mod K``, or None: the runner-up class
            of each clean image under the current polarized model (eq. 4).
        site: ``before:NAME`` or ``after:NAME``; None takes ``layer.sites.choose_site``.
        structure: what the layer is made of (``structures``): "conv-bn" is the paper's; "conv-bn-x2", "linear", "osad"
            and "osdn" are the others of its Table 13; "linear-light", "conv" and "mlp" are of the authors' code.
        init: "calibrated" starts as the exact identity with the clean images' statistics and needs no warm-up;
            "default" is the reference's plain batch norm with a warm-up.
        epochs: T, outer passes over the clean images; None takes as many as give ``min_steps`` steps, but at least
            ``min_epochs`` and at most ``max_epochs``.
        min_steps: see epochs.
        min_epochs: see epochs.
        max_epochs: see epochs.
        warmup_epochs: T0, passes with the benign loss only ("default" only).
        warmup_lr: learning rate of the warm-up's plain SGD.
        batch_size: clean images a step.
        lr: of the outer SGD.
        lr_policy: "constant", or "cosine" to zero over all steps.
        momentum: of the outer SGD.
        weight_decay: of the outer SGD.
        max_gradient: a longer gradient of the outer loss is shortened to this length; None: never.
        small_features: the standard deviation of the layer's input below which gamma and beta of a calibrated layer
            learn more slowly (``schedule.feature_units_rate``).
        norm: of the perturbation, "l2" or "linf".
        radii: rho in pixel units of [0, 1]; with several, the samples of a batch (universal: the batches) take them
            in turn.
        step_size: alpha of the inner steps, in pixel units.
        steps: number of inner steps.
        step_rule: "sign", or "gradient" for normalised gradient steps of the same length.
        early_stop: end the inner steps once more than this share of a batch is classified as its target; None: never.
        benign_weight: lambda_1, of L_bn.
        asr_weight: lambda_2, of L_asr; where this and the next are 0, nothing is perturbed.
        bce_weight: lambda_3, of L_bce.
        bce_terms: of L_bce: "both", or only "true-class" (L_bce1) or "runner-up" (L_bce2) (paper Table 3).
        loss_form: "stable", or "clamped" as in the reference code.
        bce_label: label of L_bce1: the "true" one (paper) or the "predicted" one (reference code).
        bn_outer: mode of the polarizer's batch norm in the outer step: "eval", or "train_clean_stats" (batch
            statistics; running ones follow only the clean images).
        precision: "fp32", or "bf16" autocast (losses and projection stay in float32).
        compile: use torch.compile (docs/research/defaults.md).

    Raises:
        BadInputError: a setting is out of its range.
    """

    perturbation: Literal["sample", "universal"] = "sample"
    goal: Literal["targeted", "untargeted"] = "targeted"
    target: Target = None
    site: str | None = None
    structure: Structure = "conv-bn"
    init: Literal["calibrated", "default"] = "calibrated"
    epochs: int | None = None
    min_steps: int = 200
    min_epochs: int = 10
    max_epochs: int = 50
    warmup_epochs: int = 5
    warmup_lr: float = 1e-4
    batch_size: int = 64
    lr: float = 0.02
    lr_policy: Literal["constant", "cosine"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_gradient: float | None = 5.0
    small_features: float = 0.1
    norm: Literal["l2", "linf"] = "l2"
    radii: tuple[float, ...] = (3.0,)
    step_size: float = 0.1
    steps: int = 2
    step_rule: StepRule = "gradient"
    early_stop: float | None = None
    benign_weight: float = 1.0
    asr_weight: float = 0.1
    bce_weight: float = 0.05
    bce_terms: BceTerms = "both"
    loss_form: LossForm = "stable"
    bce_label: Literal["true", "predicted"] = "true"
    bn_outer: Literal["eval", "train_clean_stats"] = "eval"
    precision: Precision = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_literals(self)
        counts = (self.epochs or 0, self.min_steps, self.min_epochs, self.max_epochs, self.warmup_epochs, self.steps)
        if min(counts) < 0 or self.batch_size < 1:
            raise BadInputError("epochs and steps must not be negative, and the batch size at least 1")
        if not self.radii or not all(math.isfinite(radius) and radius >= 0 for radius in self.radii):
            raise BadInputError(f"radii must be finite and not negative, got {self.radii}")
        rates = {"lr": self.lr, "warm-up lr": self.warmup_lr, "step size": self.step_size}
        rates |= {
            "small features": self.small_features,
            "longest gradient": 1.0 if self.max_gradient is None else self.max_gradient,
        }
        largest = torch.finfo(torch.float32).max
        for name, value in rates.items():
            if not 0 < value <= largest:
                raise BadInputError(f"{name} must be positive and a number that float32 has, got {value}")
        weights = (self.benign_weight, self.asr_weight, self.bce_weight, self.weight_decay)
        if not all(0 <= weight <= largest for weight in weights):
            raise BadInputError(f"weights must not be negative and numbers that float32 has, got {weights}")
        if not 0 <= self.momentum < 1:
            raise BadInputError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.early_stop is not None and not 0 <= self.early_stop <= 1:
            raise BadInputError(f"early stop is a share of a batch in [0, 1], got {self.early_stop}")
        if self.goal == "untargeted" and self.target is not None:
            raise BadInputError("an untargeted perturbation has no target class; leave target out")
        if self.bn_outer == "train_clean_stats" and self.structure in WITHOUT_NORM:
            raise BadInputError(f"structure {self.structure} has no batch norm to train with; leave bn_outer at eval")

    @property
    def adversarial(self) -> bool:
        """Whether perturbed images have a part in the loss."""
        return self.asr_weight != 0 or self.bce_weight != 0

    def epochs_of(self, steps: int) -> int:
        """T, where an epoch has ``steps`` steps."""
        if self.epochs is not None:
            return self.epochs
        return min(self.max_epochs, max(self.min_epochs, math.ceil(self.min_steps / steps)))

    def rate(self, done: int, total: int) -> float:
        """The learning rate of the outer step after ``done`` of ``total`` ones."""
        return self.lr * (cosine(done, total) if self.lr_policy == "cosine" else 1.0)

    def radius(self, count: int, done: int) -> float | Float[Tensor, " n"]:
        """Rho for ``count`` images after ``done`` outer steps: one for all, or one for each of them."""
        if self.perturbation == "universal" or len(self.radii) == 1:
            return self.radii[done % len(self.radii)]
        return torch.tensor(self.radii).repeat(math.ceil(count / len(self.radii)))[:count]
