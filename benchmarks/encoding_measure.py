"""What the parts of benchmarks/encodings.py share: taking turns, tables, and memory as Linux tells it."""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HEADS, SIZE = 8, 64


@dataclasses.dataclass
class Table:
    """A part of the page, and the raw figures behind it."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    raw: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """The part in Markdown."""
        rows = (self.header, ("---",) * len(self.header), *self.rows)
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return ["", f"## {self.title}", "", *(f"| {' | '.join(row)} |" for row in rows), *notes]


def turns(jobs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job in each round, after one round that isn't counted; the order changes every round."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    order = list(jobs)
    for round_ in range(rounds + 1):
        random.Random(round_).shuffle(order)
        for name in order:
            seconds = jobs[name]()
            if round_:
                times[name].append(seconds)
    return times


def against(times: Mapping[str, list[float]], base: str) -> dict[str, tuple[str, ...]]:
    """For each arm: median and least time, and the ratios of both to those of `base`."""
    plain = times[base]
    found = {}
    for name, seconds in times.items():
        middle, least = statistics.median(seconds), min(seconds)
        ratios = middle / statistics.median(plain), least / min(plain)
        found[name] = (time_text(middle), time_text(least), *(f"{ratio:.2f}" for ratio in ratios))
    return found


def time_text(seconds: float) -> str:
    """As a person reads it."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def size_text(number: float) -> str:
    """Bytes in MiB."""
    return f"{number / 2**20:,.0f} MiB"


def progress(text: str) -> None:
    """A line for who waits."""
    print(text, file=sys.stderr, flush=True)


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process that are in memory, or with VmHWM were at most since `restart_peak`; Linux."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def restart_peak() -> None:
    """Let the peak start again from what is in memory now."""
    Path("/proc/self/clear_refs").write_text("5")


def available() -> int:
    """Bytes that the machine can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
