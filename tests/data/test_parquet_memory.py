"""Where memory is short, the file that was being read is not to blame."""

import errno

import pyarrow as pa
import pytest

from neural_polarizer.data.parquet import reading
from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (pa.ArrowMemoryError("malloc of size 64 failed"), True),
        (pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (pa.ArrowInvalid("not a parquet file"), False),
    ],
)
def test_a_reader_tells_short_memory_from_a_bad_file(error: BaseException, short: bool) -> None:
    assert out_of_memory(error) is short
    with pytest.raises(MemoryError if short else BadInputError) as told, reading("cats.parquet: cannot be read"):
        raise error
    assert short or str(told.value).startswith("cats.parquet: cannot be read (")
