"""What holds of every training task's splits."""

from __future__ import annotations

from typing import Any

from ropewalk.data.dataset_cache import NO_LABEL
from ropewalk.data.splits import SPLITS
from ropewalk.training.tasks.base import SequenceTask


def rows(task: SequenceTask, split: str) -> list[dict[str, Any]]:
    """All rows of a split, after checking their form: lengths, ids within the vocabulary, labels that name tokens."""
    found = list(task.dataset(split))
    assert found
    longest, vocabulary_size = task.longest, task.vocabulary_size
    for row in found:
        assert set(row) == {"input_ids", "labels"}
        assert len(row["input_ids"]) == len(row["labels"]) <= longest
        assert all(0 <= token < vocabulary_size for token in row["input_ids"])
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        assert all(label in (token, NO_LABEL) for token, label in pairs)
        assert any(label != NO_LABEL for label in row["labels"][1:]) and row["labels"][0] == NO_LABEL
    return found


def ids(task: SequenceTask, split: str) -> list[tuple[int, ...]]:
    """The sequences of a split."""
    return [tuple(row["input_ids"]) for row in rows(task, split)]


def everything(task: SequenceTask) -> dict[str, list[tuple[int, ...]]]:
    """The sequences of all splits."""
    return {split: ids(task, split) for split in SPLITS}
