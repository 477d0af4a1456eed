"""Explicit randomness: one seed fans out into named streams that do not disturb one another."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *use: str | int) -> int:
    """A 56-bit seed for one named use of ``seed``."""
    digest = hashlib.blake2b("/".join(map(str, (seed, *use))).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def stream(seed: int, *use: str | int) -> torch.Generator:
    """A CPU generator for one named use of ``seed``; other uses of the same seed are independent."""
    return torch.Generator().manual_seed(derive_seed(seed, *use))


@contextmanager
def global_rng(seed: int, *use: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block only, for code that takes no generator (init, dropout).

    CUDA is not woken for it. Where it sleeps, it has no state to come back to, only a seed that waits for it;
    afterwards that is the caller's ``torch.manual_seed``, even if CUDA alone was given another one.
    """
    awake, known = torch.cuda.is_initialized(), torch.initial_seed()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if awake else ()):
        try:
            torch.manual_seed(derive_seed(seed, *use))
            yield
        finally:
            if not awake:
                torch.cuda.manual_seed_all(known)
