"""The command line of several models, and what is shown while they are measured."""

from __future__ import annotations

from rich.console import Console

from ropewalk.cli.several import Counted


def test_each_arm_has_a_line_when_it_is_done() -> None:
    console = Console(width=100, record=True, force_terminal=False)
    counted = Counted(console, 2, ["one [/x]", "two"])
    counted.done("one [/x]")
    counted.done("one [/x]")  # both were in the store
    counted.start("two")
    (task,) = counted._progress.tasks
    assert (task.completed, task.total, task.description) == (2, 4, "two")
    counted.done("two")
    assert "two" not in console.export_text(clear=False)
    counted.done("two")
    printed = console.export_text().splitlines()
    assert "one [/x]" in printed[0] and printed[0].endswith("measured before")
    assert "two" in printed[1] and printed[1].endswith(" s")
