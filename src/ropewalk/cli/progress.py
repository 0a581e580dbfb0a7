"""What a long run shows while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from ropewalk.evaluation.sweep import Done


def bar(console: Console, *ends: ProgressColumn) -> Progress:
    """A bar that goes when it is done: what is under way, how far it is, and what stands behind it."""
    text = TextColumn("{task.description}", markup=False)
    return Progress(SpinnerColumn(), text, BarColumn(bar_width=24), *ends, console=console, transient=True)


class Watch:
    """A bar over the time budget, and a line for each measurement that is done."""

    def __init__(self, console: Console, budget: float, spent: float):
        self._console = console
        self._progress = bar(console, _TimeLeft(budget - spent))
        self._task = self._progress.add_task("starting", total=budget, completed=int(spent))
        self._budget, self._began, self._spent = budget, time.monotonic(), spent

    @contextmanager
    def shown(self) -> Iterator[Watch]:
        """Show the bar for the length of a with block."""
        with self._progress:
            yield self

    def start(self, stage: str, candidate: str, prompt: str) -> None:
        """A measurement begins."""
        self._move(f"{stage}: {candidate}")

    def done(self, done: Done) -> None:
        """A measurement has ended."""
        right = sum(answer.is_exact for answer in done.answers)
        nll = sum(answer.nll for answer in done.answers) / len(done.answers)
        self._console.print(
            f"{time.strftime('%H:%M:%S')}  {done.stage:<18} {done.candidate:<28} "
            f"{right:>2} of {len(done.answers)} right  NLL {nll:6.3f}  {done.seconds:5.1f} s",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        self._move(done.stage)

    def _move(self, description: str) -> None:
        spent = self._spent + time.monotonic() - self._began
        self._progress.update(self._task, description=description, completed=min(spent, self._budget))


class _TimeLeft(ProgressColumn):
    """Hours, minutes and seconds left of the budget; the last stages may overdraw it a little."""

    def __init__(self, left: float):
        super().__init__()
        self._end = time.monotonic() + left

    def render(self, task: Task) -> Text:
        left = self._end - time.monotonic()
        if left <= 0:
            return Text("finishing")
        return Text(f"{clock(left)} left")


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours before them where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours = f"{minutes // 60}:" if minutes >= 60 else ""
    return f"{hours}{minutes % 60:02d}:{rest:02d}"
