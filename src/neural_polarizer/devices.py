"""Choosing a device and a precision; only the command line and ``purify`` do so."""

from typing import Literal

import torch

from neural_polarizer.errors import BadInputError

Precision = Literal["fp32", "bf16"]


def choose_device(name: str | None) -> torch.device:
    """The named device, or CUDA where there is one, else the CPU.

    Raises:
        BadInputError: the device does not exist here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInputError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def choose_precision(device: torch.device) -> Precision:
    """bf16 where the hardware computes in it (CUDA, AMX, AVX-512 BF16), else fp32, which is the faster one there."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch 2.11
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"
