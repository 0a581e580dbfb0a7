"""A model reads a haystack once and answers questions about it, each from a fork of its cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ropewalk.evaluation.kv_fork import cache_after, fork
from ropewalk.evaluation.likelihood import bounded
from ropewalk.evaluation.question_batch import ask_packed, can_pack, greedy_start
from ropewalk.evaluation.statistics import Answer
from ropewalk.patching.fixed_schedule import one_schedule
from ropewalk.patching.input_limits import check_vocabulary
from ropewalk.tasks.base import Prompt, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Reader:
    """A model and its tokenizer, asked without sampling and without gradients."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    def answers(self, prompt: Prompt, setting: str) -> list[Answer]:
        """Read the prompt's haystack, then answer each of its questions, all under one frequency schedule."""
        longest = max(len(question.ids) + len(question.answer_ids) for question in prompt.questions)
        with one_schedule(self.model, len(prompt.haystack_ids) + longest):
            return self.questions(prompt, setting, self.read(prompt.haystack_ids))

    def read(self, ids: tuple[int, ...]) -> DynamicCache:
        """The cache after one pass over `ids`."""
        check_vocabulary(self.model, ids)
        return cache_after(self.model, self._tensor(ids))

    def questions(self, prompt: Prompt, setting: str, cache: DynamicCache) -> list[Answer]:
        """An answer to each question, each continuing from the same cache."""
        check_vocabulary(self.model, (i for q in prompt.questions for i in (*q.ids, *q.answer_ids)))
        if can_pack(self.model, cache):
            ids, answers = [q.ids for q in prompt.questions], [q.answer_ids for q in prompt.questions]
            asked = ask_packed(self.model, cache, ids, answers)
        else:
            asked = [self._ask(question, cache) for question in prompt.questions]
        return [
            Answer(
                prompt=prompt.id,
                setting=setting,
                depth=question.depth,
                key=question.key,
                expected=question.value,
                nll=self._nll(logits, question),
                is_exact=tuple(said) == question.answer_ids,
                generated=str(self.tokenizer.decode(said)),
            )
            for question, (logits, said) in zip(prompt.questions, asked, strict=True)
        ]

    def _nll(self, logits: Tensor, question: Question) -> float:
        answer = torch.tensor(question.answer_ids, device=logits.device)
        return float(bounded(nn.functional.cross_entropy(logits, answer)))

    @torch.no_grad()
    def _ask(self, question: Question, cache: DynamicCache) -> tuple[Tensor, list[int]]:
        """(logits behind the right answer's tokens, the greedy tokens), one question by itself.

        One pass over the question and the right answer gives both while the greedy tokens are right. From the
        first wrong one on, what the model would say depends on what it said.
        """
        answer = question.answer_ids
        with fork(cache):
            logits = self._logits((*question.ids, *answer[:-1]), cache, len(answer)).float()
        said = greedy_start(logits, answer)
        if len(said) < len(answer):
            with fork(cache):
                said = self._continue((*question.ids, *said), cache, len(answer) - len(said), said)
        return logits, said

    def _continue(self, ids: tuple[int, ...], cache: DynamicCache, number: int, said: list[int]) -> list[int]:
        """`said` and `number` more greedy tokens, after `ids`, which end with `said`."""
        said = list(said)
        for _ in range(number):
            said.append(int(self._logits(ids, cache, 1)[-1].argmax()))
            ids = (said[-1],)
        return said

    def _logits(self, ids: tuple[int, ...], cache: DynamicCache, last: int) -> Tensor:
        """(last, vocabulary): logits at the last tokens of `ids`, which follow what is cached."""
        output = self.model(input_ids=self._tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=last)
        logits: Tensor = output.logits[0, -last:]
        return logits

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tensor(self, ids: tuple[int, ...]) -> Tensor:
        return torch.tensor([ids], device=self._device)
