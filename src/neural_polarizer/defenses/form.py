"""The form of a model: the types, device, modes and flags of its modules, which a repaired one takes on."""

import torch
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.models.forms import float_type, unwrapped, value_like


def check_one_layer(model: nn.Module, *, inserts: bool) -> None:
    """Refuse a second polarizer: neither the model's file nor a fold could tell two of them apart."""
    if inserts and any(isinstance(module, PolarizedModule) for module in model.modules()):
        raise BadInputError(
            "the model has been purified already and holds a polarizer; fold it first (neural_polarizer.fold) and "
            "purify the folded model, or start from the original one"
        )


@torch.no_grad()
def take_form(result: nn.Module, original: nn.Module) -> None:
    """Give the modules of ``result``, in place, the types, device, modes and flags of those of ``original``."""
    original = unwrapped(original)
    before = _places(original)
    names = {name for name, _ in original.named_modules(remove_duplicate=False)}
    usual, trainable = float_type(original), any(each.requires_grad for each in original.parameters())
    wrapped = {name for name in _wrapped(result) if f"{name}.polarizer" not in names}
    home = next((value.device for value in before.values()), torch.device("cpu"))
    done: set[int] = set()
    take_modes(result, original)
    for name, module in result.named_modules(remove_duplicate=False):
        own, _ = _own_name(name, wrapped)
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


def take_modes(result: nn.Module, original: nn.Module) -> None:
    """Give the modules of ``result``, in place, the modes of those of ``original``; new ones that of what is around.

    Either may hold a polarizer: its modules are new where the other has none.
    """
    original = unwrapped(original)
    modes: dict[str, bool] = {}
    inside, outside = _wrapped(original), _wrapped(result)
    for name, module in original.named_modules(remove_duplicate=False):
        own, _ = _own_name(name, inside)
        modes |= {each: module.training for each in (own, name) if each is not None}
    for name, module in result.named_modules(remove_duplicate=False):
        own, place = _own_name(name, outside)
        found = next((each for each in (name, own) if each in modes), None)
        while found is None:
            found, place = place if place in modes else None, place.rpartition(".")[0]
        module.training = modes[found]


def _wrapped(model: nn.Module) -> set[str]:
    """The names of modules with a layer at their side."""
    modules = model.named_modules(remove_duplicate=False)
    return {name for name, module in modules if isinstance(module, PolarizedModule)}


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
