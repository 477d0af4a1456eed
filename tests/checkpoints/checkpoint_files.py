"""Files for the tests, honest and hostile, written on the fly."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def saved(path: Path, value: Any, protocol: int = 2) -> Path:
    """What the installed torch writes."""
    torch.save(value, path, pickle_protocol=protocol)
    return path


def members_of(value: Any) -> dict[str, bytes]:
    """The members of a torch.save file, to be tampered with."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def with_pickle(path: Path, data: bytes) -> Path:
    """A torch file around any pickle, with one storage of four floats."""
    return zipped(path, {"a/data.pkl": data, "a/version": b"3\n", "a/data/0": torch.ones(4).numpy().tobytes()})


class _Storage:
    """Pickled as a persistent id, the way torch.save does with storages."""

    def __init__(self, numel: int, kind: Any) -> None:
        self.numel = numel
        self.kind = kind


class Call:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._reduced = (function, args)

    def __reduce__(self) -> Any:
        return self._reduced


class _Pickler(pickle.Pickler):
    def persistent_id(self, item: Any) -> Any:
        if isinstance(item, _Storage):
            return ("storage", item.kind, "0", "cpu", item.numel)
        return None


def pickled(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def raw_tensor(
    offset: int, shape: tuple[int, ...], stride: tuple[int, ...], numel: int = 4, kind: Any = torch.FloatStorage
) -> Call:
    """A tensor record that claims anything about a storage of four floats."""
    return Call(torch._utils._rebuild_tensor_v2, _Storage(numel, kind), offset, shape, stride, False, {})


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Equal names, types, shapes and bits."""
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype
        and ours[name].shape == theirs[name].shape
        and ours[name].is_contiguous()
        and bits(ours[name]) == bits(theirs[name])
        for name in ours
    )


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
