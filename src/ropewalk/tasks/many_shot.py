"""Many-shot in-context learning: worked examples, as many as fit, then one problem to be answered.

After DoPE (arXiv 2511.09146), which puts the problem itself, worked, at set depths among the examples, or leaves it
out: what is measured is whether the model finds it again; without it, what the model makes of the examples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.data.chat import Frame, frame_for
from ropewalk.data.qa_problems import Problem, Problems
from ropewalk.data.text import encode_item
from ropewalk.errors import ArgumentError, TooShortError
from ropewalk.tasks.base import NOWHERE, Prompt, Question, halved, prompt_indices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Depth = float | None
PAPER_DEPTHS: tuple[Depth, ...] = (None, 0.0, 1 / 3, 2 / 3, 1.0)
PROTOCOLS = "single", "multi"
HALVES = "choose", "judge"
_LEFT_OUT = "none"
_INSTRUCTION = "Below are problems, each with its answer and how to find it. Answer the last problem in the same form."
_PROBLEM = "Problem: {key}"
_ANSWER = "Answer:"
# The answer comes first and its line ends with it, in the examples as in the reply, so that a model which follows
# them answers at once, and 18 can be told from the start of 180.
_EXAMPLE = _PROBLEM + "\n" + _ANSWER + " {answer}"


@dataclass(frozen=True)
class ManyShotTask:
    """Worked examples, and one problem whose answer is asked for, at one length.

    problems: where examples and problems asked come from. length: tokens of a whole prompt, answer included. depths:
    where the problem asked stands among the examples, worked like them: 0 before all, 1 after all, None (or "none")
    nowhere; a fraction may be a text such as "1/3".

    protocol: with `single`, the paper's way, prompt i asks problem number i // len(depths), in an order drawn from the
    seed, at depth number i % len(depths). The prompts of one problem share their examples, in one order, so only
    problems are independent draws. With `multi` a prompt asks a problem of its own for each depth, all of them among
    the same examples: one reading answers as many questions as there are depths. One half of the problems, the same
    for all seeds, is asked by prompts under REPORT_FIRST, the other by those from there on, counted from 0 again.

    seeds: all those that are compared together, this one among them; each asks from a share of the problems of its own,
    so that no problem counts twice. A seed by itself, the default, asks from all.

    A prompt has as many whole examples as fit, drawn from all problems but those asked, and before them the end of one
    more, cut so that the length is exact for the longest question. Raises ArgumentError for values that can't be used.
    """

    problems: Problems
    length: int
    depths: tuple[Depth, ...] = PAPER_DEPTHS
    protocol: str = "single"
    seed: int = 0
    use_chat_template: bool = True
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ArgumentError("length", self.length, "must be a positive number of tokens")
        if self.protocol not in PROTOCOLS:
            raise ArgumentError("protocol", self.protocol, f"choose {' or '.join(PROTOCOLS)}")
        given: Any = self.depths
        each = given if isinstance(given, (list, tuple)) else (given,)
        object.__setattr__(self, "depths", tuple(_depth(one) for one in each))
        if not self.depths or len({_spelled(depth) for depth in self.depths}) < len(self.depths):
            raise ArgumentError("depths", given, "must be distinct, and at least one")
        object.__setattr__(self, "seeds", tuple(self.seeds) or (self.seed,))
        if self.seed not in self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ArgumentError("seeds", self.seeds, f"must be distinct, {self.seed} among them")

    @property
    def setting(self) -> str:
        """What answers are filed under: this task has one variant."""
        return "original"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict of every field; of the problems their name, fingerprint and number.

        A seed by itself has no `seeds` there, as it asks what it did before there were shares: its records still count.
        """
        together = {"seeds": list(self.seeds)} if len(self.seeds) > 1 else {}
        return together | {
            "problems": self.problems.to_dict(),
            "length": self.length,
            "depths": list(self.depths),
            "protocol": self.protocol,
            "seed": self.seed,
            "use_chat_template": self.use_chat_template,
        }

    def prompts(self, tokenizer: PreTrainedTokenizerBase, number: int, first: int = 0) -> list[Prompt]:
        """Prompts first .. first + number - 1. Prompt i depends on (task, i, tokenizer) alone.

        Raises ArgumentError when there are too few problems to ask or to fill the length, or when the length is too
        short for the problem asked.
        """
        indices = prompt_indices(number, first)
        around = _INSTRUCTION, _PROBLEM, _ANSWER, "{question}\n"
        frame = frame_for(tokenizer, self.use_chat_template, *around, gap="")
        return [self._prompt(tokenizer, frame, index) for index in indices]

    def prompt_id(self, index: int) -> str:
        """The name of prompt `index`; single: what all prompts of its problem have in common, then the depth."""
        if self.protocol == "multi":
            return f"many_shot/multi/{self.length}/{self.seed}/{index}"
        half, place = halved(index)
        number, depth = divmod(place, len(self.depths))
        return f"many_shot/{self.length}/{self.seed}/{HALVES[half]}/{number}/{_spelled(self.depths[depth])}"

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, frame: Frame, index: int) -> Prompt:
        draw, asked = self._asked(index)
        spelled = [frame.ask(tokenizer, p.question, p.answer, end="\n") for p, _ in asked]
        inserted = [[] if depth is None else _example(tokenizer, p) for p, depth in asked]
        room = self.length - len(frame.head) - max(len(ids) + len(answer) for ids, answer in spelled)
        room -= sum(map(len, inserted))
        front, examples = self._examples(tokenizer, [p for p, _ in asked], draw, room)
        haystack, spans = [*frame.head, *front], [(0, 0)] * len(asked)
        places = [-1 if depth is None else int(depth * len(examples) + 0.5) for _, depth in asked]
        for count, example in enumerate([*examples, []]):
            for here in (i for i, place in enumerate(places) if place == count):
                spans[here] = len(haystack), len(haystack) + len(inserted[here])
                haystack += inserted[here]
            haystack += example
        questions = [
            Question(tuple(ids), tuple(answer), p.place, p.answer, NOWHERE if depth is None else depth, span)
            for (p, depth), (ids, answer), span in zip(asked, spelled, spans, strict=True)
        ]
        return Prompt(self.prompt_id(index), tuple(haystack), tuple(questions))

    def _examples(
        self, tokenizer: PreTrainedTokenizerBase, asked: list[Problem], draw: str, room: int
    ) -> tuple[list[int], list[list[int]]]:
        """(the end of an example, the whole examples after it), together `room` tokens."""
        whole: list[list[int]] = []
        left, shortest = room, 0
        for problem in _shuffled(self.problems.problems, f"many_shot/{self.seed}/{draw}"):
            if any(problem is one for one in asked):
                continue
            example = _example(tokenizer, problem)
            if len(example) <= left:
                whole.append(example)
                left -= len(example)
            elif whole:
                return example[len(example) - left :], whole
            else:  # too long for the whole room: perhaps others aren't
                shortest = min(len(example), shortest or len(example))
        if shortest and not whole:
            reason = f"too short for one example beside {_places(asked)}"
            raise TooShortError("length", self.length, reason, self.length - left + shortest)
        if left:
            remedy = f"fills {room - left:,} of {room:,} tokens; give more problems, or ask for a shorter length"
            raise ArgumentError("questions", self.problems.name, remedy)
        return [], whole

    def _asked(self, index: int) -> tuple[str, list[tuple[Problem, Depth]]]:
        """(what the examples are drawn by, the problems asked with their depths) of prompt `index`."""
        half, place = halved(index)
        share, depths = self.seeds.index(self.seed), self.depths
        found = _shuffled(self.problems.problems, "halves")[half::2][share :: len(self.seeds)]
        number, which = (place, 0) if self.protocol == "multi" else divmod(place, len(depths))
        first, chosen = (place * len(depths), depths) if self.protocol == "multi" else (number, (depths[which],))
        if first + len(chosen) > len(found):
            most = len(found) // len(depths) if self.protocol == "multi" else len(found) * len(depths)
            each = f" of each of {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
            remedy = (
                f"the half of its problems that {HALVES[half]}s has enough for {most:,} prompts{each}, not for number "
                f"{place + 1}; give more problems, or ask for fewer prompts, {'seeds ' if each else ''}or depths"
            )
            raise ArgumentError("questions", self.problems.name, remedy)
        asked = _shuffled(found, f"asked/{self.seed}")[first : first + len(chosen)]
        return f"{HALVES[half]}/{number}", list(zip(asked, chosen, strict=True))


def _shuffled(problems: Sequence[Problem], seed: str) -> list[Problem]:
    # Only random() gives the same numbers in every version of Python.
    rng = random.Random(seed)
    return [problems[i] for _, i in sorted((rng.random(), i) for i in range(len(problems)))]


def _places(problems: list[Problem]) -> str:
    return f"problem{'s' * (len(problems) > 1)} {', '.join(problem.place for problem in problems)}"


def _example(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[int]:
    said = _EXAMPLE.replace("{answer}", problem.answer, 1).replace("{key}", problem.question, 1)
    if problem.solution:
        return encode_item(tokenizer, f"{said}\nSolution: {problem.solution}", "\n\n")
    return encode_item(tokenizer, said, "\n")  # one line break follows an answer, as where a solution does


def _depth(given: Any) -> Depth:
    if given is None or given == _LEFT_OUT:
        return None
    try:
        above, _, below = str(given).partition("/")
        depth = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        depth = -1.0
    if isinstance(given, bool) or not 0 <= depth <= 1:
        raise ArgumentError("depths", given, f"must be numbers from 0 to 1, fractions such as '1/3', or {_LEFT_OUT}")
    return depth


def _spelled(depth: Depth) -> str:
    return _LEFT_OUT if depth is None else f"{depth:g}"
