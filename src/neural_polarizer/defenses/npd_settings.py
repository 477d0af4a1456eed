"""The settings of the NPD family, with their meaning and their checks."""

import math
from dataclasses import dataclass
from typing import Literal

from neural_polarizer.errors import BadInputError
from neural_polarizer.losses import BceTerms, LossForm
from neural_polarizer.perturb import StepRule
from neural_polarizer.polarizer import Structure
from neural_polarizer.settings import check_literals
from neural_polarizer.structures import WITHOUT_NORM

MIN_STEPS, MIN_EPOCHS, MAX_EPOCHS = 200, 10, 50
"""What the number of epochs is chosen by."""


@dataclass(frozen=True, kw_only=True)
class NeuralPolarizerSettings:
    """How to learn the polarizer; the defaults are those of docs/defaults.md (spec 3.5 and 3.6 have the paper's).

    Args:
        perturbation: "sample" gives each image its own, "universal" one to each batch (TU, UU).
        goal: "targeted" descends towards a class (eqs. 8, 10), "untargeted" away from the label (eq. 7).
        target: the attacker's class if known (TP, TU), "next" for ``(y + 1) mod K``, or None: the runner-up class
            of each clean image under the current polarized model (eq. 4), or what the next two settings lead to.
        suspect: where no target is given, look for a class that is suspiciously easy to reach (``suspects``); if one
            stands out, perturbations aim at it, and those of pixels in a batch are one, as if it were the trigger.
        feature_share: the share of each batch that is perturbed at what enters the layer instead of in pixels (our
            own, docs/performance.md); towards the target or suspect, otherwise towards the class that is easiest to
            reach there. Where ``suspect`` finds none, all of each batch, unless this is 0; nothing where smooth
            perturbations of pixels show it more clearly.
        feature_radius: of these perturbations in L2, in units of each image's feature norm.
        feature_steps: number of their normalised gradient steps.
        feature_common: share of them that images with the same target have in common; the others have their own.
            Universal ones are all common.
        site: ``before:NAME`` or ``after:NAME``; None takes ``sites.choose_site``.
        structure: what the layer is made of (``structures``): "conv-bn" is the paper's; "conv-bn-x2", "linear", "osad"
            and "osdn" are the others of its Table 13; "linear-light", "conv" and "mlp" are of the authors' code.
        init: "calibrated" starts as the exact identity with the clean images' statistics and needs no warm-up;
            "default" is the reference's plain batch norm with a warm-up.
        epochs: T, outer passes over the clean images; None takes as many as give MIN_STEPS steps, but at least
            MIN_EPOCHS and at most MAX_EPOCHS.
        warmup_epochs: T0, passes with the benign loss alone ("default" only).
        warmup_lr: learning rate of the warm-up's plain SGD.
        batch_size: clean images a step.
        lr: of the outer SGD.
        lr_policy: "constant", or "cosine" to zero over all steps.
        momentum: of the outer SGD.
        weight_decay: of the outer SGD.
        norm: of the perturbation, "l2" or "linf".
        radii: rho in pixel units of [0, 1]; with several, the samples of a batch (universal: the batches) take them
            in turn.
        shared_radius: rho of a perturbation that images share (universal, or towards the suspect); None: as radii.
        step_size: alpha of the inner steps, in pixel units.
        steps: number of inner steps.
        shared_steps: those of a perturbation that images share; None: as steps.
        step_rule: "sign", or "gradient" for normalised gradient steps of the same length.
        early_stop: end the inner steps once more than this share of a batch is classified as its target; None: never.
        benign_weight: lambda_1, of L_bn.
        asr_weight: lambda_2, of L_asr; where this and the next are 0, nothing is perturbed and no suspect looked for.
        bce_weight: lambda_3, of L_bce.
        bce_terms: of L_bce: "both", or "true-class" (L_bce1) or "runner-up" (L_bce2) alone (paper Table 3).
        loss_form: "stable", or "clamped" as in the reference code.
        bce_label: label of L_bce1: the "true" one (paper) or the "predicted" one (reference code).
        bn_outer: mode of the polarizer's batch norm in the outer step: "eval", or "train_clean_stats" (batch
            statistics; running ones follow the clean images alone).
        precision: "fp32", or "bf16" autocast (losses and projection stay in float32).
        speed: "fast" perturbs all images at what enters the layer, whatever ``feature_share`` is, so that what lies
            in front of the layer is needed once, and for the suspect; "exact" takes ``feature_share`` as it is.
        compile: use torch.compile (docs/defaults.md).

    Raises:
        BadInputError: a setting is out of its range.
    """

    perturbation: Literal["sample", "universal"] = "sample"
    goal: Literal["targeted", "untargeted"] = "targeted"
    target: int | Literal["next"] | None = None
    suspect: bool = True
    feature_share: float = 0.5
    feature_radius: float = 1.0
    feature_steps: int = 2
    feature_common: float = 0.75
    site: str | None = None
    structure: Structure = "conv-bn"
    init: Literal["calibrated", "default"] = "calibrated"
    epochs: int | None = None
    warmup_epochs: int = 5
    warmup_lr: float = 1e-4
    batch_size: int = 64
    lr: float = 0.02
    lr_policy: Literal["constant", "cosine"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    norm: Literal["l2", "linf"] = "l2"
    radii: tuple[float, ...] = (3.0,)
    shared_radius: float | None = 5.0
    step_size: float = 0.1
    steps: int = 2
    shared_steps: int | None = 4
    step_rule: StepRule = "gradient"
    early_stop: float | None = None
    benign_weight: float = 1.0
    asr_weight: float = 0.1
    bce_weight: float = 0.05
    bce_terms: BceTerms = "both"
    loss_form: LossForm = "stable"
    bce_label: Literal["true", "predicted"] = "true"
    bn_outer: Literal["eval", "train_clean_stats"] = "eval"
    precision: Literal["fp32", "bf16"] = "fp32"
    speed: Literal["exact", "fast"] = "exact"
    compile: bool = False

    def __post_init__(self) -> None:
        check_literals(self)
        counts = (self.epochs or 0, self.warmup_epochs, self.steps, self.shared_steps or 0, self.feature_steps)
        if min(counts) < 0 or self.batch_size < 1:
            raise BadInputError("epochs and steps must not be negative, and the batch size at least 1")
        radii = (*self.radii, self.shared_radius or 0.0, self.feature_radius)
        if not self.radii or not all(math.isfinite(radius) and radius >= 0 for radius in radii):
            raise BadInputError(
                f"radii must be finite and not negative, got {self.radii}, {self.shared_radius} for shared ones and "
                f"{self.feature_radius} for features"
            )
        if not (0 <= self.feature_share <= 1 and 0 <= self.feature_common <= 1):
            raise BadInputError(
                f"feature share and feature common must lie in [0, 1], got {self.feature_share} and "
                f"{self.feature_common}"
            )
        if not (self.lr > 0 and self.step_size > 0):
            raise BadInputError(f"lr and step size must be positive, got {self.lr} and {self.step_size}")
        if self.goal == "untargeted" and self.target is not None:
            raise BadInputError("an untargeted perturbation has no target class; leave target out")
        if self.bn_outer == "train_clean_stats" and self.structure in WITHOUT_NORM:
            raise BadInputError(f"structure {self.structure} has no batch norm to train with; leave bn_outer at eval")

    @property
    def adversarial(self) -> bool:
        """Whether perturbed images have a part in the loss."""
        return self.asr_weight != 0 or self.bce_weight != 0
