from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.sweeps import CONFIG, LocalNeedles, needles_folder

from ropewalk.errors import ArgumentError, RopewalkError
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.grid import Unit

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    from ropewalk.evaluation.ray_engine import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # a full machine is none of these tests' business
        with connected("") as made:
            yield made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_loses_nothing_and_nothing_is_there_twice(ray: Any, tmp_path: Path) -> None:
    from ropewalk.evaluation.ray_engine import RayEngine

    needles = LocalNeedles(needles_folder(tmp_path))
    units = needles.units(CONFIG)
    killed: list[int] = []
    seen: list[str] = []
    with Cells(tmp_path / "out") as cells:

        def done(unit: Unit, number: int, cell: Cell) -> None:
            seen.append(cell.key)
            if len(seen) == 2:  # in the middle of a unit
                killed.append(engine.pids[int(threading.current_thread().name.split()[-1])])
                os.kill(killed[0], signal.SIGKILL)

        engine = RayEngine(ray, needles.entry, needles.identity, cells, workers=2, on_done=done)
        engine.run(units)
        assert killed
        keys = [key for unit in units for key in unit.keys]
        assert sorted(seen) == sorted(keys) == sorted(cells.cells)
    again = Cells(tmp_path / "out")
    assert again.cells.keys() == set(keys) and again.duplicates == 0 and not again.damaged
    with Cells(tmp_path / "alone") as cells:
        needles.measure(units, cells)
        for key in keys:
            assert again.answers(again.cells[key]) == cells.answers(cells.cells[key])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_goes_wrong_in_a_worker_is_told_in_one_line(ray: Any, tmp_path: Path) -> None:
    from ropewalk.evaluation.ray_engine import RayEngine

    needles = LocalNeedles(needles_folder(tmp_path))
    with Cells(tmp_path / "out") as cells:
        engine = RayEngine(ray, needles.entry, needles.identity | {"weights": "0", "tokenizer": "1"}, cells, workers=1)
        with pytest.raises(RopewalkError, match="differs in weights and tokenizer on ") as caught:
            engine.run(needles.units(CONFIG))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nowhere", "host:port"])
def test_an_address_that_does_not_answer_is_one_line(address: str) -> None:
    from ropewalk.evaluation.ray_engine import connected

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ArgumentError, match="address=") as caught, connected(address.format(port=port)):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_port_where_something_else_listens_is_told_from_a_cluster() -> None:
    from ropewalk.evaluation.ray_engine import connected

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ArgumentError, match="something else listens"), connected(address):
            pass
