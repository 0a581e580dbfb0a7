"""Sequences on their way to a model: rows straight out of Arrow, one order for all encodings, batches padded right."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ropewalk.data.dataset_cache import NO_LABEL
from ropewalk.errors import ArgumentError

if TYPE_CHECKING:
    import datasets
    import pyarrow

Row = tuple[NDArray[Any], NDArray[Any]]
_COLUMNS = ("input_ids", "labels")
# A column of at most so many bytes is copied into memory, where a batch of it is had in a few strokes.
_COPIED = 1 << 28


class Ragged(NamedTuple):
    """Rows of different lengths: how many tokens each has, and all their ids and labels end to end."""

    lengths: NDArray[Any]
    ids: NDArray[Any]
    labels: NDArray[Any]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Ragged:
        """From rows one by one."""
        lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
        return cls(lengths, np.concatenate([ids for ids, _ in rows]), np.concatenate([labels for _, labels in rows]))


class Rows(Dataset[Row]):
    """A split's sequences, each as (token ids, labels).

    They are read where Arrow has them, mapped from the file, so that no copy of a large split is made. A dataset with a
    transform of its own is asked for each row instead.
    """

    def __init__(self, dataset: datasets.Dataset):
        self._length = len(dataset)
        self._plain: datasets.Dataset | None = None
        if dataset.format["type"] == "custom":
            self._plain = dataset
            return
        stored = dataset.flatten_indices() if dataset._indices is not None else dataset
        self._columns = tuple(_Lists(stored.data.column(name)) for name in _COLUMNS)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:
        if self._plain is not None:
            row = self._plain[index]
            return np.asarray(row["input_ids"]), np.asarray(row["labels"])
        return self._columns[0][index], self._columns[1][index]

    def __getitems__(self, indices: Sequence[int]) -> Ragged:
        """Many rows at once, which is how a data loader asks where it can."""
        if self._plain is not None:
            return Ragged.of([self[index] for index in indices])
        (lengths, ids), (_, labels) = (column.many(np.asarray(indices)) for column in self._columns)
        return Ragged(lengths, ids, labels)


class _Lists:
    """A column of lists of integers, by row, out of however many chunks it has."""

    def __init__(self, column: pyarrow.ChunkedArray):
        whole = column.combine_chunks() if column.nbytes <= _COPIED else column
        chunks = [chunk for chunk in getattr(whole, "chunks", [whole]) if len(chunk)]
        self._parts = [_part(chunk) for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)

    def __getitem__(self, index: int) -> NDArray[Any]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        values, offsets = self._parts[part]
        place = index - (int(self._ends[part - 1]) if part else 0)
        return values[offsets[place] : offsets[place + 1]]

    def many(self, indices: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(lengths, numbers end to end) of the rows."""
        if len(self._parts) > 1:
            rows = [self[index] for index in indices.tolist()]
            return np.array([len(row) for row in rows]), np.concatenate(rows)
        values, offsets = self._parts[0]
        starts = offsets[indices].astype(np.int64)
        lengths = offsets[indices + 1] - starts
        ends = np.cumsum(lengths)
        return lengths, values[np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1])]


def _part(chunk: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """A chunk's numbers end to end, and where each row begins and ends in them."""
    import pyarrow

    if isinstance(chunk, pyarrow.ExtensionArray):
        chunk = chunk.storage
    if pyarrow.types.is_fixed_size_list(chunk.type):
        first, width = chunk.offset, chunk.type.list_size
        offsets = np.arange(first, first + len(chunk) + 1) * width
    else:
        offsets = chunk.offsets.to_numpy()
    return chunk.values.to_numpy(zero_copy_only=True), offsets


class Order(Sampler[int]):
    """`count` row numbers: all rows in a random order, then all in another, and so on, by the seed alone.

    A whole run is one pass through it, so a batch may hold the end of one round and the start of the next. What the
    model draws doesn't touch it, and any number of processes cuts the same sequence into its batches.
    """

    def __init__(self, rows: int, count: int, seed: int):
        self._rows, self._count, self._seed = rows, count, seed

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._endless(), self._count)

    def _endless(self) -> Iterator[int]:
        for round_number in itertools.count():
            yield from np.random.default_rng([self._seed, round_number]).permutation(self._rows).tolist()


class Collator:
    """Rows as a batch {"input_ids", "labels"}, (B, N) int64, padded on the right to the longest.

    No attention mask is made: causal attention never looks at what comes after, and padding has no labels.

    Args:
        padding: the token that fills up.
        vocabulary_size: one more than the largest token id; a larger one is refused with an ArgumentError.
    """

    def __init__(self, padding: int, vocabulary_size: int):
        self._padding, self._vocabulary_size = padding, vocabulary_size

    def __call__(self, rows: Ragged) -> dict[str, Tensor]:
        is_filled = np.arange(rows.lengths.max()) < rows.lengths[:, None]
        found = []
        for name, padding, numbers in zip(_COLUMNS, (self._padding, NO_LABEL), rows[1:], strict=True):
            batch = np.full(is_filled.shape, padding, dtype=np.int64)
            batch[is_filled] = numbers
            self._check(name, numbers)
            found.append(torch.from_numpy(batch))
        return dict(zip(_COLUMNS, found, strict=True))

    def _check(self, name: str, found: NDArray[np.int64]) -> None:
        least = 0 if name == "input_ids" else NO_LABEL
        for extreme in (found.max(initial=0), found.min(initial=0)):
            if not least <= extreme < self._vocabulary_size:
                remedy = f"the task's tokens are 0 to {self._vocabulary_size - 1}; mend its data or vocabulary"
                raise ArgumentError(name, int(extreme), remedy)


def rows_of(dataset: datasets.Dataset, split: str, most: int | None = None) -> Rows:
    """The rows of a split, the first `most` of them; refuses one without rows or without the two columns."""
    for name in _COLUMNS:
        if name not in dataset.column_names:
            raise ArgumentError("dataset", split, f"it has no column {name}")
    if not len(dataset):
        raise ArgumentError("data", split, "there isn't a single sequence in this split; give more data")
    return Rows(dataset if most is None or most >= len(dataset) else dataset.select(range(most)))


class Clock:
    """How long the loop of steps has taken, and how much of that it has waited for data, in seconds."""

    def __init__(self, stepping: float = 0.0, waiting: float = 0.0):
        self.stepping, self.waiting = stepping, waiting
        self._began: float | None = None

    def begin_step(self) -> None:
        """A step begins, with its data."""
        self._began = time.perf_counter()

    def end_step(self) -> None:
        """The optimizer has made its step."""
        if self._began is not None:
            self.stepping += time.perf_counter() - self._began
        self._began = None

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time until each is there counts as waiting."""
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waiting += time.perf_counter() - began
            yield batch

    @property
    def share(self) -> float:
        """Waiting as a share of the loop's time, 0 to 1."""
        return self.waiting / self.stepping if self.stepping else 0.0
