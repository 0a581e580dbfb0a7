"""A task of seconds for the tests of training: say a sequence's first token again at its end."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from ropewalk.tasks.sequences import NO_LABEL, SequenceTask
from ropewalk.training.recipe import ModelSize, Recipe

SIZE = ModelSize(hidden=16, heads=2, layers=2)


@dataclasses.dataclass(frozen=True)
class Echo(SequenceTask):
    """`rows` random sequences of 4 to 8 tokens and the first of them once more, which alone is labelled."""

    name: ClassVar[str] = "tiny-echo"
    summary: ClassVar[str] = "the first token again"
    metric: ClassVar[str] = "accuracy"

    rows: int = 48

    @property
    def vocabulary_size(self) -> int:
        return 12

    @property
    def longest(self) -> int:
        return 9

    def dataset(self, split: str) -> Dataset:
        random = np.random.default_rng(len(split))
        drawn = [random.integers(1, 12, random.integers(4, 9)).tolist() for _ in range(self.rows)]
        ids = [row + row[:1] for row in drawn]
        labels = [[NO_LABEL] * (len(row) - 1) + row[-1:] for row in ids]
        return Dataset.from_dict({"input_ids": ids, "labels": labels})


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": SIZE,
        "steps": 10,
        "batch": 4,
        "learning_rate": 1e-2,
        "log_every": 2,
        "evaluate_every": 4,
    }
    return Recipe("tiny-echo", "small", **(values | changes))


def losses(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A curve's points without the times."""
    return [{k: v for k, v in p.items() if k not in ("seconds", "stepping", "waiting")} for p in curve]


@contextlib.contextmanager
def quick_collections() -> Iterator[None]:
    """Each run starts with a full garbage collection, which takes a second on all that was imported: set that aside."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
