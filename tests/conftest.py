"""What holds for all tests: one thread, and shapes checked wherever there are shapes."""

import re
import socket
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import fx

CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"


def _with_shapes() -> list[str]:
    """The modules that speak of shapes; to check the readers of files, byte by byte, as well would double the time."""
    package = find_spec("neural_polarizer")
    assert package is not None
    assert package.submodule_search_locations is not None
    root = Path(package.submodule_search_locations[0])
    signs = re.compile(r"from jaxtyping import|import .*\bByteImages\b")
    found = [path for path in root.rglob("*.py") if signs.search(path.read_text(encoding="utf-8"))]
    names = [path.relative_to(root.parent).with_suffix("").parts for path in found]
    return [".".join(name).removesuffix(".__init__") for name in names]


jaxtyping.install_import_hook(_with_shapes(), CHECKER)

from neural_polarizer import NeuralPolarizerWarning, cache  # noqa: E402, imported before the hook unchecked
from neural_polarizer.layer import surgery  # noqa: E402, likewise

torch.set_num_threads(1)  # the tensors of these tests are too small to share out


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests train is kept apart from what the user has trained, also by fixtures of whole modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(tmp_path_factory.getbasetemp() / "polarizer_home"))
        yield


@pytest.fixture(autouse=True)
def _notes_are_no_errors() -> None:
    """What ``purify`` warns of is in its ``notes``, too; tests look at these."""
    warnings.filterwarnings("ignore", category=NeuralPolarizerWarning)


@pytest.fixture(autouse=True)
def _trace_without_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a network is traced its values are proxies, which the checker would refuse where it wants tensors.

    Without this, every test of a network with annotated shapes would quietly take the path of networks that cannot
    be traced. In production nothing is checked.
    """
    trace = surgery._Tracer.trace

    def unchecked(self: surgery._Tracer, *args: Any, **kwargs: Any) -> fx.Graph:
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return trace(self, *args, **kwargs)
        finally:
            jaxtyping.config.update("jaxtyping_disable", before)

    monkeypatch.setattr(surgery._Tracer, "trace", unchecked)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The package as users meet it: without the checker, which would catch a misspelt setting before we do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks for something over the network fails the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The library; tests that want it skip where it is not installed."""
    return pytest.importorskip("transformers", reason="extra hf is not installed")
