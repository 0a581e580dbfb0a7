"""Small tasks that show in minutes what a model can look up: copying, induction and variable tracking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.drawn import Drawn, DrawnTask, Random, put
from ropewalk.validation import check_whole_field

# Ids of tokens are 16 bits wide.
_MOST_LETTERS = 30_000
_SEPARATOR = 1


@dataclass(frozen=True)
class Copying(DrawnTask):
    """A string of letters, a separator, and the string again: `D A C A | D A C A`; the second is labelled.

    letters: how many there are; each place has any of them. least, most: letters of a string; each length is as
    likely. Token ids: 0 fills up, 1 is the separator, letters follow. Raises ArgumentError for values that can't be
    used.
    """

    name: ClassVar[str] = "copying"
    summary: ClassVar[str] = "Copying: a string of letters, to be said again"
    metric: ClassVar[str] = "accuracy"

    letters: int = 26
    least: int = 8
    most: int = 32
    train: int = 100_000
    validation: int = 1_000
    test: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole_field(self, "letters", 2, _MOST_LETTERS)
        check_whole_field(self, "most", 1)
        check_whole_field(self, "least", 1, self.most)
        self.check_counts()

    @property
    def vocabulary_size(self) -> int:
        return _SEPARATOR + 1 + self.letters

    @property
    def longest(self) -> int:
        return 2 * self.most + 1

    @property
    def different(self) -> int:
        return sum(self.letters**n for n in range(self.least, self.most + 1))

    def draw(self, random: Random, count: int) -> Drawn:
        lengths = self.least + random.below(self.most - self.least + 1, count)
        letters = _SEPARATOR + 1 + random.below(self.letters, count, self.most)
        tokens = np.zeros((count, self.longest), dtype=np.int16)
        for place in range(self.most):
            rows = np.flatnonzero(place < lengths)
            tokens[rows, place] = tokens[rows, lengths[rows] + 1 + place] = letters[rows, place]
        put(tokens, lengths, _SEPARATOR)
        return Drawn(tokens, 2 * lengths + 1, lengths)


@dataclass(frozen=True)
class Induction(DrawnTask):
    """Letters among which one comes once more at the end: `D A C B A C D A C`; what followed it then is labelled.

    The letter asked for is in the string just once, at any place but the last, and the answer is the one after it.
    letters: how many there are. length: letters of the string. Token ids: 0 fills up, letters follow. Raises
    ArgumentError for values that can't be used.
    """

    name: ClassVar[str] = "induction"
    summary: ClassVar[str] = "Induction: what followed a letter when it was last seen"
    metric: ClassVar[str] = "accuracy"

    letters: int = 26
    length: int = 32
    train: int = 100_000
    validation: int = 1_000
    test: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole_field(self, "letters", 3, _MOST_LETTERS)
        check_whole_field(self, "length", 2)
        self.check_counts()

    @property
    def vocabulary_size(self) -> int:
        return 1 + self.letters

    @property
    def longest(self) -> int:
        return self.length + 2

    @property
    def different(self) -> int:
        return int(self.letters * (self.length - 1) * (self.letters - 1) ** (self.length - 1))

    def draw(self, random: Random, count: int) -> Drawn:
        asked = 1 + random.below(self.letters, count)
        others = 1 + random.below(self.letters - 1, count, self.length)
        tokens = np.zeros((count, self.longest), dtype=np.int16)
        tokens[:, : self.length] = others + (others >= asked[:, None])  # any letter but the one asked for
        places = random.below(self.length - 1, count)
        put(tokens, places, asked)
        tokens[:, -2] = asked
        tokens[:, -1] = tokens[np.arange(count), places + 1]
        return Drawn(tokens, np.full(count, self.longest), np.ones(count, dtype=np.int64))


@dataclass(frozen=True)
class VariableTracking(DrawnTask):
    """Assignments, of numbers and of other variables, and a question: `D=7,A=3,B=D,C=A,?B,7`.

    chains: how many numbers are handed on, side by side in any order. hops: how often each is handed on, to a new
    variable each time. Asked for is the last variable of a chain; its number alone is labelled. variables, values:
    how many there are to draw from; those of an example are all different. Token ids: 0 fills up, then `=`, `,` and
    `?`, the values, and the variables, a token each. Raises ArgumentError for values that can't be used.
    """

    name: ClassVar[str] = "variables"
    summary: ClassVar[str] = "Variable tracking: a number, handed on from variable to variable"
    metric: ClassVar[str] = "accuracy"

    chains: int = 4
    hops: int = 2
    variables: int = 26
    values: int = 10
    train: int = 100_000
    validation: int = 1_000
    test: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole_field(self, "chains", 1)
        check_whole_field(self, "hops", 0)
        check_whole_field(self, "variables", 1, 1_000)
        check_whole_field(self, "values", 2, 1_000)
        if self._assignments > self.variables:
            remedy = f"{self.chains} chains of {self.hops} hops need {self._assignments}; give more variables"
            raise ArgumentError("variables", self.variables, remedy)
        if self.chains > self.values:
            raise ArgumentError("values", self.values, f"each of {self.chains} chains needs its own; give more values")
        self.check_counts()

    @property
    def _assignments(self) -> int:
        return self.chains * (self.hops + 1)

    @property
    def vocabulary_size(self) -> int:
        return 4 + self.values + self.variables

    @property
    def longest(self) -> int:
        return 4 * self._assignments + 4

    @property
    def different(self) -> int:
        orders = math.factorial(self._assignments) // math.factorial(self.hops + 1) ** self.chains
        named = math.perm(self.variables, self._assignments) * math.perm(self.values, self.chains)
        # Chains have no order of their own: with each order of them the same example was counted.
        return int(orders * named // math.factorial(self.chains - 1))

    def draw(self, random: Random, count: int) -> Drawn:
        steps, rows = self.hops + 1, np.arange(count)[:, None]
        values = 4 + random.shuffled(count, self.values)[:, : self.chains]
        names = 4 + self.values + random.shuffled(count, self.variables)[:, : self._assignments]
        names = names.reshape(count, self.chains, steps)
        # What each is set to: the chain's value first, then the variable before.
        given = np.concatenate([values[:, :, None], names[:, :, :-1]], axis=2)
        # Of a shuffled deck with `steps` cards for each chain, the n-th of a chain's cards is its n-th assignment.
        chain = random.shuffled(count, self._assignments) // steps
        step = np.zeros_like(chain)
        for place in range(1, self._assignments):
            step[:, place] = (chain[:, :place] == chain[:, place : place + 1]).sum(axis=1)
        asked = random.below(self.chains, count)

        tokens = np.zeros((count, self.longest), dtype=np.int16)
        tokens[:, 0:-4:4], tokens[:, 1:-4:4] = names[rows, chain, step], 1
        tokens[:, 2:-4:4], tokens[:, 3:-4:4] = given[rows, chain, step], 2
        tokens[:, -4], tokens[:, -2] = 3, 2
        tokens[:, -3] = names[np.arange(count), asked, -1]
        tokens[:, -1] = values[np.arange(count), asked]
        return Drawn(tokens, np.full(count, self.longest), np.ones(count, dtype=np.int64))
