"""A purified model without its polarizer: the layers around it absorb what is an affine map in evaluation mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.folding.edits import Affine, Edit, InPlace
from neural_polarizer.layer.folding.plan import Plan, UnfoldableError, beside, layer_names
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.models.adapted import replace_module
from neural_polarizer.models.forms import copied, evaluating, largest_gap

Border = Literal["exact", "ignored"]
FOLDED_IMAGES = 512
"""Images on which the logits are compared; more only take longer."""
_BATCH = 128


@dataclass(frozen=True, eq=False)
class Folded:
    """A purified model without its polarizer.

    Args:
        model: a new module in evaluation mode.
        exact: whether it is the same function, but for rounding.
        architecture_kept: whether it is of the original architecture; a layer may have a bias that had none.
        deviation: the largest absolute difference between its logits and the purified model's, on the images given.
        largest_logit: the largest absolute logit of the purified model there.
        changes: by name the layers whose form has changed, with the kind of ``models.adapted``.
        site_kept: whether a 1x1 convolution or linear layer is left at the polarizer's site.
        how: what was done, in one line.
        obstacles: for each better way, why it was not open.
    """

    model: nn.Module
    exact: bool
    architecture_kept: bool
    deviation: float
    largest_logit: float
    changes: Mapping[str, str]
    site_kept: bool
    how: str
    obstacles: tuple[str, ...]

    @property
    def remark(self) -> str:
        """All of it in one line for the user."""
        exact = "exact" if self.exact else "not exact"
        if self.architecture_kept:
            form = "of the original architecture"
        else:
            form = f"but not of the original architecture, as {'; '.join(self.obstacles)}"
        deviation = f"logits deviate by at most {self.deviation:.2g} where the largest is {self.largest_logit:.3g}"
        return f"{self.how}: {exact}, {form}; {deviation}"


@torch.no_grad()
def fold_polarizer(model: nn.Module, pixels: Float[Tensor, "n c h w"], *, border: Border = "exact") -> Folded:
    """Let the layers around the polarizer of ``model`` do its work, exactly, in the cheapest way that there is.

    In this order: into the convolutions or linear layer in front of it; into those behind it; with the batch norm
    behind it into one 1x1 convolution; its own two parts into one 1x1 convolution or linear layer. Every result is
    compared with ``model`` on ``pixels``, and one that gives other logits is passed over.

    Source: the algebra of affine maps; docs/research/performance.md has the cases.
    Shape: ``pixels`` is float ``(n, c, h, w)`` in [0, 1], as ``model`` takes it.

    Args:
        model: what ``surgery.insert`` returns; untouched.
        pixels: images on which the deviation is measured, at least one.
        border: "ignored" folds into convolutions that pad zeros as if the image had no border, which keeps the
            architecture but is exact in the interior only.

    Raises:
        BadInputError: ``model`` holds no polarizer, several, or one of another structure, or there are no images.
    """
    _sole_polarizer(model)
    if len(pixels) == 0:
        raise BadInputError("folding needs at least one image to compare the logits on")
    obstacles: list[str] = []
    for way in _ways(border == "exact"):
        twin = copied(model).eval()
        try:
            edits = way(twin, _sole_polarizer(twin)[0])
        except UnfoldableError as reason:
            obstacles.append(str(reason))
            continue
        if not edits:
            continue
        found = _apply(model, twin, edits, pixels, obstacles)
        rounding = 3 * torch.finfo(pixels.dtype).eps ** 0.5  # relative to the largest logit: 1e-3 in float32
        if not found.exact or found.deviation <= rounding * found.largest_logit:
            return found
        obstacles.append(f"{found.how} gives other logits (by {found.deviation:.2g})")
    twin = copied(model).eval()
    wrapped, polarizer = _sole_polarizer(twin)
    return _apply(model, twin, [InPlace(wrapped, polarizer.channels_last)], pixels, obstacles)


def _ways(border: bool) -> tuple[Callable[[nn.Module, PolarizedModule], list[Edit]], ...]:
    """What can absorb the layer, the cheapest first; ``border``: be exact there, too."""
    return (
        lambda root, wrapped: Plan(root, wrapped).backwards(),
        lambda root, wrapped: Plan(root, wrapped).forwards(border=border),
        lambda root, wrapped: beside(root, wrapped, border=border),
        lambda root, wrapped: Plan(root, wrapped).instead_of_norm(),
    )


def _apply(
    model: nn.Module, twin: nn.Module, edits: Sequence[Edit], pixels: Tensor, obstacles: Sequence[str]
) -> Folded:
    """Carry out ``edits`` on ``twin``, the copy of ``model`` whose modules they hold, and measure the outcome."""
    wrapped, polarizer = _sole_polarizer(twin)
    affine, names = Affine.of(polarizer), layer_names(twin, wrapped)
    how = "folded " + " and ".join(edit.told(names) for edit in edits)
    exact = all(edit.exact for edit in edits)
    changed: dict[nn.Module, str] = {}
    for edit in edits:
        changed |= edit.apply(twin, affine)
    site_kept = wrapped.polarizer is not polarizer
    if not site_kept:
        replace_module(twin, wrapped, wrapped.module)
    twin.eval()  # the new layers too
    names = layer_names(twin)
    with evaluating(model):
        deviation, largest = largest_gap(model, twin, pixels.split(_BATCH))
    return Folded(
        model=twin,
        exact=exact,
        architecture_kept=not site_kept and set(changed.values()) <= {"bias"},
        deviation=deviation,
        largest_logit=largest,
        changes={names[module]: kind for module, kind in changed.items()},
        site_kept=site_kept,
        how=how,
        obstacles=tuple(dict.fromkeys(obstacles)),
    )


def _sole_polarizer(model: nn.Module) -> tuple[PolarizedModule, Polarizer]:
    modules = [module for module in model.modules() if isinstance(module, PolarizedModule)]
    found = [(module, module.polarizer) for module in modules if isinstance(module.polarizer, Polarizer)]
    if len(found) != 1:
        raise BadInputError(f"folding needs a model with exactly one polarizer; this one has {len(found)}")
    layer = found[0][1]
    if type(layer) is not Polarizer:
        raise BadInputError(
            f"a layer of structure {layer.structure} cannot be folded, only conv-bn can; use the model as it is"
        )
    return found[0]
