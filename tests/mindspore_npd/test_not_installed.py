"""Without MindSpore the package works, and its MindSpore part says what is missing."""

import importlib
import sys

import pytest

from neural_polarizer.errors import BadInputError


def test_a_missing_mindspore_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("neural_polarizer.mindspore")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mindspore", None)
    with pytest.raises(BadInputError, match=r"MindSpore is not installed: pip install 'neural-polarizer\[mindspore\]'"):
        importlib.import_module("neural_polarizer.mindspore")
