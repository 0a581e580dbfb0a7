"""What `ropewalk train` shows while it works: a bar over the steps of the run at hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, ProgressColumn, Task
from rich.text import Text

from ropewalk.cli.progress import bar, clock
from ropewalk.training.metrics import figure_text


class Steps:
    """Steps done, loss, metric and time left of a run, and a line for each run that is finished.

    Args:
        console: where it is shown.
        runs: of the comparison.
        metric: the task's, for its name and unit.
    """

    def __init__(self, console: Console, runs: int, metric: str):
        self._console, self._runs, self._metric = console, runs, metric
        self._done = 0
        self._first, self._began, self._name = 0, time.monotonic(), ""
        self._progress = bar(console, MofNCompleteColumn(), _Left())
        self._task = self._progress.add_task("preparing data", total=None)

    @contextmanager
    def shown(self) -> Iterator[Steps]:
        """Show the bar for the length of a with block."""
        with self._progress:
            yield self

    def began(self, run: str, step: int, steps: int) -> None:
        """A run begins, or goes on after a step."""
        self._first, self._began, self._name = step, time.monotonic(), run
        self._progress.update(self._task, total=steps, completed=step, description=self._describe(None, None), left="")
        if step:
            self._line(f"{run}: going on after step {step:,}")

    def moved(self, step: int, loss: float | None, metric: float | None) -> None:
        """A step is done."""
        total = self._progress.tasks[0].total or step
        pace = (time.monotonic() - self._began) / max(step - self._first, 1)
        left = clock((total - step) * pace)
        self._progress.update(self._task, completed=step, description=self._describe(loss, metric), left=left)

    def ended(self, run: str, metric: float | None, seconds: float) -> None:
        """A run is finished."""
        self._done += 1
        self._line(f"{run:<28} test {self._metric} {figure_text(metric, self._metric):<8} {clock(seconds):>8}")

    def _describe(self, loss: float | None, metric: float | None) -> str:
        words = [f"{self._done + 1} of {self._runs}: {self._name}"]
        if loss is not None:
            words.append(f"loss {loss:.4f}")
        if metric is not None:
            words.append(f"{self._metric} {figure_text(metric, self._metric)}")
        return "  ".join(words)

    def _line(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", markup=False, highlight=False, soft_wrap=True)


class _Left(ProgressColumn):
    """Time left of the run, evaluation included."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left", "")
        return Text(f"{left} left" if left else "")
