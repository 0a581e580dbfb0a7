"""Needle in a haystack: secrets hidden in long text at known depths, then asked for."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.errors import ArgumentError
from ropewalk.tasks.chat import PLAIN_QUESTION, Frame, frame_for
from ropewalk.tasks.haystack import Text, encode
from ropewalk.tasks.hiding import (
    check_hiding,
    checked_depths,
    depth_values,
    hide,
    place_in,
    start_tokens,
    window_of,
)
from ropewalk.tasks.prompts import Prompt, Question, prompt_indices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# None of these names is in the King James Bible, so a haystack of it names each only in its needle.
_NAMES = """
Oslo Lima Nairobi Helsinki Montreal Sydney Toronto Chicago Houston Denver Seattle Boston Dublin Glasgow Lisbon
Madrid Munich Hamburg Zurich Warsaw Budapest Prague Istanbul Moscow Delhi Mumbai Bangkok Hanoi Jakarta Manila
Beijing Shanghai Tokyo Osaka Kyoto Seoul Perth Auckland Honolulu Havana Bogota Quito Santiago Caracas Accra
Lagos Dakar Kampala
"""
CITIES = tuple(_NAMES.split())
PROTOCOLS = ("multi", "single")


@dataclass(frozen=True)
class Needle:
    """A secret: the number `value` for the distinct name `key`, hidden at `depth` (0 = start, 1 = end)."""

    key: str
    value: str
    depth: float


@dataclass(frozen=True)
class Wording:
    """The sentences of the task, in which {key} and {value} are filled in.

    `plain_question` sets {question} for models without a chat template. `keys`: the names that needles are
    about. `value_digits`: digits of a secret number.
    """

    instruction: str = "Special magic numbers are hidden in the text below. Remember them: you will be asked for one."
    needle: str = "The special magic number for {key} is {value}."
    question: str = "What is the special magic number for {key}?"
    answer_prefix: str = "The special magic number for {key} is"
    plain_question: str = PLAIN_QUESTION
    keys: tuple[str, ...] = CITIES
    value_digits: int = 7

    def __post_init__(self) -> None:
        needed = {"needle": ("{key}", "{value}"), "question": ("{key}",), "plain_question": ("{question}",)}
        for name, fields in needed.items():
            for field in fields:
                if field not in getattr(self, name):
                    raise ArgumentError(name, getattr(self, name), f"must contain {field}")
        if not 1 <= self.value_digits <= 15:
            raise ArgumentError("value_digits", self.value_digits, "must be from 1 to 15")
        if len(set(self.keys)) < len(self.keys):
            raise ArgumentError("keys", self.keys, "must be distinct")

    def sentence(self, needle: Needle) -> str:
        """The sentence that tells a needle's secret."""
        return self.needle.replace("{key}", needle.key).replace("{value}", needle.value)


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
        keys, digits = len(self.wording.keys), self.wording.value_digits
        if self._needles_each > keys:
            raise ArgumentError("depths", self.depths, f"there are {keys} keys and each depth needs its own")
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
        wording = dataclasses.asdict(self.wording) | {"keys": list(self.wording.keys)}
        return plain | {"text": self.text.to_dict(), "depths": list(self.depth_values), "wording": wording}

    def prompts(self, tokenizer: PreTrainedTokenizerBase, number: int, first: int = 0) -> list[Prompt]:
        """Prompts first .. first + number - 1. Prompt i depends on (task, i, tokenizer) alone.

        Sets with other indices are other needles in other windows, so one set can choose and another judge.
        Raises ArgumentError when the text is too short for the length, or the length for the needles.
        """
        indices = prompt_indices(number, first)
        said = self.wording
        around = said.instruction, said.question, said.answer_prefix, said.plain_question
        frame = frame_for(tokenizer, self.use_chat_template, *around)
        keys = self._free_keys()
        return [self._prompt(tokenizer, frame, keys, index) for index in indices]

    def prompt_id(self, index: int) -> str:
        """The name of prompt `index`."""
        return f"needle/{self.protocol}/{self.setting}/{self.length}/{self.seed}/{index}"

    def _free_keys(self) -> tuple[str, ...]:
        """The keys that the text doesn't mention, or all if those are too few."""
        free = tuple(key for key in self.wording.keys if key not in self.text.text)
        return free if len(free) >= self._needles_each else self.wording.keys

    def _needles(self, keys: Sequence[str], index: int) -> list[Needle]:
        # Only random() gives the same numbers in every version of Python, so all draws are made from it.
        rng = random.Random(f"needle/{self.seed}/{index}")
        depths = self.depth_values
        chosen = depths if self.protocol == "multi" else (depths[index % len(depths)],)
        shuffled = sorted((rng.random(), key) for key in keys)
        lowest = 10 ** (self.wording.value_digits - 1)
        values: list[str] = []
        while len(values) < len(chosen):
            value = str(lowest + int(rng.random() * 9 * lowest))
            if value not in values:
                values.append(value)
        return [Needle(shuffled[i][1], values[i], depth) for i, depth in enumerate(chosen)]

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, frame: Frame, keys: Sequence[str], index: int) -> Prompt:
        needles = self._needles(keys, index)
        asked = [frame.ask(tokenizer, needle.key, needle.value) for needle in needles]
        noise = start_tokens(tokenizer, self.setting, self.noise_tokens)
        hidden = [encode(tokenizer, " " + self.wording.sentence(needle)) for needle in needles]
        around = len(frame.head) + max(len(ids) + len(answer) for ids, answer in asked)
        around += sum(len(ids) + len(noise) for ids in hidden)
        count = self.length - around
        if count < len(needles):
            least = around + len(needles)
            remedy = f"needles and question take {around} tokens; use at least {least}"
            raise ArgumentError("length", self.length, remedy)
        # Room for the noise is drawn and cut off, so that a noisy prompt has the original one's text.
        drawn = count + len(noise) * len(needles)
        window = window_of(self.text, tokenizer, drawn, self.seed, index)[:count]
        places = [place_in(tokenizer, window, needle.depth) for needle in needles]
        haystack, spans = hide(frame.head, window, places, hidden, noise)
        questions = tuple(
            Question(tuple(ids), tuple(answer), n.key, n.value, n.depth, span)
            for n, (ids, answer), span in zip(needles, asked, spans, strict=True)
        )
        return Prompt(self.prompt_id(index), tuple(haystack), questions)
