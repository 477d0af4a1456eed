"""Errors of foreign code in our words, on one line."""

from pathlib import Path

import pytest

from neural_polarizer.errors import BadInputError, cause, one_line
from neural_polarizer.files import read_json


def test_the_kind_of_an_error_is_named_once() -> None:
    assert cause(ValueError("a\n b\x1b")) == "ValueError: a b\\x1b"
    assert cause(NotImplementedError()) == one_line(NotImplementedError()) == "NotImplementedError"


def test_the_colours_of_a_terminal_are_left_out() -> None:
    assert cause(ValueError("\x1b[96mstep 3/3\x1b[0m failed")) == "ValueError: step 3/3 failed"


def test_a_name_is_replaced_before_the_text_is_cut() -> None:
    error = OSError(f"{'x' * 195}/.a.part: no")
    assert cause(error, ("/.a.part", "/a")) == f"OSError: {'x' * 195}/a: n"


def test_json_of_no_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(BadInputError, match=r"run\.json: cannot be read as JSON \(.*recursion"):
        read_json(tmp_path / "run.json")
