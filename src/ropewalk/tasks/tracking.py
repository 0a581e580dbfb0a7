"""Variable tracking: numbers handed on from variable to variable, in sentences scattered over a long text.

After RULER's variable tracking (arXiv 2404.06654, section 3.2), but asking for one number: the value that the last
variable of a chain has, instead of the names of all variables that have a value.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.data.chat import Frame, frame_for
from ropewalk.data.text import Text, encode
from ropewalk.errors import ArgumentError
from ropewalk.tasks.base import Prompt, Question, prompt_indices
from ropewalk.tasks.insertion import check_hiding, hide, place_in, start_tokens, window_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INSTRUCTION = (
    "In the text below, variables are set to numbers or to other variables. Remember them: you will be asked for the "
    "value of one."
)
_QUESTION = "What is the value of VAR {key}?"
_ANSWER = "The value of VAR {key} is"
_SET = " VAR {key} = {value}."
_SET_TO_VARIABLE = " VAR {key} = VAR {value}."
_FILLER = (
    " The lane is long and straight. The yarn is wet. A wheel turns at one end. "
    "The spinners walk back slowly. Tar warms in the kettle. The rope grows."
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NAME_LETTERS = 5
_LEAST_NUMBER = 10_000
_MOST_CHAINS = 1_000


@dataclass(frozen=True)
class Chain:
    """A number, the variables that have it, first to last, and where in the text each is set, 0 to 1, ascending."""

    value: str
    names: tuple[str, ...]
    depths: tuple[float, ...]


@dataclass(frozen=True)
class TrackingTask:
    """Chains of assignments hidden in a text; asked is the number that the last variable of each chain has.

    length: tokens of a whole prompt, answer included. chains: how many numbers are handed on, and questions; the
    number of chain i of n is at depth i / n. hops: how often each is handed on, to a new variable each time, at drawn
    depths after it. text: where windows are cut from; None repeats a few sentences of a ropewalk. setting: `noisy`
    puts `noise_tokens` start-of-sequence tokens right after each assignment. Raises ArgumentError for values that
    can't be used.
    """

    length: int
    chains: int = 4
    hops: int = 2
    text: Text | None = None
    setting: str = "original"
    seed: int = 0
    noise_tokens: int = 16
    use_chat_template: bool = True

    def __post_init__(self) -> None:
        check_hiding(self.length, self.setting, self.noise_tokens)
        if not 1 <= self.chains <= _MOST_CHAINS:
            raise ArgumentError("chains", self.chains, f"must be from 1 to {_MOST_CHAINS:,}")
        if not 0 <= self.hops <= _MOST_CHAINS:
            raise ArgumentError("hops", self.hops, f"must be from 0 to {_MOST_CHAINS:,}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict of every field; of the text its name, fingerprint and size."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return plain | {"text": self.text and self.text.to_dict()}

    def prompts(self, tokenizer: PreTrainedTokenizerBase, number: int, first: int = 0) -> list[Prompt]:
        """Prompts first .. first + number - 1. Prompt i depends on (task, i, tokenizer) alone.

        Raises ArgumentError when the text is too short for the length, or the length for the assignments.
        """
        indices = prompt_indices(number, first)
        frame = frame_for(tokenizer, self.use_chat_template, _INSTRUCTION, _QUESTION, _ANSWER)
        return [self._prompt(tokenizer, frame, index) for index in indices]

    def prompt_id(self, index: int) -> str:
        """The name of prompt `index`."""
        chains = f"{self.chains}x{self.hops}"
        return f"tracking/{chains}/{self.setting}/{self.length}/{self.seed}/{index}"

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, frame: Frame, index: int) -> Prompt:
        chains = self._chains(index)
        asked = [frame.ask(tokenizer, chain.names[-1], chain.value) for chain in chains]
        noise = start_tokens(tokenizer, self.setting, self.noise_tokens)
        steps = sorted((depth, i, step) for i, chain in enumerate(chains) for step, depth in enumerate(chain.depths))
        hidden = [encode(tokenizer, _sentence(chains[i], step)) for _, i, step in steps]
        around = len(frame.head) + max(len(ids) + len(answer) for ids, answer in asked)
        around += sum(len(ids) + len(noise) for ids in hidden)
        count = self.length - around
        if count < len(hidden):
            remedy = f"assignments and question take {around} tokens; use at least {around + len(hidden)}"
            raise ArgumentError("length", self.length, remedy)
        # Room for the noise is drawn and cut off, so that a noisy prompt has the original one's text.
        window = self._window(tokenizer, count + len(noise) * len(hidden), index)[:count]
        places = [place_in(tokenizer, window, depth) for depth, _, _ in steps]
        haystack, spans = hide(frame.head, window, places, hidden, noise)
        numbers = {i: span for (_, i, step), span in zip(steps, spans, strict=True) if step == 0}
        questions = tuple(
            Question(tuple(ids), tuple(answer), chain.names[-1], chain.value, chain.depths[0], numbers[i])
            for i, (chain, (ids, answer)) in enumerate(zip(chains, asked, strict=True))
        )
        return Prompt(self.prompt_id(index), tuple(haystack), questions)

    def _window(self, tokenizer: PreTrainedTokenizerBase, count: int, index: int) -> list[int]:
        if self.text is not None:
            return window_of(self.text, tokenizer, count, self.seed, index)
        once = encode(tokenizer, _FILLER)
        return (once * (count // len(once) + 1))[:count]

    def _chains(self, index: int) -> list[Chain]:
        # Only random() gives the same numbers in every version of Python, so all draws are made from it.
        rng = random.Random(f"tracking/{self.seed}/{index}")
        text = self.text.text if self.text is not None else _FILLER
        names: dict[str, None] = {}
        while len(names) < self.chains * (self.hops + 1):
            name = "".join(_LETTERS[int(rng.random() * len(_LETTERS))] for _ in range(_NAME_LETTERS))
            if name not in text:
                names[name] = None
        values: dict[str, None] = {}
        while len(values) < self.chains:
            values[str(_LEAST_NUMBER + int(rng.random() * 9 * _LEAST_NUMBER))] = None
        free = iter(names)
        found = []
        for i, value in enumerate(values):
            start = i / self.chains
            later = sorted(start + (1 - start) * rng.random() for _ in range(self.hops))
            found.append(Chain(value, tuple(next(free) for _ in range(self.hops + 1)), (start, *later)))
        return found


def _sentence(chain: Chain, step: int) -> str:
    said, value = (_SET_TO_VARIABLE, chain.names[step - 1]) if step else (_SET, chain.value)
    return said.replace("{key}", chain.names[step]).replace("{value}", value)
