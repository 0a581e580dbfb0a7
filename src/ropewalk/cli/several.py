"""What the commands that compare several models show while they work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from ropewalk.cli.progress import bar


class Counted:
    """A bar over measurements whose number is known, and a line for each arm whose last one is done.

    Args:
        console: where it is shown.
        each: how many measurements each arm has.
        arms: their names, in the order in which they are measured.
    """

    def __init__(self, console: Console, each: int, arms: Sequence[str]):
        self._console, self._each = console, each
        self._left = dict.fromkeys(arms, each)
        self._began: dict[str, float] = {}
        self._progress = bar(console, MofNCompleteColumn(), TimeRemainingColumn())
        self._task = self._progress.add_task("starting", total=each * len(arms))

    @contextmanager
    def shown(self) -> Iterator[Counted]:
        """Show the bar for the length of a with block."""
        with self._progress:
            yield self

    def start(self, arm: str) -> None:
        """The first measurement of an arm begins."""
        self._began[arm] = time.monotonic()
        self._progress.update(self._task, description=arm)

    def done(self, arm: str) -> None:
        """A measurement is done, or was done before."""
        self._progress.advance(self._task)
        self._left[arm] -= 1
        if self._left[arm]:
            return
        spent = f"{time.monotonic() - self._began[arm]:.1f} s" if arm in self._began else "measured before"
        line = f"{time.strftime('%H:%M:%S')}  {arm:<36} {spent}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
