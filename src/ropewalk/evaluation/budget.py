"""The time budget of a run, and what one measurement takes of it."""

from __future__ import annotations

import time

from ropewalk.evaluation.records import Store


class Clock:
    """The budget: seconds spent, by earlier runs too, and seconds left."""

    def __init__(self, budget: float, spent_before: float):
        self._budget, self._spent_before, self._began = budget, spent_before, time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left of the budget; below 0 once it is overdrawn."""
        return self._budget - self._spent_before - (time.monotonic() - self._began)


def unit_seconds(store: Store, stage: str, candidate: str) -> float:
    """Seconds of one measurement, from the first one made."""
    return next(
        float(r["seconds"])
        for r in store.records()
        if r.get("kind") == "answers" and r["stage"] == stage and r["candidate"] == candidate
    )
