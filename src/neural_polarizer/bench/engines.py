"""Where cells are computed: in this process, or by Ray on one machine or a cluster."""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any, NamedTuple

from neural_polarizer.bench.cells import Cell
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.work import Record, failed_record
from neural_polarizer.errors import BadInputError, EnvironmentFaultError

Compute = Callable[[Cell], Record]
RETRIES = 3


class Resources(NamedTuple):
    """What one cell needs of a machine."""

    cpus: int = 1  # threads of torch as well
    gpus: float = 0.0  # may be a fraction
    memory: int = 0  # in bytes; 0 leaves it open


class InlineEngine:
    """One cell after the other in this process."""

    slots = 1
    """How many cells it takes at a time."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._queue: deque[Cell] = deque()

    def submit(self, cell: Cell) -> None:
        """Begin with a cell."""
        self._queue.append(cell)

    def next(self) -> tuple[Cell, Record]:
        """Wait for one of the cells that were submitted; one that was lost has a failed record."""
        cell = self._queue.popleft()
        return cell, self._compute(cell)


class RayEngine:
    """Ray tasks, one a cell; a lost worker's cell is tried again."""

    def __init__(self, ray: Any, compute: Compute, store: Store, resources: Resources) -> None:
        self._ray = ray
        self._store = store
        self._running: dict[Any, Cell] = {}
        options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": RETRIES}
        if resources.memory:
            options["memory"] = resources.memory
        self._compute = ray.put(compute)
        self._task = ray.remote(**options)(_computed)
        there = ray.cluster_resources()
        fits = there.get("CPU", 0) // resources.cpus
        if resources.gpus:
            fits = min(fits, there.get("GPU", 0) // resources.gpus)
        if fits < 1:
            raise BadInputError(
                f"no room for a cell of {resources.cpus} CPUs and {resources.gpus:g} GPUs: the cluster has "
                f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
            )
        self.slots = int(2 * fits)  # one in reserve for each, so that no worker waits for the driver

    def submit(self, cell: Cell) -> None:
        self._running[self._task.remote(self._compute, cell)] = cell

    def next(self) -> tuple[Cell, Record]:
        done, _ = self._ray.wait(list(self._running), num_returns=1)
        cell = self._running.pop(done[0])
        try:
            return cell, self._ray.get(done[0])
        except EnvironmentFaultError:  # Ray raises it as what it was in the worker
            raise
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            record = failed_record(
                cell, f"it did not come back from Ray, which tries a lost worker's cell {RETRIES} times more: {first}"
            )
            self._store.write(record)
            return cell, record


def _computed(compute: Compute, cell: Cell) -> Record:
    return compute(cell)


@contextmanager
def ray_engine(
    compute: Compute, store: Store, resources: Resources, *, address: str | None, workers: int | None
) -> Iterator[RayEngine]:
    """Ray on this machine, or the cluster at ``address`` ("auto" finds one); started and stopped with the block.

    ``store`` gets the records of lost cells: a folder must be one that all machines see. ``workers`` are the CPUs of a
    cluster started here; None takes all.
    """
    try:
        import ray
    except ImportError:
        remedy = "pip install 'neural-polarizer[ray]', or use --engine inline"
        raise BadInputError(f"Ray is not installed: {remedy}") from None
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            num_cpus=workers if address is None else None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": str(resources.cpus),
                    "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), *sys.path))),
                }
            },
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadInputError(
            f"no Ray cluster at {address!r}: {error}; if it asks for a token, set RAY_AUTH_MODE=token here as well"
        ) from None
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray has put one of its own there
    try:
        yield RayEngine(ray, compute, store, resources)
    finally:
        ray.shutdown()
