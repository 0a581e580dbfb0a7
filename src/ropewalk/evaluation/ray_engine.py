"""Units spread over a Ray cluster: workers measure, this process alone writes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ropewalk.errors import ArgumentError, RopewalkError
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.grid import Measured, Unit, measure_unit
from ropewalk.evaluation.local_engine import POLL
from ropewalk.evaluation.sweep_config import ModelEntry

ANSWER_SECONDS, HEALTH_SECONDS = 5.0, 60.0
# What workers die of so often is what kills them.
MOST_DEATHS = 3


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at an address (`host:port` or `auto`), or to one made here.

    Raises:
        ArgumentError: ray isn't installed, or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ArgumentError("engine", "ray", "the package isn't installed; pip install 'ropewalk[ray]'") from error
    _check_answers(address)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if not address:
        quiet |= {"include_dashboard": False}
    try:
        ray.init(address=address or "local", **quiet)
    except Exception as error:  # the network, versions that differ and dead clusters each fail in their own way
        reason = " ".join(str(error).split())[:160]
        raise _no_answer(address, reason) from error
    try:
        yield ray
    finally:
        ray.shutdown()


class RayEngine:
    """Workers on a cluster, each with the model in memory; when one dies, its unit's missing cells go to another.

    Args:
        ray: from `connected`.
        entry: the model, under a name by which every machine of the cluster finds it.
        identity: of the model here; a worker that finds another one under that name is refused.
        workers: how many; 0 for one a machine.
        on_start, on_done: as `Local` calls them.
    """

    def __init__(
        self,
        ray: Any,
        entry: ModelEntry,
        identity: Mapping[str, str | None],
        cells: Cells,
        workers: int = 0,
        on_start: Callable[[Unit], None] = lambda _: None,
        on_done: Callable[[Unit, int, Cell], None] = lambda *_: None,
    ):
        self._ray, self._entry, self._identity, self._cells = ray, entry, dict(identity), cells
        self._on_start, self._on_done = on_start, on_done
        machines = [node for node in ray.nodes() if node["Alive"]]
        self._workers = workers or len(machines)
        total = ray.cluster_resources()
        # Each worker gets its share of the processors as threads, and of the GPUs where there are any.
        self._share = {
            "num_cpus": max(1, int(total.get("CPU", 1)) // self._workers),
            "num_gpus": total.get("GPU", 0) / self._workers,
        }
        # By identity, as comparing texts takes long; each is held, so that no other can get its id.
        self._tasks: dict[int, tuple[Any, Any]] = {}
        self._lock = threading.Lock()
        self._alive: dict[int, Any] = {}
        self._starting: dict[int, tuple[Any, Any]] = {}
        self.pids: dict[int, int] = {}

    def run(self, units: Sequence[Unit]) -> None:
        """Measure what isn't in the folder yet; on return every cell of every unit is."""
        waiting = [unit for unit in units if self._missing(unit)]
        while waiting:
            self._spread(waiting)
            waiting = [unit for unit in waiting if self._missing(unit)]
            if waiting:  # for another process, or for its claims
                time.sleep(POLL)
                self._cells.refresh()

    def _spread(self, units: Sequence[Unit]) -> None:
        """Measure units, as many at once as there are workers."""
        run = _Run(units)
        places = range(min(self._workers, len(units)))
        threads = [
            threading.Thread(target=self._work, args=(place, run), name=f"worker {place}", daemon=True)
            for place in places
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
        if run.failures:
            raise run.failures[0]

    def _work(self, place: int, run: _Run) -> None:
        """One worker after the other in one place, until nothing is left; free ones take over from the dead."""
        dead = self._ray.exceptions.RayActorError
        while run.left and not run.failures:
            unit = None
            try:
                worker = self._worker(place)
                unit = run.next() if worker is not None else None
                if unit is not None:
                    self._measure(worker, unit)
                    run.done()
            except dead as error:
                self._alive.pop(place, None)
                self._starting.pop(place, None)
                if "creation task" in str(error):
                    run.failures.append(_of_worker(error))
                else:
                    run.died(unit)
            except self._ray.exceptions.RayError as error:
                run.failures.append(_of_worker(error))
            except BaseException as error:
                run.failures.append(error)

    def _worker(self, place: int) -> Any:
        """The worker in a place; None while a new one is starting there."""
        if place in self._alive:
            return self._alive[place]
        if place not in self._starting:
            made = self._ray.remote(_Worker).options(max_restarts=0, **self._share)
            worker = made.remote(self._entry, self._identity, int(self._share["num_cpus"]))
            self._starting[place] = worker, worker.pid.remote()
        worker, pid = self._starting[place]
        if not self._ray.wait([pid], timeout=POLL)[0]:
            return None
        self.pids[place] = self._ray.get(pid)
        self._alive[place] = worker
        del self._starting[place]
        return worker

    def _measure(self, worker: Any, unit: Unit) -> None:
        with self._lock:
            # One unit at a time, as what a lock costs grows with how many a process holds.
            mine = self._cells.claim(self._missing(unit))
            if not mine:
                return
            self._on_start(unit)
            # A task holds its whole text: it goes to each machine once.
            if id(unit.task) not in self._tasks:
                self._tasks[id(unit.task)] = unit.task, self._ray.put(unit.task)
            task = self._tasks[id(unit.task)][1]
        sent = dataclasses.replace(unit, task=None, contents={})  # type: ignore[arg-type]
        numbers = [unit.keys.index(key) for key in mine]
        try:
            for ready in worker.measure.options(num_returns="streaming").remote(task, sent, numbers):
                measured = self._ray.get(ready)
                with self._lock:
                    if unit.keys[measured.number] not in self._cells.cells:
                        self._on_done(unit, measured.number, unit.put(self._cells, measured))
        finally:
            with self._lock:
                self._cells.release(mine)

    def _missing(self, unit: Unit) -> list[str]:
        return [key for key in unit.keys if key not in self._cells.cells]


class _Run:
    """Units on their way through the workers."""

    def __init__(self, units: Sequence[Unit]):
        self.failures: list[BaseException] = []
        self.left = len(units)
        self._waiting: queue.SimpleQueue[Unit] = queue.SimpleQueue()
        self._deaths: Counter[str] = Counter()
        self._lock = threading.Lock()
        for unit in units:
            self._waiting.put(unit)

    def next(self) -> Unit | None:
        """A unit to measure; None when all are with workers."""
        try:
            return self._waiting.get(timeout=POLL)
        except queue.Empty:
            return None

    def done(self) -> None:
        """A unit is measured."""
        with self._lock:
            self.left -= 1

    def died(self, unit: Unit | None) -> None:
        """A worker died with this unit, which goes to another, or while it started."""
        name = "started" if unit is None else f"measured {unit.name}"
        self._deaths[name] += 1
        if self._deaths[name] == MOST_DEATHS:
            reason = f"{MOST_DEATHS} workers died while they {name} (too little memory?); finished cells are kept"
            self.failures.append(RopewalkError(reason))
        elif unit is not None:
            self._waiting.put(unit)


class _Worker:
    """A model in a process of the cluster."""

    def __init__(self, entry: ModelEntry, wanted: Mapping[str, str | None], threads: int):
        import torch

        from ropewalk.evaluation.as_saved import as_saved
        from ropewalk.evaluation.identity import differing, identity
        from ropewalk.evaluation.reader import Reader
        from ropewalk.hub.loading import load_model

        torch.set_num_threads(threads)
        with _plain_errors():
            model, tokenizer = load_model(entry.name, dtype=entry.dtype, revision=entry.revision)
            as_saved(model, entry.name)
        if others := differing(wanted, identity(model, tokenizer)):
            where = f"{entry.name} differs in {' and '.join(others)} on {socket.gethostname()}"
            raise RopewalkError(f"{where}; give all machines the same model")
        self._reader = Reader(model, tokenizer)

    def pid(self) -> int:
        """This process's id; whoever asks waits until the model is loaded."""
        return os.getpid()

    def measure(self, task: Any, unit: Unit, numbers: Sequence[int]) -> Iterator[Measured]:
        """Measure some of a unit's candidates, one after the other."""
        with _plain_errors():
            yield from measure_unit(self._reader, dataclasses.replace(unit, task=task), numbers)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of ours as text alone: those with several arguments don't survive the way back."""
    try:
        yield
    except RopewalkError as error:
        raise RopewalkError(str(error)) from None


def _of_worker(error: Exception) -> RopewalkError:
    """What went wrong in a worker, in one line."""
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    return RopewalkError(f"a worker failed: {lines[-1] if lines else type(error).__name__}")


def _check_answers(address: str) -> None:
    """Whether a cluster answers at an address; `ray.init` itself would go on trying for minutes."""
    if not address or address == "auto":
        return
    if address.startswith("ray://"):
        remedy = "Ray's client can't hand over results as they come; run this on a machine of the cluster, with auto"
        raise ArgumentError("address", address, remedy)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ArgumentError("address", address, "give host:port or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, getattr(error, "strerror", None) or str(error)) from error
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        is_ray = subprocess.run(asked, capture_output=True, timeout=HEALTH_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        is_ray = False
    if not is_ray:
        raise _no_answer(address, "something else listens at this port")


def _no_answer(address: str, reason: str) -> ArgumentError:
    remedy = "start a cluster with `ray start --head`, or leave --address out to use this machine"
    return ArgumentError("address", address, f"no Ray cluster answers there ({reason}); {remedy}")
