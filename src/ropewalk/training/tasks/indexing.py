"""Indirect indexing (PoPE, arXiv 2509.10534): find a letter by what it is, then another by where it is."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.drawn import Drawn, DrawnTask, Random, put, put_number
from ropewalk.validation import check_whole_field

LETTERS = string.ascii_uppercase + string.ascii_lowercase
# Token ids: 0 fills up, then these in turn.
_DELIMITER, _PLUS, _MINUS, _ZERO = 1, 2, 3, 4
_FIRST_LETTER = 14


@dataclass(frozen=True)
class IndirectIndexing(DrawnTask):
    """Which letter is so many places left or right of a given one: `<string>, <letter>, <signed shift>, <target>`.

    letters: how many of A-Z a-z, in this order, strings are drawn from. least, most: letters of a string, all
    distinct; each length is as likely. shift: places at most between the given letter and the target. The given
    letter is drawn evenly from the string, then the shift evenly from those that stay inside it. A shift has always
    a sign and no leading zeros; none is spelled +0. A letter, a digit, a sign and a delimiter (", ") are one token
    each; the target alone is labelled. The defaults are the paper's. Raises ArgumentError for values that can't be
    used.
    """

    name: ClassVar[str] = "indexing"
    summary: ClassVar[str] = "Indirect indexing: which letter is so many places left or right of a given one"
    metric: ClassVar[str] = "accuracy"

    letters: int = 52
    least: int = 20
    most: int = 40
    shift: int = 15
    train: int = 1_000_000
    validation: int = 10_000
    test: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole_field(self, "letters", 1, len(LETTERS))
        check_whole_field(self, "most", 1, self.letters)
        check_whole_field(self, "least", 1, self.most)
        check_whole_field(self, "shift", 0)
        self.check_counts()

    @property
    def vocabulary_size(self) -> int:
        return _FIRST_LETTER + self.letters

    @property
    def longest(self) -> int:
        return self.most + len(", X, +, Y".replace(" ", "")) + len(str(min(self.shift, self.most - 1)))

    @property
    def different(self) -> int:
        lengths = range(self.least, self.most + 1)
        shifts = range(-self.shift, self.shift + 1)
        return sum(math.perm(self.letters, n) * sum(max(0, n - abs(s)) for s in shifts) for n in lengths)

    def draw(self, random: Random, count: int) -> Drawn:
        letters = _FIRST_LETTER + random.shuffled(count, self.letters)[:, : self.most]
        lengths = self.least + random.below(self.most - self.least + 1, count)
        given = random.below(lengths, count)
        lowest, highest = np.maximum(-self.shift, -given), np.minimum(self.shift, lengths - 1 - given)
        shifts = lowest + random.below(highest - lowest + 1, count)

        rows = np.arange(count)
        tokens = np.zeros((count, self.longest), dtype=np.int16)
        tokens[:, : self.most] = np.where(np.arange(self.most) < lengths[:, None], letters, 0)
        put(tokens, lengths, _DELIMITER)
        put(tokens, lengths + 1, letters[rows, given])
        put(tokens, lengths + 2, _DELIMITER)
        put(tokens, lengths + 3, np.where(shifts < 0, _MINUS, _PLUS))
        ends = put_number(tokens, lengths + 4, np.abs(shifts), _ZERO)
        put(tokens, ends, _DELIMITER)
        put(tokens, ends + 1, letters[rows, given + shifts])
        return Drawn(tokens, ends + 2, np.ones_like(ends))

    def spell(self, tokens: list[int]) -> str:
        """The text of an example's tokens, without what fills it up; raises ArgumentError for other tokens."""
        spelled = ["", ", ", "+", "-", *string.digits, *LETTERS[: self.letters]]
        if outside := [token for token in tokens if not 0 <= token < len(spelled)]:
            raise ArgumentError("tokens", outside[0], f"must be from 0 to {len(spelled) - 1}")
        return "".join(spelled[token] for token in tokens)
