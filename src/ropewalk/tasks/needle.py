"""Needle in a haystack: secrets hidden in long text at known depths, then asked for."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.errors import ArgumentError
from ropewalk.tasks.chat import Frame, chat_frame, plain_frame
from ropewalk.tasks.haystack import Text, draw_window, encode, spelled
from ropewalk.tasks.prompts import Prompt, Question

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
SETTINGS = ("original", "noisy")
PROTOCOLS = ("multi", "single")
SNAP_TOKENS = 50
# Steps of the golden ratio spread the windows of prompts 0, 1, 2 ... evenly over the text.
_GOLDEN = 0.6180339887498949


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
    plain_question: str = "\n\nQuestion: {question}\nAnswer: "
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
        for name, known in (("protocol", PROTOCOLS), ("setting", SETTINGS)):
            if getattr(self, name) not in known:
                raise ArgumentError(name, getattr(self, name), f"choose {' or '.join(known)}")
        if self.length < 1:
            raise ArgumentError("length", self.length, "must be a positive number of tokens")
        if self.noise_tokens < 1:
            remedy = "must be at least 1; for none use setting='original'"
            raise ArgumentError("noise_tokens", self.noise_tokens, remedy)
        self._check_depths()

    def _check_depths(self) -> None:
        if isinstance(self.depths, int):
            if self.depths < 1:
                raise ArgumentError("depths", self.depths, "must be at least 1")
        else:
            object.__setattr__(self, "depths", tuple(float(d) for d in self.depths))
        values = self.depth_values
        if not values or not all(0 <= d <= 1 for d in values) or list(values) != sorted(set(values)):
            raise ArgumentError("depths", self.depths, "must be distinct numbers from 0 to 1, ascending")
        keys, digits = len(self.wording.keys), self.wording.value_digits
        if self._needles_each > keys:
            raise ArgumentError("depths", self.depths, f"there are {keys} keys and each depth needs its own")
        if self._needles_each > 9 * 10 ** (digits - 1):
            raise ArgumentError("value_digits", digits, "too few for a distinct value at each depth")

    @property
    def depth_values(self) -> tuple[float, ...]:
        """The depths, ascending; a single uniform depth is the middle."""
        if not isinstance(self.depths, int):
            return self.depths
        return (0.5,) if self.depths == 1 else tuple(i / (self.depths - 1) for i in range(self.depths))

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
        if number < 1:
            raise ArgumentError("number", number, "must be at least 1 prompt")
        frame = self._frame(tokenizer)
        keys = self._free_keys()
        return [self._prompt(tokenizer, frame, keys, index) for index in range(first, first + number)]

    def prompt_id(self, index: int) -> str:
        """The name of prompt `index`."""
        return f"needle/{self.protocol}/{self.setting}/{self.length}/{self.seed}/{index}"

    def _frame(self, tokenizer: PreTrainedTokenizerBase) -> Frame:
        said = self.wording
        if self.use_chat_template and tokenizer.chat_template:
            return chat_frame(tokenizer, said.instruction, said.question, said.answer_prefix)
        question = said.plain_question.replace("{question}", said.question)
        return plain_frame(tokenizer, said.instruction, question, said.answer_prefix)

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
        noise = self._noise(tokenizer)
        hidden = [encode(tokenizer, " " + self.wording.sentence(needle)) for needle in needles]
        around = len(frame.head) + max(len(ids) + len(answer) for ids, answer in asked)
        around += sum(len(ids) + len(noise) for ids in hidden)
        count = self.length - around
        if count < len(needles):
            least = around + len(needles)
            remedy = f"needles and question take {around} tokens; use at least {least}"
            raise ArgumentError("length", self.length, remedy)
        start = random.Random(f"window/{self.seed}").random()
        # Room for the noise is drawn and cut off, so that a noisy prompt has the original one's text.
        drawn = count + len(noise) * len(needles)
        window = draw_window(self.text, tokenizer, drawn, (start + index * _GOLDEN) % 1.0)[:count]
        places = [_place(tokenizer, window, needle.depth) for needle in needles]
        haystack, spans = _hide(frame.head, window, places, hidden, noise)
        questions = tuple(
            Question(tuple(ids), tuple(answer), n.key, n.value, n.depth, span)
            for n, (ids, answer), span in zip(needles, asked, spans, strict=True)
        )
        return Prompt(self.prompt_id(index), tuple(haystack), questions)

    def _noise(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        if self.setting == "original":
            return []
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            remedy = "the tokenizer has no start or end token; use 'original'"
            raise ArgumentError("setting", self.setting, remedy)
        return [int(start)] * self.noise_tokens


def _place(tokenizer: PreTrainedTokenizerBase, window: Sequence[int], depth: float) -> int:
    """The index in the window where a needle goes: its depth, moved to a sentence's end within SNAP_TOKENS.

    Ends without a line break come first: there the needle's own leading space and the next sentence's fit.
    """
    wanted = round(depth * len(window))
    if wanted in (0, len(window)):
        return wanted
    near = [place for step in range(SNAP_TOKENS + 1) for place in (wanted - step, wanted + step)]
    inside = {place: spelled(tokenizer, window[place - 1]) for place in near if 0 < place < len(window)}
    for ends in (r"[.!?][^\n]*$", r"[.!?\n]"):
        for place, before in inside.items():
            if re.search(ends, before):
                return place
    return wanted


def _hide(
    head: Sequence[int],
    window: Sequence[int],
    places: Sequence[int],
    hidden: Sequence[Sequence[int]],
    noise: Sequence[int],
) -> tuple[list[int], list[tuple[int, int]]]:
    """The haystack with needles at ascending places, each followed by the noise; and their [start, end)."""
    haystack, spans, done = list(head), [], 0
    for place, needle in zip(places, hidden, strict=True):
        haystack += window[done:place]
        spans.append((len(haystack), len(haystack) + len(needle)))
        haystack += [*needle, *noise]
        done = place
    return haystack + list(window[done:]), spans
