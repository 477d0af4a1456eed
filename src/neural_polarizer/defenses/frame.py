"""The frame around every defense: it computes in float32 on a copy, and its result has the form of the original."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Audit, Defense, Purified
from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError
from neural_polarizer.metrics import predict
from neural_polarizer.models.forms import check_module, float_type, in_float32, value_like
from neural_polarizer.models.normalize import described, one_logit, outputs, two_logits
from neural_polarizer.plausibility import Finding, examine
from neural_polarizer.surgery import PolarizedModule
from neural_polarizer.train import Progress, silent

FEWEST_IMAGES = 10
"""With fewer clean images, no class is taken for the attacker's."""
_TROUBLE = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Patient:
    """A model that is ready to be repaired.

    Args:
        original: as the caller has it; never changed.
        working: the same in float32 on the CPU, in evaluation mode.
        clean: the clean images, with as many channels as the model takes.
        finding: what the model makes of them.
        notes: what the user should know.
        yes_no: whether the original gives one logit z, for which the working model gives (0, z).
    """

    original: nn.Module
    working: nn.Module
    clean: ImageSet
    finding: Finding
    notes: tuple[str, ...]
    yes_no: bool = False

    def repaired(
        self,
        defense: Defense,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        shown: ImageSet | None = None,
        progress: Progress = silent,
    ) -> Purified:
        """What ``defense`` makes of the model, in the dtype, on the device and in the modes of the original.

        Weights that the defense left alone keep their very bits. The layer that NPD inserts takes type, device and mode
        of the module beside it, and can be trained where any parameter of the original can.

        Args:
            defense: any.
            seed: its randomness.
            device: where to compute.
            shown: the images that the defense sees; None are the clean ones.
            progress: told about every step.

        Raises:
            BadInputError: model, images and defense do not go together.
        """
        check_one_layer(self.original, defense)
        images = self.clean if shown is None else shown
        try:
            found = defense.repair(self.working, images, seed=seed, device=device, progress=progress)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise BadInputError(
                f"{images.source}: {len(images)} image{'' if len(images) == 1 else 's'} in a batch give the features "
                "at this site a single value per channel, which has no spread; use more images, or another --site"
            ) from None
        after = float((predict(found.model, self.clean, device=device) == self.clean.labels).double().mean())
        model = one_logit(found.model, self.original) if self.yes_no else found.model
        _take_form(model, self.original)
        notes = (*found.notes, *self.notes, *self.clean.notes)
        if getattr(defense, "target", None) is None and _is_too_little(images):
            found = replace(found, suspect=None, audit=_nobody(found.audit))
        return replace(found, model=model, clean_acc=(self.finding.accuracy, after), notes=notes)


def _is_too_little(images: ImageSet) -> bool:
    """Whether what a few images, or those of one class, have in common by nature would pass for a backdoor."""
    return len(images) < FEWEST_IMAGES or int(images.labels.unique().numel()) < 2


def _nobody(audit: Audit | None) -> Audit | None:
    """``audit`` without an accusation."""
    told = "too few clean images, or images of one class only, to say that a class is the attacker's"
    return None if audit is None else replace(audit, summary=told)


def admitted(
    model: nn.Module,
    clean: ImageSet,
    *,
    device: torch.device | str = "cpu",
    force: bool = False,
    progress: Progress = silent,
) -> Patient:
    """Check that a model can be repaired with these images, and that it makes sense of them.

    Args:
        model: in any floating-point type, on any device, in any mode; left as it was.
        clean: clean images.
        device: where to compute.
        force: go on where the model does no better than guessing, with a note.
        progress: told about every step.

    Raises:
        BadInputError: the module is of no usable kind, does not take the images, gives no logits, or (without
            ``force``) does no better than guessing.
    """
    working, fitting, logits, yes_no = _understood(in_float32(check_module(model)), clean)
    _check_gradients(working, fitting)
    known, highest = int(logits.shape[1]), int(clean.labels.max())
    if highest >= known:
        raise BadInputError(
            f"{clean.source}: has label {highest}, but the model knows {known} classes (0 to {known - 1}); is this the "
            "right data set?"
        )
    notes = ("a yes/no model: its one logit z was taken for the two logits (0, z)",) if yes_no else tuple[str, ...]()
    if bool(((logits >= 0) & (logits <= 1)).all()) and bool(((logits.sum(dim=1) - 1).abs() < 1e-4).all()):
        notes = (
            *notes,
            "the model's outputs are probabilities that sum to 1, whose gradients are weak; give the logits before the "
            "softmax if you can",
        )
    finding = examine(working, fitting, device=device, progress=progress)
    if not force:
        finding.require_sense()
    remark = () if finding.remark is None else (finding.remark,)
    return Patient(model, working, fitting, finding, (*notes, *remark), yes_no)


def _check_gradients(working: nn.Module, clean: ImageSet) -> None:
    """Refuse a network whose logits do not depend on its weights in a way that could be learned from.

    Raises:
        BadInputError: they do not.
    """
    flags = {each: each.requires_grad for each in working.parameters()}
    try:
        working.requires_grad_(True)
        with torch.enable_grad():
            learns = bool(working(to_pixels(clean.images[:2])).requires_grad)
    finally:
        for each, flag in flags.items():
            each.requires_grad_(flag)
    if flags and not learns:
        raise BadInputError(
            "the model gives logits without gradients, from which nothing can be learned; take torch.no_grad, "
            "torch.inference_mode or detach out of its forward"
        )


def check_one_layer(model: nn.Module, defense: Defense) -> None:
    """One model holds one polarizer: neither its file nor a fold could tell two of them apart.

    Raises:
        BadInputError: ``defense`` would insert a second one.
    """
    inserts = hasattr(defense, "site")  # what has a place to choose puts something there
    if inserts and any(isinstance(module, PolarizedModule) for module in model.modules()):
        raise BadInputError(
            "the model has been purified already and holds a polarizer; fold it first (neural_polarizer.fold) and "
            "purify the folded model, or start from the original one"
        )


def measurable(model: nn.Module, images: ImageSet) -> tuple[nn.Module, ImageSet]:
    """``model`` as one that gives a logit for each class, and ``images`` with as many channels as it takes.

    Args:
        model: in float32; its modes stay as they are.
        images: any number.

    Raises:
        BadInputError: the model does not take them, or gives no logits.
    """
    if len(images) == 0:
        return model, images
    _, fitting, _, yes_no = _understood(in_float32(model), images)
    return (two_logits(model) if yes_no else model), fitting


def _understood(working: nn.Module, clean: ImageSet) -> tuple[nn.Module, ImageSet, Tensor, bool]:
    """The model with at least two logits, images that it takes, two images' logits, and whether it had one.

    Raises:
        BadInputError: it takes no images, or gives no logits.
    """
    fitting, logits = _fitting(working, clean)
    if logits.shape[1] > 1:
        return working, fitting, logits, False
    return two_logits(working), fitting, torch.cat((torch.zeros_like(logits), logits), dim=1), True


def fitting_images(model: nn.Module, images: ImageSet) -> ImageSet:
    """``images`` with as many channels as the model takes: one of grey ones or three equal ones.

    Args:
        model: in float32; its modes stay as they are.
        images: any number.

    Raises:
        BadInputError: the model does not take them, or gives no logits.
    """
    return _fitting(in_float32(model), images)[0] if len(images) else images


@torch.no_grad()
def _fitting(model: nn.Module, clean: ImageSet) -> tuple[ImageSet, Tensor]:
    """The images in a form that the model takes (grey ones with one or three channels), and two images' logits.

    Raises:
        BadInputError: it takes none, or gives no logits.
    """
    if len(clean) == 0:
        raise BadInputError(f"{clean.source}: holds no images")
    forms = [clean, *_other_channels(clean)]
    reason = ""
    for images in forms:
        try:
            logits = model(to_pixels(images.images[:2]))
        except _TROUBLE as error:
            if out_of_memory(error):
                raise
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        return images, _checked(logits, images)
    shape = " x ".join(map(str, clean.images.shape[1:]))
    if _takes_channels_last(model, clean):
        raise BadInputError(
            f"the model takes pixels with the channels last, but is given N x {shape}; wrap it in a module whose "
            "forward returns model(pixels.permute(0, 2, 3, 1))"
        )
    raise BadInputError(
        f"{clean.source}: the model cannot take images N x {shape} ({reason}); resize them, or wrap the model so that "
        "it takes float pixels in [0, 1], channels first"
    )


def _other_channels(clean: ImageSet) -> Iterator[ImageSet]:
    """Grey images with one channel instead of three equal ones, or the other way round."""
    pixels = clean.images
    if pixels.shape[1] == 1:
        yield replace(clean, images=pixels.expand(-1, 3, -1, -1).contiguous())
    if pixels.shape[1] == 3 and bool((pixels == pixels[:, :1]).all()):
        yield replace(clean, images=pixels[:, :1].contiguous())


def _takes_channels_last(model: nn.Module, clean: ImageSet) -> bool:
    try:
        logits = model(to_pixels(clean.images[:2]).permute(0, 2, 3, 1))
    except _TROUBLE:
        return False
    return isinstance(logits, Tensor) and logits.ndim == 2


def _checked(logits: object, images: ImageSet) -> Tensor:
    """The logits of two images, of shape n x k; of a yes/no model n x 1.

    Raises:
        BadInputError: it is something else.
    """
    said = "the model must give logits N x K, one for every class"
    count = min(2, len(images))
    if not isinstance(logits, Tensor):
        parts = outputs(logits) or getattr(logits, "__dict__", {})
        fitting = [key for key, each in parts.items() if isinstance(each, Tensor) and each.shape[:1] == (count,)]
        flat = [key for key in fitting if parts[key].ndim == 2]
        how = f", as forward(pixels) that returns the part {flat[0]} of what it gives" if len(flat) == 1 else ""
        raise BadInputError(
            f"{said}, but it gives {described(logits)}; wrap it in a module whose forward returns the logits only{how}"
        )
    if logits.ndim == 1 and len(logits) == count:
        logits = logits[:, None]
    if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] == 0:
        raise BadInputError(f"{said}, but it gives {tuple(logits.shape)} for {count} images")
    return logits.float()


@torch.no_grad()
def _take_form(result: nn.Module, original: nn.Module) -> None:
    """Give the modules of ``result``, in place, the types, device, modes and flags of those of ``original``."""
    before = _places(original)
    modes = {name: module.training for name, module in original.named_modules(remove_duplicate=False)}
    usual, trainable = float_type(original), any(each.requires_grad for each in original.parameters())
    wrapped = {
        name
        for name, module in result.named_modules(remove_duplicate=False)
        if isinstance(module, PolarizedModule) and f"{name}.polarizer" not in modes
    }
    home = next((value.device for value in before.values()), torch.device("cpu"))
    done: set[int] = set()
    for name, module in result.named_modules(remove_duplicate=False):
        own, outer = _own_name(name, wrapped)
        module.training = modes.get(own if own is not None else outer, original.training)
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is None or id(value) in done:
                continue
            done.add(id(value))
            like = before.get(f"{own}.{key}".removeprefix(".")) if own is not None else None
            finite = bool(value.isfinite().all())
            if like is not None and like.is_floating_point() == value.is_floating_point():
                value.data = value_like(value, like)
            else:
                value.data = value.data.to(home, usual if value.is_floating_point() else value.dtype)
            if finite and not bool(value.isfinite().all()):
                raise BadInputError(
                    f"a weight of the purified model ({name}.{key}) is too large for {value.dtype}; purify the model "
                    "in float32 (model.float()) and convert the result yourself"
                )
            if isinstance(value, nn.Parameter):
                value.grad = None
                value.requires_grad_(like.requires_grad if like is not None else trainable)


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their names."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                found[f"{name}.{key}".removeprefix(".")] = value
    return found


def _own_name(name: str, wrapped: set[str]) -> tuple[str | None, str]:
    """The name of a module before a layer was inserted, None for the layer's own; and that of the module beside it."""
    for outer in wrapped:
        if f"{name}.".startswith(f"{outer}.polarizer."):
            return None, outer
        if f"{name}.".startswith(f"{outer}.module."):
            return outer + name.removeprefix(f"{outer}.module"), outer
    return name, name
