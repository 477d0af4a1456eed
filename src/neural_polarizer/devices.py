"""Choosing a device, a precision and how memory is kept; only the command line and ``purify`` do so."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch

from neural_polarizer.errors import refusing

Precision = Literal["fp32", "bf16"]
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(name: str | None) -> torch.device:
    """The named device, or CUDA where there is one, else the CPU.

    Raises:
        BadInputError: the device does not exist here.
    """
    with refusing(f"device {name!r} cannot be used here", RuntimeError, AssertionError):
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).cpu()  # "meta" keeps no values
    return device


def choose_precision(device: torch.device) -> Precision:
    """bf16 where the hardware computes in it (CUDA, AMX, AVX-512 BF16), else fp32, which is then the faster one."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch 2.11
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there was not enough memory, of this machine or of its GPU."""
    if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN):  # no room for a thread, either
        return True
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On the CPU torch raises a plain RuntimeError, and pyarrow has no errno where it cannot start a thread.
    return any(words in str(error) for words in ("can't allocate memory", os.strerror(errno.EAGAIN)))


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; returns whether that took effect (CPU, glibc only).

    By default every large tensor is fetched from the system and given back, and its first use costs a page fault for
    each 4 KiB. It is a setting of the whole process, so the library never calls this, only commands do.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def plain_torch() -> Iterator[None]:
    """PyTorch as it is by default, whatever the caller has set: gradients, float32, the CPU, and no autocast."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_outside_autocast())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _outside_autocast() -> Iterator[None]:
    """As if the caller had entered no autocast.

    Turning it off is not enough: weights that are cast in it are kept until the outermost one ends, so those of our own
    would stay as they were in the first step of learning.
    """
    depth = torch.autocast_increment_nesting() - 1
    enabled = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for kind in enabled:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind, on in enabled.items():
            torch.set_autocast_enabled(kind, on)
        for _ in range(depth):
            torch.autocast_increment_nesting()
