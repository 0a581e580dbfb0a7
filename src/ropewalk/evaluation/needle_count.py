"""How many needles a haystack a model is asked for: as many as it finds within its training length."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ropewalk.errors import ArgumentError, TooShortError
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.sweep import Sweep
from ropewalk.tasks.needle import NeedleTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTS = (10, 4, 2, 1)
LEAST_RIGHT = 0.8
# Haystacks by count: ten answers or more, so that one wrong answer doesn't decide. One needle is the least there is:
# its share decides nothing and is only told, so five readings do.
_HAYSTACKS = {10: 1, 4: 3, 2: 5, 1: 5}


@dataclass(frozen=True)
class NeedleCount:
    """The decision.

    Args:
        count: needles a haystack.
        length: tokens of the prompts that decided it, half of the training length.
        right: (answers right, answers) by count, from the largest count measured down to the one taken.
    """

    count: int
    length: int
    right: Mapping[int, tuple[int, int]]

    @property
    def shares(self) -> dict[int, float]:
        """The share of answers right by count."""
        return {count: right / asked for count, (right, asked) in self.right.items()}

    def text(self) -> str:
        """One sentence: how many, and what the model answers right with so many and with more."""
        right, asked = self.right[self.count]
        needles = "needle" if self.count == 1 else "needles"
        said = f"{self.count} {needles} a haystack: at {self.length:,} tokens, half its training length, "
        said += f"the model answers {right} of {asked} right"
        if self.shares[self.count] < LEAST_RIGHT:
            said += f", below the share of {LEAST_RIGHT} wanted"
        more = [f"with {n} it answers {r} of {a}" for n, (r, a) in self.right.items() if n != self.count]
        return "; ".join([said, *more]) + "."


def needle_count(sweep: Sweep, plain: Candidate, task: NeedleTask) -> NeedleCount:
    """The largest of COUNTS that the model answers at least LEAST_RIGHT right; 1 if it does so with none.

    Counts whose prompts have no room in the task's length are left out. Every answer is in the sweep's store, under a
    stage of its own for each count.

    Args:
        plain: the model's own rotation.
        task: the needle task at half of the training length; its depths are replaced.

    Raises:
        ArgumentError: not even one needle has room.
    """
    right: dict[int, tuple[int, int]] = {}
    for count in fitting_counts(task, sweep.reader.tokenizer):
        asked = dataclasses.replace(task, depths=count)
        # The names of prompts don't tell how many needles they have, so the stage does.
        answers = sweep.measure(f"needle count {count}", [plain], asked, range(_HAYSTACKS[count]))[plain.name]
        right[count] = sum(answer.is_exact for answer in answers), len(answers)
        if right[count][0] >= LEAST_RIGHT * len(answers):
            break
    return NeedleCount(count, task.length, right)


def fitting_counts(task: NeedleTask, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Those of COUNTS whose prompts have room in the task's length.

    Raises ArgumentError when none has, or when the prompts can't be made for another reason.
    """
    found = tuple(count for count in COUNTS if _fits(dataclasses.replace(task, depths=count), tokenizer, count))
    if not found:
        remedy = (
            f"{task.length} tokens, half of the training length, have no room for a needle; give a number of depths"
        )
        raise ArgumentError("depths", 0, remedy)
    return found


def _fits(task: NeedleTask, tokenizer: PreTrainedTokenizerBase, count: int) -> bool:
    try:
        task.prompts(tokenizer, _HAYSTACKS[count])
    except TooShortError:
        return False
    return True
