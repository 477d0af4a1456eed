"""Put tensors into a module: all of them, by name, shape and kind, or none."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError, listing, printable


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy ``tensors`` into ``module``; on an error the module is as it was.

    Args:
        module: receives the values, in its own dtypes and on its own devices.
        tensors: by the names of ``module.state_dict()``; ``num_batches_tracked`` may be missing, or of another form.
        source: the file's name, for the error.

    Raises:
        BadInputError: names, shapes or kinds do not match, or a value is not finite or not possible.
    """
    targets = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    tensors = {name: value for name, value in tensors.items() if not _is_other_count(name, value, targets)}
    source, mismatch = printable(source, 4096), _mismatch(targets, tensors)
    if mismatch:
        kinds_alone = mismatch.partition(":")[0].endswith("wrong type")  # the last group is the first one
        remedy = "check the architecture and the number of classes"
        raise BadInputError(
            f"{source}: the weights do not fit this architecture: {mismatch}; "
            f"{'give the weights in floating point' if kinds_alone else remedy}"
        )
    converted = {name: tensor.detach().to(targets[name]) for name, tensor in tensors.items()}
    bad = [f"{printable(name)} {fault}" for name in tensors if (fault := _fault(name, tensors[name], converted[name]))]
    if bad:
        raise BadInputError(f"{source}: unusable values: {listing(bad)}; get the file again or train anew")
    with torch.no_grad():
        for name, value in converted.items():
            targets[name].copy_(value)


def _is_other_count(name: str, value: Tensor, targets: Mapping[str, Tensor]) -> bool:
    """Whether it is a count of batches in another form, as averages of models have it; no evaluation uses it."""
    own = targets.get(name) if name.rpartition(".")[2] == "num_batches_tracked" else None
    return own is not None and (own.shape != value.shape or _family(own) != _family(value))


def _mismatch(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """All that is wrong with names, shapes and kinds, or nothing."""
    both = [name for name in tensors if name in targets]
    missing = [
        printable(name) for name in targets if name not in tensors and name.rpartition(".")[2] != "num_batches_tracked"
    ]
    unexpected = [printable(name) for name in tensors if name not in targets]
    shapes = [
        f"{printable(name)} is {tuple(tensors[name].shape)}, expected {tuple(targets[name].shape)}"
        for name in both
        if tensors[name].shape != targets[name].shape
    ]
    kinds = [
        f"{printable(name)} is {_kind(tensors[name])}, expected {_kind(targets[name])}"
        for name in both
        if _family(tensors[name]) != _family(targets[name])
    ]
    groups = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes, "wrong type": kinds}
    return "; ".join(f"{len(items)} {label}: {listing(items)}" for label, items in groups.items() if items)


def _kind(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" ({tensor.layout})"
    return f"{tensor.dtype}{' without data' if tensor.is_meta else ''}{layout}".replace("torch.", "")


def _family(tensor: Tensor) -> str:
    """Types between which values may be copied share a family; unusual tensors have one to themselves."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        return _kind(tensor)
    if tensor.is_floating_point():
        return "floating"
    return str(tensor.dtype) if tensor.dtype == torch.bool or tensor.is_complex() else "integer"


def _fault(name: str, original: Tensor, converted: Tensor) -> str | None:
    if not converted.is_floating_point():
        same = torch.equal(converted.to(original), original)
        return None if same else f"does not fit {converted.dtype}"
    # After the conversion: a float64 of 1e300 is infinite in float32.
    if not bool(torch.isfinite(converted).all()):
        return "holds NaN or infinite values"
    if name.rpartition(".")[2] == "running_var" and bool((converted < 0).any()):
        return "holds negative variances"
    return None
