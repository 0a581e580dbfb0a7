"""What `ropewalk sweep` shows while it works: a bar over the cells at hand, and a line for each that is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from ropewalk.cli.progress import bar
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.grid import Unit
from ropewalk.evaluation.sweep_run import Watch


class SweepWatch(Watch):
    """Cells done of those expected, and the unit at hand."""

    def __init__(self, console: Console):
        self._console = console
        self._progress = bar(console, MofNCompleteColumn(), TimeRemainingColumn())
        self._task = self._progress.add_task("loading", total=None)

    @contextmanager
    def shown(self) -> Iterator[SweepWatch]:
        """Show the bar for the length of a with block."""
        with self._progress:
            yield self

    def calibrating(self, model: str, length: int) -> None:
        self._progress.update(self._task, description=f"head statistics of {model}, {length:,} tokens", total=None)

    def expect(self, units: Sequence[Unit], cells: Cells) -> None:
        keys = {key for unit in units for key in unit.keys}
        there = len(keys & cells.cells.keys())
        self._progress.reset(self._task, total=len(keys), completed=there, description="measuring")
        if there and there < len(keys):
            self._console.print(f"{time.strftime('%H:%M:%S')}  {there:,} of {len(keys):,} cells are there already")

    def start(self, unit: Unit) -> None:
        self._progress.update(self._task, description=unit.name)

    def done(self, unit: Unit, number: int, cell: Cell) -> None:
        right = "" if cell.right is None else f"{cell.right:>3} of {cell.n} right  "
        self._console.print(
            f"{time.strftime('%H:%M:%S')}  {unit.name:<44} {unit.candidates[number].name:<36} "
            f"{right}NLL {cell.nll:6.3f}  {cell.seconds:5.1f} s",
            soft_wrap=True,
        )
        self._progress.advance(self._task)
