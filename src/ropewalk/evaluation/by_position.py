"""How well a model predicts each token by its position: where reading breaks past the training length."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from torch import nn

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.evaluation.likelihood import token_nll

FULL, SLIDING = "full", "sliding"
WAYS = (FULL, SLIDING)


def multiples(training_length: int, furthest: int) -> list[int]:
    """Positions 0, L, 2 L, ... up to `furthest` times the training length L: the edges of a bucket for each length."""
    return [training_length * i for i in range(furthest + 1)]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How windows are read to see what becomes of a model at 1, 2, ... `furthest` times its training length L.

    `full`: a window of `furthest` L tokens is read once; the figure at k L is the mean over positions (k - 1) L to
    k L - 1, which are the last L tokens of a text of k L. Longer texts are judged on later tokens.

    `sliding`: a context of k L tokens moves over the window by `stride` tokens at a time and only its newest `stride`
    tokens are judged, which have all that context before them. Every length is judged on the same tokens, about L of a
    window, so that what differs is the context alone. It costs (`furthest` + 1) L / (2 `stride`) times as much.

    Args:
        training_length: L in tokens.
        furthest: the longest length, in training lengths.
        way: `full` or `sliding`.
        stride: for `sliding`, 1 to L - 1 tokens; None: L / 2.
    """

    training_length: int
    furthest: int = 10
    way: str = FULL
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise unknown_name("way", self.way, WAYS)
        _check_whole("training_length", self.training_length, 2)
        _check_whole("furthest", self.furthest, 1)
        if self.way == FULL and self.stride is not None:
            raise ArgumentError("stride", self.stride, f"is for the {SLIDING} way; leave it out")
        if self.way == SLIDING:
            stride = self.training_length // 2 if self.stride is None else self.stride
            _check_whole("stride", stride, 1, self.training_length - 1)
            object.__setattr__(self, "stride", stride)

    @property
    def lengths(self) -> list[int]:
        """The lengths at which there is a figure, in tokens."""
        return multiples(self.training_length, self.furthest)[1:]

    @property
    def longest(self) -> int:
        """Tokens that a model reads at once at the most."""
        return self.training_length * self.furthest

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return self.longest if self.stride is None else self.longest + (self._moves - 1) * self.stride

    @property
    def _moves(self) -> int:
        """How often a context is placed in a window."""
        return 1 if self.stride is None else max(1, self.training_length // self.stride)

    def nats(self, model: nn.Module, window: Sequence[int], start: Sequence[int] = ()) -> list[float]:
        """Mean nats a token at each of `lengths`.

        Args:
            model: a causal model.
            window: token ids, `self.window` of them.
            start: what every text begins with, such as a start token; it takes the place of as many tokens.
        """
        if len(window) != self.window:
            raise ArgumentError("window", len(window), f"give {self.window} tokens")
        if self.stride is None:
            losses = token_nll(model, [*start, *window[: len(window) - len(start)]])
            edges = multiples(self.training_length, self.furthest)
            # Position 0 has nothing before it, so the losses begin with position 1.
            parts = [losses[max(first - 1, 0) : last - 1] for first, last in itertools.pairwise(edges)]
            return [float(part.double().mean()) for part in parts]
        return [self._slid(model, window, context, start) for context in self.lengths]

    def judged(self, length: int) -> int:
        """How many tokens of a window are judged at a length."""
        if self.stride is not None:
            return self._moves * self.stride
        return self.training_length - (length == self.training_length)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return dataclasses.asdict(self)

    def _slid(self, model: nn.Module, window: Sequence[int], context: int, start: Sequence[int]) -> float:
        assert self.stride is not None
        total = 0.0
        for move in range(self._moves):
            end = self.longest + move * self.stride
            ids = [*start, *window[end - context + len(start) : end]]
            total += float(token_nll(model, ids, newest=self.stride).double().mean())
        return total / self._moves


def _check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise ArgumentError(name, value, f"give a whole number, {limits}")
