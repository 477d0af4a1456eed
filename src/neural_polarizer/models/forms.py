"""Modules in the forms that users have them in: what can be used, float32 copies, and values of the same form."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from neural_polarizer.errors import BadInputError, refusing
from neural_polarizer.models.adapted import replace_module


def check_module(model: object) -> nn.Module:
    """``model``, ``unwrapped``, if it is a module that can be copied and changed.

    Raises:
        BadInputError: it is none, TorchScript, exported, quantised, without values or with a state that is no tensor,
            sparse, or spread over several devices.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        hint = "; build the network and load these weights into it" if isinstance(model, dict) else ""
        raise BadInputError(f"the model must be a torch.nn.Module from pixels to logits, got {kind}{hint}")
    for module in model.modules():
        exported = any(base.__module__.startswith("torch.export") for base in type(module).__mro__)
        if exported or isinstance(module, torch.jit.ScriptModule):
            kind = "a program of torch.export" if exported else "TorchScript"
            raise BadInputError(
                f"the model is {kind}, which cannot be taken apart; give the Python module that it was made from, "
                "with module.load_state_dict(model.state_dict())"
            )
        if "quantized" in type(module).__module__.split(".") or getattr(module, "_packed_params", None) is not None:
            raise BadInputError(
                f"the model is quantised (it has a {type(module).__name__}), so its weights cannot be changed; give "
                "the floating-point model and quantise the result"
            )
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise BadInputError(
                f"the model's {type(module).__name__} has a state that is no tensor (get_extra_state), which no file "
                "of weights holds; keep it in buffers, or give a class without it"
            )
    _check_values(list(_tensors(model)))
    return unwrapped(model)


def _check_values(tensors: Sequence[Tensor]) -> None:
    """Refuse parameters and buffers that nothing can be computed with, or that are in several places."""
    if any(is_lazy(tensor) for tensor in tensors):
        raise BadInputError(
            "the model has lazy layers, whose sizes are known only once an image has gone through; send one through "
            "before (in code that --arch names, where the network is made)"
        )
    if any(tensor.is_meta for tensor in tensors):
        raise BadInputError("the model has parameters on the device meta, which hold no values; load its weights first")
    packed = next((tensor.layout for tensor in tensors if tensor.layout != torch.strided), None)
    if packed is not None:
        raise BadInputError(
            f"the model has parameters or buffers of the layout {packed}; give it with dense ones (tensor.to_dense())"
        )
    places = sorted({str(tensor.device) for tensor in tensors})
    if len(places) > 1:
        raise BadInputError(f"the model is spread over the devices {', '.join(places)}; move it to one of them")


def copied(model: nn.Module) -> nn.Module:
    """A copy on the same device; what cannot be copied is refused.

    Where it keeps what it computed, as hooks do, the copy keeps the values alone.
    """
    refused = refusing(
        "the model cannot be copied", RuntimeError, TypeError, then="; give it without locks or open files"
    )
    with refused, _ValuesAlone():
        return copy.deepcopy(model)


class _ValuesAlone(TorchFunctionMode):
    """Copies tensors that are still part of a computation, which torch refuses, as their values, wherever they are."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and args[0].grad_fn is not None:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def let_go(model: nn.Module) -> nn.Module:
    """``model`` itself, a copy of ours that has run: where it keeps what it computed, it keeps the values alone.

    What is still part of a computation can neither be copied nor leaves the memory.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _OWN:
                vars(module)[name] = _values(value)
    return model


_OWN = frozenset(vars(nn.Module()))  # what every module has


def _values(kept: Any, depth: int = 4) -> Any:
    """``kept`` without its part in a computation; lists and dicts are changed in place."""
    if isinstance(kept, Tensor):
        return kept.detach() if kept.grad_fn is not None else kept
    if depth and isinstance(kept, (dict, list)):
        for place, value in [*(kept.items() if isinstance(kept, dict) else enumerate(kept))]:
            kept[place] = _values(value, depth - 1)
    if depth and type(kept) is tuple:
        return tuple(_values(value, depth - 1) for value in kept)
    return kept


def unwrapped(model: nn.Module) -> nn.Module:
    """``model`` without what ``torch.compile`` and torch's parallel modules have put around it or a part of it.

    No hook runs in compiled code, and either puts a word before the names of all weights. ``model`` stays as it is;
    where a part of it is wrapped, a copy is returned.
    """
    model = _inside(model)
    if all(_inside(part) is part for part in model.modules()):
        return model
    twin = copied(model)
    for part in [*twin.modules()]:
        replace_module(twin, part, _inside(part))
    return twin


def _inside(module: nn.Module) -> nn.Module:
    """What is inside of one wrapper or several; any other module as it is."""
    parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    wrapped = module._modules.get("module" if parallel else "_orig_mod")
    return module if wrapped is None else _inside(wrapped)


def in_float32(model: nn.Module) -> nn.Module:
    """A copy in float32 on the CPU, in evaluation mode and ``unwrapped``; ``model`` stays as it is."""
    return copied(unwrapped(model)).to("cpu").float().eval()


def is_float32(model: nn.Module) -> bool:
    """Whether all of its floating-point parameters and buffers are."""
    return all(tensor.dtype == torch.float32 for tensor in _tensors(model) if tensor.is_floating_point())


def float_type(model: nn.Module) -> torch.dtype:
    """The floating-point type that most of its values have; float32 for a model without any."""
    sizes = Counter[torch.dtype]()
    for tensor in _tensors(model):
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    return max(sizes, key=sizes.__getitem__, default=torch.float32)


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters and buffers are; the CPU for a model without any."""
    return next((tensor.device for tensor in _tensors(model)), torch.device("cpu"))


def value_like(now: Tensor, before: Tensor) -> Tensor:
    """``now`` in the type and on the device of ``before``; the very values of ``before`` where nothing has changed."""
    held = before.detach()
    if held.shape == now.shape and torch.equal(held.to(now.device, now.dtype), now.detach()):
        return held.clone()
    return now.detach().to(held.device, held.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it lasts, ``model`` is in evaluation mode; then each of its modules is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def largest_gap(model: nn.Module, other: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> tuple[float, float]:
    """The largest difference of the logits of two models, and the largest logit of the first; NaN where one is.

    Raises:
        BadInputError: the logits differ in shape.
    """
    gaps, largest = [], []
    for batch in batches:
        expected, found = model(batch.clone()), other(batch.clone())  # a network may change its input in place
        if found.shape != expected.shape:
            raise BadInputError(f"it gives {tuple(found.shape)} where the model gives {tuple(expected.shape)}")
        gaps.append((found - expected).abs().max())
        largest.append(expected.abs().max())
    return float(torch.stack(gaps).max()), float(torch.stack(largest).max())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
