"""Tasks whose examples are drawn at random: splits that share none, and the same ones on every machine."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.data.dataset_cache import NO_LABEL, sequences
from ropewalk.data.splits import check_split
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.base import SequenceTask
from ropewalk.validation import check_whole_field

if TYPE_CHECKING:
    from datasets import Dataset

Tokens = NDArray[np.int16]
_AT_ONCE = 8192


@dataclass(frozen=True)
class Drawn:
    """Examples drawn together.

    tokens: (examples, longest), each row filled up with the padding. sizes: (examples,), tokens of each. answers:
    (examples,), how many tokens at its end are labelled.
    """

    tokens: Tokens
    sizes: NDArray[np.int64]
    answers: NDArray[np.int64]


class DrawnTask(SequenceTask):
    """A task whose examples are drawn; a subclass has the fields below and overrides `draw` and `different`.

    train, validation, test: examples of each split. The test set depends on `seed` and the task's own fields alone:
    it is drawn first, then validation without what is in the test set, then training without what is in either.
    """

    train: int
    validation: int
    test: int
    seed: int

    @property
    def different(self) -> int:
        """How many different examples there are."""
        raise NotImplementedError

    def draw(self, random: Random, count: int) -> Drawn:
        """Draw `count` examples."""
        raise NotImplementedError

    def dataset(self, split: str) -> Dataset:
        check_split(split)
        # What a split doesn't depend on is left out, so that it doesn't make another entry either.
        idle = {"test": ("validation", "train"), "validation": ("train",), "train": ()}[split]
        least = dataclasses.replace(self, **dict.fromkeys(idle, 1))
        none = ArgumentError(split, getattr(self, split), "no example could be drawn; draw from more")
        return sequences(_rows, self.vocabulary_size, none, task=least, split=split)

    def check_counts(self) -> None:
        """Refuse splits that are empty or that hold back more than half of all examples there are."""
        for name in ("train", "validation", "test"):
            check_whole_field(self, name, 1)
        check_whole_field(self, "seed", 0)
        held_back = self.validation + self.test
        if 2 * held_back > self.different:
            remedy = f"of {self.different:,} different examples at most half can be held back; draw from more, or fewer"
            raise ArgumentError("validation + test", held_back, remedy)


class Random:
    """Random numbers that are the same with every version of numpy: its RandomState is frozen."""

    def __init__(self, *seed: Any):
        digest = hashlib.sha256(repr(seed).encode()).digest()
        self._state = np.random.RandomState(np.frombuffer(digest, dtype="<u4").astype(np.uint32))

    def below(self, limit: Any, *shape: int) -> NDArray[np.int64]:
        """Whole numbers from 0 to limit - 1, all as likely; `limit` is a number or an array of that shape."""
        drawn: NDArray[np.int64] = (self._state.random_sample(shape) * limit).astype(np.int64)
        return drawn

    def shuffled(self, count: int, size: int) -> NDArray[np.int64]:
        """(count, size): rows of the numbers 0 to size - 1, each in an order of its own."""
        order: NDArray[np.int64] = np.argsort(self._state.random_sample((count, size)), axis=1, kind="stable")
        return order


def put(tokens: Tokens, places: NDArray[np.int64], values: Any) -> None:
    """Write a value in each row, at that row's place."""
    tokens[np.arange(len(tokens)), places] = values


def put_number(tokens: Tokens, places: NDArray[np.int64], numbers: NDArray[np.int64], zero: int) -> NDArray[np.int64]:
    """Write a number in each row, a token a digit, from that row's place on; returns the places after it.

    zero: the token of the digit 0, which those of the others follow.
    """
    digits = np.ones_like(numbers)
    for power in range(1, len(str(int(numbers.max(initial=0))))):
        digits += numbers >= 10**power
    for index in range(int(digits.max(initial=0))):
        rows = np.flatnonzero(digits > index)
        worth = 10 ** (digits[rows] - 1 - index)
        tokens[rows, places[rows] + index] = zero + numbers[rows] // worth % 10
    return places + digits


def _rows(task: DrawnTask, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split: those of validation and test differ from each other and from all others."""
    # Equal examples have equal keys, so none is shared; two that differ have equal ones in about 1 of 2^64 pairs.
    taken: set[int] = set()
    for name in ("test", "validation"):
        wanted = getattr(task, name)
        for drawn in _batches(task, name):
            kept: list[int] = []
            for row, key in enumerate(_keys(drawn.tokens).tolist()):
                if key not in taken and len(kept) < wanted:
                    taken.add(key)
                    kept.append(row)
            if name == split:
                yield from _examples(drawn, np.array(kept, dtype=np.int64))
            wanted -= len(kept)
            if not wanted:
                break
        if name == split:
            return
    held_back = np.array(sorted(taken), dtype=np.uint64)
    wanted = task.train
    for drawn in _batches(task, "train"):
        free = np.flatnonzero(~np.isin(_keys(drawn.tokens), held_back))[:wanted]
        yield from _examples(drawn, free)
        wanted -= len(free)
        if not wanted:
            return


def _batches(task: DrawnTask, split: str) -> Iterator[Drawn]:
    random = Random(task.name, task.seed, split)
    while True:
        yield task.draw(random, _AT_ONCE)


def _keys(tokens: Tokens) -> NDArray[np.uint64]:
    """(examples,): a number for each row that depends on all its tokens; sums wrap around at 2^64."""
    words = Random("keys").below(1 << 32, 2, tokens.shape[1]).astype(np.uint64)
    factors = (words[0] << np.uint64(32)) | words[1] | np.uint64(1)
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * factors
    mixed ^= mixed >> np.uint64(29)
    total: NDArray[np.uint64] = (mixed * factors[::-1]).sum(axis=1, dtype=np.uint64)
    return total


def _examples(drawn: Drawn, rows: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    columns = drawn.tokens[rows].tolist(), drawn.sizes[rows].tolist(), drawn.answers[rows].tolist()
    for tokens, size, answer in zip(*columns, strict=True):
        ids = tokens[:size]
        yield {"input_ids": ids, "labels": [NO_LABEL] * (size - answer) + ids[size - answer :]}
