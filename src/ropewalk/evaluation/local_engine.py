"""Units measured in this process, beside other processes that work in the same folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.grid import Unit, measure_unit
from ropewalk.evaluation.reader import Reader

# Seconds between two looks at what other processes have done.
POLL = 0.5


class Local:
    """Measures units one after the other; cells that another process has claimed are left to it.

    If that process dies, its claims are gone and the cells are measured here.

    Args:
        on_start: called with the unit that begins.
        on_done: called with the unit, the number of a candidate and its cell.
    """

    def __init__(
        self,
        reader: Reader,
        cells: Cells,
        on_start: Callable[[Unit], None] = lambda _: None,
        on_done: Callable[[Unit, int, Cell], None] = lambda *_: None,
    ):
        self._reader, self._cells = reader, cells
        self._on_start, self._on_done = on_start, on_done

    def run(self, units: Sequence[Unit]) -> None:
        """Measure what isn't in the folder yet; on return every cell of every unit is."""
        waiting = list(units)
        while waiting:
            waiting = [unit for unit in waiting if not self._measure(unit)]
            if waiting:
                time.sleep(POLL)
                self._cells.refresh()

    def _measure(self, unit: Unit) -> bool:
        """Measure a unit's cells that are nobody's; whether all its cells are there now."""
        missing = [key for key in unit.keys if key not in self._cells.cells]
        mine = self._cells.claim(missing) if missing else []
        if mine:
            self._on_start(unit)
            try:
                for measured in measure_unit(self._reader, unit, [unit.keys.index(key) for key in mine]):
                    self._on_done(unit, measured.number, unit.put(self._cells, measured))
            finally:
                self._cells.release(mine)
        return all(key in self._cells.cells for key in unit.keys)
