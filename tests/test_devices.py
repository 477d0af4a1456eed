"""The allocator setting of the command line."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from neural_polarizer.devices import keep_freed_memory

if sys.argv[1] == "keep":
    print(keep_freed_memory())
for _ in range(3):  # the second may not fit where the first was, if something small has taken a part of that
    torch.ones(2**24)  # 64 MiB: 16,384 pages of 4 KiB, given back at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.process
def test_kept_memory_is_not_fetched_again() -> None:
    took_effect, kept = faults("keep")
    if took_effect == "False":
        pytest.skip("this C library has no mallopt")
    (plain,) = faults("plain")
    # Five tensors would cost 81,920 faults; large pages may make the plain run cheap as well.
    assert int(kept) < 8192
    assert int(kept) <= int(plain)
