"""NAD (Li et al., 2021): fine-tune towards the attention maps of a fine-tuned teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.fine_tuning import RECIPE, fine_tuned
from neural_polarizer.defenses.passes import all_passes
from neural_polarizer.defenses.result import Audit, Outcome
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import watching
from neural_polarizer.train.fit import descend
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class NAD(Defense):
    """Cross-entropy plus the distance of the student's attention maps from the teacher's.

    Source: Li et al., "Neural Attention Distillation", ICLR 2021.
    Departures from the reference: the maps are the last ones of the last three resolutions larger than one pixel, on
    any architecture (the reference's last map is always a constant), all taken from a single forward pass; the
    student follows its schedule.

    Args:
        teacher: schedule of the teacher's fine-tuning.
        student: schedule of the distillation.
        weights: beta of the maps, the deepest last; with fewer maps the last ones count.
        power: p of ``sum_c |F_c|^p``.
    """

    title: ClassVar[str] = "NAD"
    story: ClassVar[tuple[str, ...]] = (
        "Neural attention distillation (NAD): a first copy of the model was trained further, as a teacher.",
        "Then a second one was trained to look at the same places of the images as the teacher, so that it unlearns to "
        "look at a trigger.",
    )
    every_class: ClassVar[bool] = True
    smoke: ClassVar[Mapping[str, Any]] = {"teacher.epochs": 1, "student.epochs": 1}
    laptop: ClassVar[Mapping[str, Any]] = {
        "teacher.epochs": 5,
        "teacher.batch_size": 32,
        "teacher.lr": 0.03,
        "student.epochs": 15,
        "student.batch_size": 32,
        "student.lr": 0.03,
    }

    teacher: Schedule = field(default=replace(RECIPE, epochs=10))
    student: Schedule = field(default=RECIPE)
    weights: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    power: float = 2.0

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 0 or self.power <= 0:
            raise BadInputError(
                f"NAD needs weights of at least 0 and a positive power, got {self.weights}, {self.power}"
            )

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        names = attention_sites(model, to_pixels(clean.images[:2].to(run.device)))[-len(self.weights) :]
        with run.timed("teacher"):
            teacher = fine_tuned(model, clean, self.teacher, run).requires_grad_(False)
        with run.timed("distil"):
            self._distil(model, teacher, names, clean, run)
        return Outcome(model, Audit(f"Compared the attention maps of {', '.join(names)}.", {}))

    def _distil(self, student: nn.Module, teacher: nn.Module, names: list[str], clean: ImageSet, run: Run) -> None:
        recipe = self.student
        optimizer = recipe.optimize(student.parameters())

        def step(pixels: Tensor, labels: Tensor) -> None:
            with recipe.autocast(run.device):
                with torch.no_grad():
                    _, wanted = with_maps(teacher, names, pixels)
                logits, maps = with_maps(student, names, pixels)
            gap = self.distance([one.float() for one in maps], [other.float() for other in wanted])
            descend(optimizer, F.cross_entropy(logits.float(), labels) + gap)

        student.train().requires_grad_(True)
        all_passes(clean, recipe, optimizer, step, run, use="nad", phase="distil")
        student.eval()

    def distance(self, maps: list[Tensor], wanted: list[Tensor]) -> Float[Tensor, ""]:
        """``sum_l beta_l MSE(A(F_l), A(F'_l))``."""
        pairs = zip(self.weights[-len(maps) :], maps, wanted, strict=True)
        terms = [
            weight * F.mse_loss(attention(one, self.power), attention(other, self.power))
            for weight, one, other in pairs
        ]
        return torch.stack(terms).sum()


def attention(features: Float[Tensor, "n c h w"], power: float) -> Float[Tensor, "n p"]:
    """``sum_c |F_c|^p``, flattened and divided by its length."""
    flat = features.abs().pow(power).sum(dim=1).flatten(1)
    return flat / (flat.norm(dim=1, keepdim=True) + 1e-6)


@torch.no_grad()
def attention_sites(model: nn.Module, pixels: Float[Tensor, "n c h w"]) -> list[str]:
    """The last module of each resolution larger than one pixel, in the order in which they run."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.append((name, tuple(output.shape[2:])))

    # An adaptive pooling may blow a map of one pixel up to a constant one.
    names = [name for name, module in model.named_modules() if name and not isinstance(module, nn.AdaptiveAvgPool2d)]
    with watching(model, names, note):
        model(pixels)
    last = {size: name for name, size in seen if size[0] * size[1] > 1}
    if not last:
        raise BadInputError("NAD needs a feature map larger than one pixel, but this network has none")
    return list(last.values())


def with_maps(model: nn.Module, names: list[str], pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the outputs of the named modules, from one forward pass."""
    found: dict[str, Tensor] = {}
    with watching(model, names, lambda name, _inputs, output: found.update({name: output})):
        logits = model(pixels)
    return logits, [found[name] for name in names]
