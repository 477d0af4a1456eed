"""The outer loss of NPD from logits, whatever network they come from (eq. 6; ``losses`` has eqs. 2 and 3)."""

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.defenses.npd.aims import Aim
from neural_polarizer.defenses.npd.settings import NPDSettings
from neural_polarizer.losses import asr_loss, boosted_cross_entropy, runner_up


def objective(
    settings: NPDSettings,
    logits: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    hostile: Float[Tensor, "m k"] | None,
    aim: Aim | None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """``lambda_1 L_bn + lambda_2 L_asr + lambda_3 L_bce`` on one batch (eq. 6).

    Args:
        settings: weights and forms of the losses.
        logits: of the clean images.
        labels: their true ones.
        hostile: logits of the perturbed images; None if there are none.
        aim: what these were perturbed towards.  Untargeted ones have no target, which the paper leaves open: L_asr
            takes the best wrong class of the perturbed images.

    Returns:
        The loss and, apart from any graph, its parts for the record: ``loss``, ``loss_benign`` and ``clean_accuracy``,
        and with perturbed images ``loss_asr``, ``loss_bce`` and ``surrogate_success``, the share that is taken for
        its target.
    """
    benign = F.cross_entropy(logits, labels)
    terms = {"loss_benign": benign, "clean_accuracy": _share(logits, labels)}
    loss = settings.benign_weight * benign
    if hostile is not None and aim is not None:
        targets = aim.targets if settings.goal == "targeted" else runner_up(hostile.detach(), aim.labels)
        shown = aim.predicted if settings.bce_label == "predicted" else None
        asr = asr_loss(hostile, targets, settings.loss_form)
        bce = boosted_cross_entropy(hostile, aim.labels, settings.loss_form, shown, settings.bce_terms)
        loss = loss + settings.asr_weight * asr + settings.bce_weight * bce
        terms |= {"loss_asr": asr, "loss_bce": bce, "surrogate_success": _share(hostile, targets)}
    return loss, {name: value.detach() for name, value in {"loss": loss, **terms}.items()}


def _share(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
    return (logits.argmax(dim=1) == labels).float().mean()
