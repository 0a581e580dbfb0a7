"""How well a model tells text that it isn't trained on, at the length of training and past it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ropewalk.evaluation.likelihood import Reading
from ropewalk.evaluation.statistics import Estimate, mean_interval
from ropewalk.training.batches import Rows
from ropewalk.training.metrics import finite

# How far past the length of training, in lengths.
MULTIPLES = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Nats a token of held-out text.

    Args:
        validation: the mean over the validation part, with which curves are drawn; None when it isn't a number.
        windows: for k in `MULTIPLES`, as far as text and model reach, the mean of each window of the test part over
            the last L tokens before position k L, with L the length of training.
    """

    validation: float | None
    windows: dict[int, tuple[float | None, ...]]

    def at(self, multiple: int) -> Estimate | None:
        """The mean over windows, which are its independent units; None without windows, or when one isn't a number."""
        found = [value for value in self.windows.get(multiple, ()) if value is not None]
        if not found or len(found) < len(self.windows[multiple]):
            return None
        return mean_interval(found, range(len(found)))

    def against(self, other: HeldOut, multiple: int) -> Estimate | None:
        """The mean difference to another measurement on the same windows; None where one has other windows or none."""
        mine, others = (held.windows.get(multiple, ()) for held in (self, other))
        pairs = [(a, b) for a, b in zip(mine, others, strict=False) if a is not None and b is not None]
        if not pairs or not len(pairs) == len(mine) == len(others):
            return None
        return mean_interval([a - b for a, b in pairs], range(len(pairs)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        means = {k: self.at(k) for k in self.windows}
        return {
            "validation": self.validation,
            "test": {str(k): None if mean is None else mean.to_dict() for k, mean in means.items()},
            "windows": {str(k): list(values) for k, values in self.windows.items()},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HeldOut:
        """What `to_dict` wrote."""
        return cls(data["validation"], {int(k): tuple(values) for k, values in data["windows"].items()})


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of the test part that a model is judged on, the same before and after.

    Args:
        length: L, tokens of a training sequence.
        near: windows of L tokens.
        far: windows of `furthest` times L tokens; none where the text or the model doesn't reach that far.
        furthest: the largest of `MULTIPLES` that is reached.
    """

    length: int
    near: tuple[tuple[int, ...], ...]
    far: tuple[tuple[int, ...], ...]
    furthest: int

    @property
    def count(self) -> int:
        """How many windows there are to read."""
        return len(self.near) + len(self.far)

    def read(self, model: nn.Module, on_done: Callable[[int], None]) -> dict[int, tuple[float | None, ...]]:
        """`HeldOut.windows` of a model, which is put into `eval` and back; `on_done` is told how many are read."""
        was_training = model.training
        model.eval()
        found: dict[int, list[float | None]] = {}
        for number, window in enumerate((*self.near, *self.far)):
            reach = len(window) // self.length
            nats = Reading(self.length, reach).nats(model, window)
            for k in MULTIPLES:
                # The far windows begin like the near ones, which alone say what a model makes of L tokens.
                if (k == 1) == (reach == 1) and k <= reach:
                    found.setdefault(k, []).append(finite(nats[k - 1]))
            on_done(number + 1)
        model.train(was_training)
        return {k: tuple(values) for k, values in found.items()}


def windows(rows: Rows, length: int, tokens: int, reach: float = math.inf) -> Windows:
    """What a model is judged on: of the length of training, and of the furthest multiple of it that fits.

    Args:
        rows: the test part, cut into sequences of `length` one after the other.
        length: tokens of each.
        tokens: how many are read at the length of training, about, and as many again past it.
        reach: tokens that the model can read; infinity for no end.
    """
    fits = [k for k in MULTIPLES if k <= len(rows) and k * length <= reach]
    furthest = max(fits, default=1)
    far = _cut(rows, furthest, max(1, tokens // (furthest * length))) if furthest > 1 else ()
    return Windows(length, _cut(rows, 1, max(1, tokens // length)), far, furthest)


def recovered(as_it_was: HeldOut, after_swap: HeldOut, after: HeldOut, least: float = 0.01) -> float | None:
    """The share of what the swap cost at the length of training that was won back: 1 is all of it, more than that a
    gain over the model as it was. None when the swap cost less than `least` nats a token, or one isn't a number.
    """
    means = [found.at(1) for found in (as_it_was, after_swap, after)]
    if any(mean is None for mean in means):
        return None
    before, swapped, now = (mean.mean for mean in means if mean is not None)
    return None if swapped - before < least else (swapped - now) / (swapped - before)


def _cut(rows: Rows, each: int, most: int) -> tuple[tuple[int, ...], ...]:
    """At most `most` windows of `each` rows one after the other, spread evenly."""
    groups = len(rows) // each
    count = min(groups, most)
    starts: Sequence[int] = [groups * i // count * each for i in range(count)]
    return tuple(tuple(int(t) for i in range(start, start + each) for t in rows[i][0]) for start in starts)
