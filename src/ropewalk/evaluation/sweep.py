"""Many candidates on the same prompts: work they share is done once, and nothing finished is done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.prefix_sharing import SharedReading
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.records import Store
from ropewalk.evaluation.statistics import Answer
from ropewalk.patching import installed
from ropewalk.tasks.base import Prompt, PromptTask


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
        if not waiting:
            return
        shared = SharedReading(self.reader.model, prompt.haystack_ids, [c.encoding for c in waiting])
        for index in shared.order:
            candidate = waiting[index]
            self._on_start(stage, candidate.name, prompt.id)
            began = time.monotonic()
            with installed(self.reader.model, candidate.encoding):
                cache = shared.read(index)
                with shared.asking():
                    answers = self.reader.questions(prompt, setting, cache)
            del cache  # so that only its shared layers are there during the next reading
            self._keep(stage, candidate, prompt, answers, time.monotonic() - began)

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
