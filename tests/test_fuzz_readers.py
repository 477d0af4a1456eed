"""A few seconds of the fuzzer in benchmarks/fuzz_readers.py, which runs for as long as one likes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmark_scripts import script
from toys import SAME

FUZZ = script("fuzz_readers")
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=SAME,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def readers() -> Any:
    return FUZZ.readers()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged images
@pytest.mark.parametrize("name", ["torch zip", "torch legacy", "safetensors", "parquet", "image"])
@few
@given(seed=st.integers(0, 2**32))
def test_a_changed_file_is_read_or_refused(readers: Any, tmp_path: Path, name: str, seed: int) -> None:
    assert FUZZ.outcome(readers[name], FUZZ.case(readers[name], str(seed)), tmp_path) in ("read", "refused")


def test_unchanged_files_are_read(readers: Any, tmp_path: Path) -> None:
    for name, reader in readers.items():
        for sample in reader.samples:
            assert FUZZ.outcome(reader, sample, tmp_path) == "read", name


def test_a_reader_that_breaks_is_noticed(tmp_path: Path) -> None:
    def broken(path: Path) -> object:
        raise KeyError(path)

    with pytest.raises(KeyError):
        FUZZ.outcome(FUZZ.Reader(".pt", (b"",), lambda data, chance: data, broken), b"", tmp_path)
