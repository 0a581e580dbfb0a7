"""What a sweep's tasks take from a text: one half of it to choose by, the other to judge by."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ropewalk.data.text import (
    DEMO,
    Text,
    characters_per_token,
    draw_window,
    draw_window_with_start,
    start_of,
    text_of,
)
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.config_values import text as checked_text
from ropewalk.evaluation.likelihood import FULL, Reading, bounded, token_nll
from ropewalk.tasks.base import Prompt, halved, prompt_indices
from ropewalk.tasks.many_shot import HALVES
from ropewalk.tasks.needle import NeedleTask
from ropewalk.tasks.tracking import TrackingTask

WINDOWS, WINDOWS_OPTIONS = "perplexity", ("text", "way", "stride")
# A window's stretch of text, in windows: some texts have more tokens to the character than the estimate.
_STRETCH, _SLACK_CHARACTERS = 1.25, 2_100


@dataclass(frozen=True)
class HalvedText:
    """A task of haystacks: prompts that choose lie in the first half of its text, those that judge in the second.

    What they hide and ask is that of `task`, which has the whole text.
    """

    task: NeedleTask | TrackingTask

    @property
    def setting(self) -> str:
        """The variant that answers are filed under."""
        return self.task.setting

    def prompts(self, tokenizer: Any, number: int, first: int = 0) -> list[Prompt]:
        """Prompts first .. first + number - 1. Raises ArgumentError where half of the text is too short for one."""
        return [self._prompt(tokenizer, index) for index in prompt_indices(number, first)]

    def prompt_id(self, index: int) -> str:
        """The name of prompt `index`."""
        return self.task.prompt_id(index)

    def to_dict(self) -> dict[str, Any]:
        """All that its prompts depend on, JSON-ready; of the whole text its name and fingerprint."""
        return self.task.to_dict() | {"halved": True}

    def _prompt(self, tokenizer: Any, index: int) -> Prompt:
        text, (which, _) = self.task.text, halved(index)
        assert text is not None
        try:
            return dataclasses.replace(self.task, text=_halves(text)[which]).prompts(tokenizer, 1, first=index)[0]
        except ArgumentError as error:
            if error.argument != "text":
                raise
            about = f"for prompts of {self.task.length:,} tokens, the half of it that {HALVES[which]}s {error.remedy}"
            raise ArgumentError("text", text.name, about) from error


@functools.lru_cache(maxsize=4)  # tasks of many lengths and seeds share a text
def _halves(text: Text) -> tuple[Text, Text]:
    middle = len(text.text) // 2
    return text_of(text.text[:middle], text.name), text_of(text.text[middle:], text.name)


@dataclass(frozen=True)
class Windows:
    """Perplexity: windows that share no token; nothing is asked.

    Windows under REPORT_FIRST, which choose, lie in the first half of the text, the others in the second. Of several
    seeds, this is number `rank` of `seeds`. What is read begins with the start token where the tokenizer puts one
    before every text.

    way: `full` reads `length` tokens once and judges all but the first. `sliding` moves a context of `length` tokens
    over about twice as many, `stride` at a time (None: half the length), and judges the newest `stride`, which have all
    that before them (see `Reading`). Raises ArgumentError for another way or a stride that can't be used.
    """

    text: Text
    length: int
    rank: int = 0
    seeds: int = 1
    way: str = FULL
    stride: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", self._reading.stride)

    @property
    def _reading(self) -> Reading:
        return Reading(self.length, 1, self.way, self.stride)

    def nll(self, model: nn.Module, ids: Sequence[int], tokenizer: Any) -> float:
        """The mean nats a token that the model makes of a window's `ids`."""
        if self.way == FULL:
            return float(bounded(token_nll(model, ids)).double().mean())
        nats = self._reading.nats(model, ids, start_of(tokenizer))
        return float(bounded(torch.tensor(nats, dtype=torch.float64)).mean())

    def ids(self, tokenizer: Any, index: int) -> list[int]:
        """The tokens of window `index`, with the start token where they are read once.

        Raises ArgumentError where half of the text has no room for it.
        """
        which, place = halved(index)
        half = _halves(self.text)[which].text
        number, tokens = place * self.seeds + self.rank, self._reading.window
        a_window = _STRETCH * tokens * characters_per_token(self.text.text, tokenizer) + _SLACK_CHARACTERS
        room = max(1, int(len(half) / a_window))
        if number >= room:
            asked = f"its {('first', 'second')[which]} half has room for {room} windows of {tokens:,} tokens"
            remedy = f"{asked}, number {number + 1} is asked for; give a longer text, or fewer prompts, seeds or tokens"
            raise ArgumentError("text", self.text.name, remedy)
        slot = sorted(range(room), key=lambda slot: random.Random(f"window/{slot}").random())[number]
        stretch = half[slot * len(half) // room : (slot + 1) * len(half) // room]
        draw = draw_window_with_start if self.way == FULL else draw_window
        return draw(text_of(stretch, self.text.name), tokenizer, tokens, 0.5)

    def to_dict(self) -> dict[str, Any]:
        """All that its figures depend on, JSON-ready; windows that are read once need no more than they are."""
        plain = dataclasses.asdict(self) | {"text": self.text.to_dict()}
        return {name: value for name, value in plain.items() if self.way != FULL or name not in ("way", "stride")}


def check_windows(options: Mapping[str, Any], lengths: Sequence[int]) -> None:
    """Refuse options, by the names of WINDOWS_OPTIONS, with which windows of some length can't be read."""
    checked_text(options.get("text", DEMO), "text")
    for length in lengths:
        if length < 2:
            raise ArgumentError("lengths", length, f"{WINDOWS} needs at least 2 tokens")
        Reading(length, 1, **{name: value for name, value in options.items() if name != "text"})
