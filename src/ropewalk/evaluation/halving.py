"""Successive halving: measure all candidates a little, the better half some more, until one is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep import Sweep, mean_nll
from ropewalk.tasks.base import PromptTask


def rounds(candidates: int, units: int) -> list[int]:
    """How many candidates each round measures on one new prompt, within `units` measurements in all.

    The first round takes as many as leave about a third of the units for later rounds; each round keeps the better
    half of the one before, and the last compares two. Units too few for a second round all go to the first.
    """
    if candidates < 1 or units < 1:
        return []
    first = min(candidates, max(2, math.ceil(units * 0.6)), units)
    if units - first < 2:
        first = min(candidates, units)
    sizes = [first]
    left = units - first
    while sizes[-1] > 2 or (sizes[-1] == 2 and len(sizes) == 1):
        size = max(2, math.ceil(sizes[-1] / 2))
        if size > left:
            break
        sizes.append(size)
        left -= size
    return sizes


def halve(
    sweep: Sweep,
    stage: str,
    candidates: Sequence[Candidate],
    task: PromptTask,
    units: int,
    first_prompt: int = 0,
) -> list[tuple[Candidate, list[Answer]]]:
    """The candidates measured, best first, with their answers; those that got further come before the others.

    Round i asks about prompt `first_prompt` + i. The sizes of the rounds are kept in the store when they are first
    decided, so that a run that goes on decides as the first one did.
    """
    sizes = _decided(sweep, stage, rounds(len(candidates), units))
    alive = list(candidates[: sizes[0]]) if sizes else []
    answers: dict[str, list[Answer]] = {c.name: [] for c in alive}
    dropped: list[Candidate] = []
    for number, size in enumerate(sizes):
        dropped = alive[size:] + dropped
        alive = alive[:size]
        for name, more in sweep.measure(stage, alive, task, [first_prompt + number]).items():
            answers[name] = answers[name] + more
        alive.sort(key=lambda c: mean_nll(answers[c.name]))
    return [(c, answers[c.name]) for c in [*alive, *dropped]]


def _decided(sweep: Sweep, stage: str, sizes: list[int]) -> list[int]:
    key = f"decision/{stage}"
    for record in sweep.store.records():
        if record["key"] == key:
            return list(record["sizes"])
    decision: dict[str, Any] = {"key": key, "kind": "decision", "stage": stage, "sizes": sizes}
    sweep.store.append(decision)
    return sizes
