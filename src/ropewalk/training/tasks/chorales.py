"""Bach's chorales by voice, a token a pitch."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ropewalk.data.dataset_cache import pieces, sequences, sha256_of
from ropewalk.data.splits import SPLITS, check_split
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.base import SequenceTask
from ropewalk.validation import check_sequence_length

if TYPE_CHECKING:
    from datasets import Dataset

VOICES = 4
LOWEST, HIGHEST = 21, 108  # the piano's 88 keys, as MIDI numbers them
_REST = 1
_KEYS = dict(zip(SPLITS, ("train", "valid", "test"), strict=True))


@dataclass(frozen=True)
class Chorales(SequenceTask):
    """Four-part chorales in raster order: each step's voices in turn, from the first to the last, then the next step.

    path: a JSON file, {"train": [...], "valid": [...], "test": [...]}, each a list of chorales, each a list of steps,
    each a list of 4 MIDI pitches from 21 to 108; -1, null or NaN is a rest. (The public data set JSB chorales has
    this form.) length: tokens of a sequence, a multiple of 4; a longer chorale goes on in the next sequence, so that
    each starts with a first voice. The 90 tokens: 0 fills up, 1 is a rest, 2 to 89 are the pitches from 21 on. All
    tokens but a sequence's first are labelled. Raises ArgumentError for values that can't be used, and when the data
    are read, for a file that isn't of this form.
    """

    name: ClassVar[str] = "chorales"
    summary: ClassVar[str] = "Chorales: Bach's four voices, step by step"
    metric: ClassVar[str] = "nll"

    path: str
    length: int = 2048

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        check_sequence_length(self.length)
        if self.length % VOICES:
            raise ArgumentError("length", self.length, f"must be a multiple of {VOICES}, the voices of a step")

    @property
    def sha256(self) -> str:
        """The SHA-256 (hex) of the file."""
        return sha256_of(self.path, "path")

    @property
    def vocabulary_size(self) -> int:
        return _REST + 1 + HIGHEST - LOWEST + 1

    @property
    def longest(self) -> int:
        read = _read(self.path, self.sha256)
        return min(self.length, max(len(chorale) for split in SPLITS for chorale in read[split]))

    def dataset(self, split: str) -> Dataset:
        check_split(split)
        none = ArgumentError("path", self.path, f"{_KEYS[split]} holds no chorales; each split must have some")
        depends_on = {"path": self.path, "sha256": self.sha256, "length": self.length, "split": split}
        return sequences(_rows, self.vocabulary_size, none, **depends_on)


def _rows(path: str, sha256: str, length: int, split: str) -> Iterator[dict[str, Any]]:
    for chorale in _read(path, sha256)[split]:
        yield from pieces(chorale, length)


@functools.lru_cache(maxsize=4)
def _read(path: str, sha256: str) -> dict[str, list[list[int]]]:
    """The tokens of each chorale of each split; `sha256` makes a changed file another one for the cache."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        reason = "it isn't UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error).partition("\n")[0]
        raise ArgumentError("path", path, f"isn't JSON ({reason}); give a JSON file of chorales") from error
    if not isinstance(content, dict) or (missing := [key for key in _KEYS.values() if key not in content]):
        lacking = "isn't a JSON object" if not isinstance(content, dict) else f"lacks {' and '.join(missing)}"
        raise ArgumentError("path", path, f"{lacking}; the keys train, valid and test must each hold chorales")
    read = {}
    for split, key in _KEYS.items():
        if not isinstance(content[key], list) or not any(content[key]):
            raise ArgumentError("path", path, f"{key} holds no chorales; it must be a list of them")
        read[split] = [tokens for i, chorale in enumerate(content[key]) if (tokens := _tokens(path, key, i, chorale))]
    return read


def _tokens(path: str, key: str, index: int, chorale: Any) -> list[int]:
    if not isinstance(chorale, list):
        raise ArgumentError("path", path, f"{key}[{index}] is no chorale; it must be a list of steps")
    tokens = []
    for number, step in enumerate(chorale):
        where = f"{key}[{index}][{number}]"
        if not isinstance(step, list) or len(step) != VOICES:
            found = f"has {len(step)} values" if isinstance(step, list) else f"is {step!r:.40}"
            raise ArgumentError("path", path, f"{where} {found}; a step must be a list of {VOICES} pitches")
        for pitch in step:
            if pitch is None or pitch == -1 or pitch != pitch:
                tokens.append(_REST)
            elif isinstance(pitch, (int, float)) and pitch in range(LOWEST, HIGHEST + 1):
                tokens.append(_REST + 1 + int(pitch) - LOWEST)
            else:
                remedy = f"{where} has the pitch {pitch!r:.40}; must be from {LOWEST} to {HIGHEST}, or -1 for a rest"
                raise ArgumentError("path", path, remedy)
    return tokens
