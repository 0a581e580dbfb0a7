"""Many candidates on the same prompts: work they share is done once, and nothing finished is done again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.encodings.model_rotation import rotary_layers
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.read import Reader
from ropewalk.evaluation.score import Answer
from ropewalk.evaluation.shared import SharedReading, first_difference
from ropewalk.evaluation.store import Store
from ropewalk.hf import installed
from ropewalk.tasks.prompts import Prompt, PromptTask

# Each start keeps its layer's input for the whole prompt, tokens x hidden size.
MOST_STARTS = 8


@dataclass(frozen=True)
class Done:
    """One candidate's answers to one prompt, just measured."""

    stage: str
    candidate: str
    prompt: str
    seconds: float
    answers: tuple[Answer, ...]


class Sweep:
    """Measures candidates on prompts and keeps every answer in a store.

    Args:
        on_start: called with (stage, candidate, prompt) before each measurement.
        on_done: called after it.
    """

    def __init__(
        self,
        reader: Reader,
        store: Store,
        on_start: Callable[[str, str, str], None] = lambda *_: None,
        on_done: Callable[[Done], None] = lambda _: None,
    ):
        self.reader, self.store = reader, store
        self._on_start, self._on_done = on_start, on_done
        self._layers = [layer.index for layer in rotary_layers(reader.model)]
        self._answers: dict[tuple[str, str, str], list[Answer]] = {}
        for record in store.records():
            if record.get("kind") == "answers":
                key = record["stage"], record["candidate"], record["prompt"]
                self._answers[key] = [Answer.from_dict(a) for a in record["answers"]]

    def measure(
        self, stage: str, candidates: Sequence[Candidate], task: PromptTask, indices: Sequence[int]
    ) -> dict[str, list[Answer]]:
        """Every candidate's answers to the task's prompts of these indices, by candidate name."""
        found: dict[str, list[Answer]] = {candidate.name: [] for candidate in candidates}
        for index in indices:
            prompt = task.prompts(self.reader.tokenizer, 1, first=index)[0]
            self._measure_prompt(stage, candidates, task.setting, prompt)
            for candidate in candidates:
                found[candidate.name] += self._answers[stage, candidate.name, prompt.id]
        return found

    def is_measured(self, stage: str, candidates: Sequence[Candidate], task: PromptTask, index: int) -> bool:
        """Whether every candidate's answers to one prompt are in the store."""
        prompt = task.prompt_id(index)
        return all((stage, c.name, prompt) in self._answers for c in candidates)

    def _measure_prompt(self, stage: str, candidates: Sequence[Candidate], setting: str, prompt: Prompt) -> None:
        waiting = [c for c in candidates if (stage, c.name, prompt.id) not in self._answers]
        while waiting:
            base = waiting[0].base
            family = [c for c in waiting if c.base == base]
            waiting = [c for c in waiting if c.base != base]
            if len(family) == 1:
                self._measure_alone(stage, family[0], setting, prompt)
            else:
                self._measure_family(stage, family, setting, prompt)

    def _measure_alone(self, stage: str, candidate: Candidate, setting: str, prompt: Prompt) -> None:
        self._on_start(stage, candidate.name, prompt.id)
        began = time.monotonic()
        with installed(self.reader.model, candidate.encoding):
            answers = self.reader.answers(prompt, setting)
        self._keep(stage, candidate, prompt, answers, time.monotonic() - began)

    def _measure_family(self, stage: str, family: Sequence[Candidate], setting: str, prompt: Prompt) -> None:
        """Plans on one base: the base reads the prompt once, each plan from its own first layer on."""
        base = family[0].base
        firsts = {c.name: first_difference(c.encoding, base, self._layers) for c in family}
        ordered = sorted(family, key=lambda c: -firsts[c.name])
        self._on_start(stage, ordered[0].name, prompt.id)
        began = time.monotonic()
        starts = sorted(set(firsts.values()))
        starts = starts[:: math.ceil(len(starts) / MOST_STARTS)]
        shared = SharedReading(self.reader.model, base, prompt.haystack_ids, starts)
        for candidate in ordered:
            with installed(self.reader.model, candidate.encoding):
                is_base = candidate.encoding == base
                cache = shared.cache if is_base else shared.read(candidate.encoding, firsts[candidate.name])
                answers = self.reader.questions(prompt, setting, cache)
            self._keep(stage, candidate, prompt, answers, time.monotonic() - began)
            began = time.monotonic()

    def _keep(self, stage: str, candidate: Candidate, prompt: Prompt, answers: list[Answer], seconds: float) -> None:
        record: dict[str, Any] = {
            "key": f"answers/{stage}/{candidate.name}/{prompt.id}",
            "kind": "answers",
            "stage": stage,
            "candidate": candidate.name,
            "encoding": candidate.encoding.to_dict(),
            "prompt": prompt.id,
            "tokens": len(prompt.haystack_ids),
            "seconds": round(seconds, 2),
            "answers": [answer.to_dict() for answer in answers],
        }
        self.store.append(record)
        self._answers[stage, candidate.name, prompt.id] = answers
        self._on_done(Done(stage, candidate.name, prompt.id, seconds, tuple(answers)))


def mean_nll(answers: Sequence[Answer]) -> float:
    """The mean negative log-likelihood over answers, in nats a token: what candidates are ranked by."""
    return sum(answer.nll for answer in answers) / len(answers)
