"""What holds for all tests: one thread, and shapes checked wherever there are shapes."""

from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import fx

from neural_polarizer import cache, surgery

torch.set_num_threads(1)  # the tensors of these tests are too small to share out


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests train is kept apart from what the user has trained, also by fixtures of whole modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(tmp_path_factory.getbasetemp() / "polarizer_home"))
        yield


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
