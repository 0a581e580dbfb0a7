"""Needle in a haystack: facts with numbers hidden in long text at known depths, then asked for."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.data.chat import PLAIN_QUESTION, Frame, frame_for
from ropewalk.data.text import Text, encode
from ropewalk.errors import ArgumentError, TooShortError
from ropewalk.tasks.base import Prompt, Question, prompt_indices
from ropewalk.tasks.insertion import (
    check_hiding,
    checked_depths,
    depth_values,
    hide,
    place_in,
    start_tokens,
    window_of,
)
from ropewalk.tasks.needle_kinds import KINDS, NeedleKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROTOCOLS = ("multi", "single")


@dataclass(frozen=True)
class Needle:
    """A fact of one kind with the number `value`, hidden at `depth` (0 = start, 1 = end)."""

    kind: NeedleKind
    value: str
    depth: float

    @property
    def sentence(self) -> str:
        """What is hidden."""
        return self.kind.told(self.value)


@dataclass(frozen=True)
class Wording:
    """The sentences of the task.

    Args:
        instruction: what stands before the haystack.
        plain_question: sets {question} for models without a chat template.
        kinds: what can be hidden; a haystack has each kind once at most.
        value_digits: digits of a number.
    """

    instruction: str = (
        "Some facts with numbers are hidden in the text below. Remember them: you will be asked for one of them."
    )
    plain_question: str = PLAIN_QUESTION
    kinds: tuple[NeedleKind, ...] = KINDS
    value_digits: int = 7

    def __post_init__(self) -> None:
        if "{question}" not in self.plain_question:
            raise ArgumentError("plain_question", self.plain_question, "must contain {question}")
        if not 1 <= self.value_digits <= 15:
            raise ArgumentError("value_digits", self.value_digits, "must be from 1 to 15")
        subjects = [kind.subject for kind in self.kinds]
        if len(set(subjects)) < len(subjects):
            raise ArgumentError("kinds", subjects, "must have distinct subjects")


@dataclass(frozen=True)
class NeedleTask:
    """Needle in a haystack at one length.

    text: where windows are cut from. length: tokens of a whole prompt, answer included. depths: a number of
    uniform depths from 0 to 1, or the depths. protocol: `multi` hides one needle at every depth of one
    haystack and asks for each; `single` hides one, and prompt i has depth number i modulo how many there are.
    setting: `noisy` puts `noise_tokens` start-of-sequence tokens right after each needle (DoPE, arXiv
    2511.09146, which doesn't print their number). Raises ArgumentError for values that can't be used.
    """

    text: Text
    length: int
    depths: int | tuple[float, ...] = 10
    protocol: str = "multi"
    setting: str = "original"
    seed: int = 0
    noise_tokens: int = 16
    wording: Wording = Wording()
    use_chat_template: bool = True

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ArgumentError("protocol", self.protocol, f"choose {' or '.join(PROTOCOLS)}")
        check_hiding(self.length, self.setting, self.noise_tokens)
        object.__setattr__(self, "depths", checked_depths(self.depths))
        kinds, digits = len(self.wording.kinds), self.wording.value_digits
        if self._needles_each > kinds:
            raise ArgumentError("depths", self.depths, f"each depth needs its own kind of needle; use at most {kinds}")
        if self._needles_each > 9 * 10 ** (digits - 1):
            raise ArgumentError("value_digits", digits, "too few for a distinct value at each depth")

    @property
    def depth_values(self) -> tuple[float, ...]:
        """The depths, ascending; a single uniform depth is the middle."""
        return depth_values(self.depths)

    @property
    def _needles_each(self) -> int:
        return len(self.depth_values) if self.protocol == "multi" else 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict of every field; of the text its name, fingerprint and size."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kinds = [dataclasses.asdict(kind) for kind in self.wording.kinds]
        wording = dataclasses.asdict(self.wording) | {"kinds": kinds}
        return plain | {"text": self.text.to_dict(), "depths": list(self.depth_values), "wording": wording}

    def prompts(self, tokenizer: PreTrainedTokenizerBase, number: int, first: int = 0) -> list[Prompt]:
        """Prompts first .. first + number - 1. Prompt i depends on (task, i, tokenizer) alone.

        Sets with other indices are other needles in other windows, so one set can choose and another judge.
        Raises ArgumentError when the text is too short for the length, or the length for the needles.
        """
        indices = prompt_indices(number, first)
        said = self.wording
        # Question and answer prefix differ from needle to needle.
        frame = frame_for(tokenizer, self.use_chat_template, said.instruction, "{question}", "", said.plain_question)
        kinds = self._free_kinds()
        return [self._prompt(tokenizer, frame, kinds, index) for index in indices]

    def prompt_id(self, index: int) -> str:
        """The name of prompt `index`."""
        return f"needle/{self.protocol}/{self.setting}/{self.length}/{self.seed}/{index}"

    def _free_kinds(self) -> tuple[NeedleKind, ...]:
        """The kinds whose subjects the text doesn't mention, or all if those are too few."""
        text = self.text.text.lower()
        free = tuple(kind for kind in self.wording.kinds if kind.subject.lower() not in text)
        return free if len(free) >= self._needles_each else self.wording.kinds

    def _needles(self, kinds: Sequence[NeedleKind], index: int) -> list[Needle]:
        # Only random() gives the same numbers in every version of Python, so all draws are made from it.
        rng = random.Random(f"needle/{self.seed}/{index}")
        depths = self.depth_values
        chosen = depths if self.protocol == "multi" else (depths[index % len(depths)],)
        shuffled = [kind for _, kind in sorted(((rng.random(), kind) for kind in kinds), key=lambda drawn: drawn[0])]
        lowest = 10 ** (self.wording.value_digits - 1)
        values: list[str] = []
        while len(values) < len(chosen):
            value = str(lowest + int(rng.random() * 9 * lowest))
            if value not in values:
                values.append(value)
        return [Needle(shuffled[i], values[i], depth) for i, depth in enumerate(chosen)]

    def _prompt(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, kinds: Sequence[NeedleKind], index: int
    ) -> Prompt:
        needles = self._needles(kinds, index)
        asked = [self._asked(tokenizer, frame, needle) for needle in needles]
        noise = start_tokens(tokenizer, self.setting, self.noise_tokens)
        hidden = [encode(tokenizer, " " + needle.sentence) for needle in needles]
        around = len(frame.head) + max(len(ids) + len(answer) for ids, answer in asked)
        around += sum(len(ids) + len(noise) for ids in hidden)
        count = self.length - around
        if count < len(needles):
            raise TooShortError(
                "length", self.length, f"needles and question take {around} tokens", around + len(needles)
            )
        # Room for the noise is drawn and cut off, so that a noisy prompt has the original one's text.
        drawn = count + len(noise) * len(needles)
        window = window_of(self.text, tokenizer, drawn, self.seed, index)[:count]
        places = [place_in(tokenizer, window, needle.depth) for needle in needles]
        haystack, spans = hide(frame.head, window, places, hidden, noise)
        questions = tuple(
            Question(tuple(ids), tuple(answer), n.kind.subject, n.value, n.depth, span)
            for n, (ids, answer), span in zip(needles, asked, spans, strict=True)
        )
        return Prompt(self.prompt_id(index), tuple(haystack), questions)

    @staticmethod
    def _asked(tokenizer: PreTrainedTokenizerBase, frame: Frame, needle: Needle) -> tuple[list[int], list[int]]:
        kind = needle.kind
        return frame.for_question(kind.question, kind.answer_prefix).ask(tokenizer, kind.subject, needle.value)
