"""Key-value lookup: a long list of made-up keys with their values, and questions for some of them.

After RULER's needles among needles (arXiv 2404.06654) and the JSON lists of "Lost in the Middle" (arXiv 2307.03172).
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.data.chat import PLAIN_QUESTION, Frame, frame_for
from ropewalk.data.text import encode_item
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.tasks.base import Prompt, Question, prompt_indices
from ropewalk.tasks.insertion import check_hiding, checked_depths, depth_values, hide, start_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYOUTS = ("lines", "json")
VALUES = ("number", "uuid")
_INSTRUCTIONS = {
    "lines": "Below is a part of a long list of keys, each with its value. You will be asked for one of the values.",
    "json": "Below is a part of a long JSON object of keys and values. You will be asked for one of the values.",
}
_QUESTION = "What is the value of the key {key}?"
# What is before and from the value on in a line. The reply is a line of the list again.
_KEYS = {"lines": "{key}:", "json": '"{key}": "'}
_VALUES = {"lines": " {value}", "json": '{value}",'}
# A line ends with its break already.
_PLAIN_QUESTION = PLAIN_QUESTION.removeprefix("\n")
_GROUPS = (8, 4, 4, 4, 12)
_LEAST_NUMBER = 1_000_000


@dataclass(frozen=True)
class LookupTask:
    """A list of keys and values that fills the length, and a question at each depth.

    length: tokens of a whole prompt, answer included. depths: a number of uniform depths from 0 to 1, or the depths,
    ascending: the share of the other pairs that stand before a pair that is asked for. layout: `lines`, a pair a line,
    or `json`, an object's entries. values: `number`, seven digits, or `uuid`, made up like the keys. setting: `noisy`
    puts `noise_tokens` start-of-sequence tokens right after each pair that is asked for.

    There are as many whole pairs as fit, and before them the end of one more, cut so that the length is exact. Raises
    ArgumentError for values that can't be used.
    """

    length: int
    depths: int | tuple[float, ...] = 10
    layout: str = "lines"
    values: str = "number"
    setting: str = "original"
    seed: int = 0
    noise_tokens: int = 16
    use_chat_template: bool = True

    def __post_init__(self) -> None:
        for name, known in (("layout", LAYOUTS), ("values", VALUES)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        check_hiding(self.length, self.setting, self.noise_tokens)
        object.__setattr__(self, "depths", checked_depths(self.depths))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict of every field."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return plain | {"depths": list(depth_values(self.depths))}

    def prompts(self, tokenizer: PreTrainedTokenizerBase, number: int, first: int = 0) -> list[Prompt]:
        """Prompts first .. first + number - 1. Prompt i depends on (task, i, tokenizer) alone.

        Raises ArgumentError when the length is too short for the pairs that are asked for and one more.
        """
        indices = prompt_indices(number, first)
        around = _INSTRUCTIONS[self.layout], _QUESTION, _KEYS[self.layout], _PLAIN_QUESTION
        frame = frame_for(tokenizer, self.use_chat_template, *around, gap="\n")
        return [self._prompt(tokenizer, frame, index) for index in indices]

    def prompt_id(self, index: int) -> str:
        """The name of prompt `index`."""
        return f"lookup/{self.layout}/{self.values}/{self.setting}/{self.length}/{self.seed}/{index}"

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, frame: Frame, index: int) -> Prompt:
        # Only random() gives the same numbers in every version of Python.
        rng = random.Random(f"lookup/{self.seed}/{index}")
        depths = depth_values(self.depths)
        pairs = [self._pair(rng) for _ in depths]
        asked = [frame.ask(tokenizer, key, value) for key, value in pairs]
        hidden = [self._line(tokenizer, *pair) for pair in pairs]
        noise = start_tokens(tokenizer, self.setting, self.noise_tokens)
        around = len(frame.head) + max(len(ids) + len(answer) for ids, answer in asked)
        room = self.length - around - sum(len(line) + len(noise) for line in hidden)
        cut, others = self._others(tokenizer, rng, room)
        starts = list(itertools.accumulate(map(len, others), initial=len(cut)))
        places = [starts[int(depth * len(others) + 0.5)] for depth in depths]
        window = [*cut, *itertools.chain.from_iterable(others)]
        haystack, spans = hide(frame.head, window, places, hidden, noise)
        questions = tuple(
            Question(tuple(ids), tuple(answer), key, value, depth, span)
            for (key, value), (ids, answer), depth, span in zip(pairs, asked, depths, spans, strict=True)
        )
        return Prompt(self.prompt_id(index), tuple(haystack), questions)

    def _others(
        self, tokenizer: PreTrainedTokenizerBase, rng: random.Random, room: int
    ) -> tuple[list[int], list[list[int]]]:
        """(the end of a line, the whole lines after it), together `room` tokens."""
        lines: list[list[int]] = []
        left = room
        while len(line := self._line(tokenizer, *self._pair(rng))) <= left:
            lines.append(line)
            left -= len(line)
        if not lines:
            least = self.length - room + len(line)
            remedy = f"too short for {len(depth_values(self.depths))} pairs and one more; use at least {least}"
            raise ArgumentError("length", self.length, remedy)
        return line[len(line) - left :], lines

    def _line(self, tokenizer: PreTrainedTokenizerBase, key: str, value: str) -> list[int]:
        line = _KEYS[self.layout].replace("{key}", key) + _VALUES[self.layout].replace("{value}", value)
        return encode_item(tokenizer, line, "\n")

    def _pair(self, rng: random.Random) -> tuple[str, str]:
        key = _uuid(rng)
        return key, _uuid(rng) if self.values == "uuid" else _number(rng)


def _uuid(rng: random.Random) -> str:
    """Hexadecimal digits in the groups of a UUID, all of them drawn."""
    return "-".join(f"{int(rng.random() * 16**digits):0{digits}x}" for digits in _GROUPS)


def _number(rng: random.Random) -> str:
    return str(_LEAST_NUMBER + int(rng.random() * 9 * _LEAST_NUMBER))
