"""Many questions about one cached haystack in one pass: side by side in a sequence, blind to each other.

A question's tokens continue the haystack's positions and see the haystack and themselves only, through a mask. So a
pass over ten questions reads the model's weights once, not ten times. It needs a cache whose layers all keep every
token; where one has a window, questions are asked one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ropewalk.encodings.base import ScoreModule
from ropewalk.evaluation.kv_fork import ForkableLayer, fork


def can_pack(model: nn.Module, cache: DynamicCache) -> bool:
    """Whether the model's attention takes a mask of our own and every layer of its cache keeps all tokens.

    And no score may mix keys that lie side by side: those of another question lie between the haystack's and its own.
    """
    config: Any = model.config
    takes_mask = getattr(config, "_attn_implementation", None) in ("eager", "sdpa")
    if any(isinstance(module, ScoreModule) and module.mixes_keys for module in model.modules()):
        return False
    return takes_mask and all(isinstance(layer, ForkableLayer) for layer in cache.layers)


class PackedQuestions:
    """Questions that continue from one cache, each blind to the others. The cache must be forked around it."""

    def __init__(self, model: nn.Module, cache: DynamicCache):
        self._model, self._cache = model, cache
        self._start = cache.get_seq_length()
        self._owners: list[int] = []
        self._lengths: dict[int, int] = {}

    def feed(self, parts: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Append tokens to some questions, named by number; the logits (tokens, vocabulary) behind each token."""
        tokens: list[int] = []
        positions: list[int] = []
        for owner, ids in parts.items():
            begun = self._lengths.get(owner, 0)
            tokens += ids
            positions += range(self._start + begun, self._start + begun + len(ids))
            self._owners += [owner] * len(ids)
            self._lengths[owner] = begun + len(ids)
        parameter = next(self._model.parameters())
        output: Any = self._model(
            input_ids=torch.tensor([tokens], device=parameter.device),
            position_ids=torch.tensor([positions], device=parameter.device),
            attention_mask=self._mask(len(tokens), parameter),
            past_key_values=self._cache,
            use_cache=True,
        )
        sizes = [len(ids) for ids in parts.values()]
        return dict(zip(parts, output.logits[0].split(sizes), strict=True))

    def _mask(self, new: int, parameter: Tensor) -> Tensor:
        """(1, 1, new, cached + new): 0 where a new token may look, the dtype's lowest number elsewhere."""
        owners = torch.tensor(self._owners, device=parameter.device)
        mine = owners[-new:, None] == owners[None, :]
        order = torch.arange(len(owners), device=parameter.device)
        seen = mine & (order[None, :] <= order[-new:, None])
        mask = torch.zeros(1, 1, new, self._start + len(owners), dtype=parameter.dtype, device=parameter.device)
        mask[..., self._start :].masked_fill_(~seen, torch.finfo(parameter.dtype).min)
        return mask


@torch.no_grad()
def ask_packed(
    model: nn.Module, cache: DynamicCache, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[tuple[Tensor, list[int]]]:
    """For each question: logits (answer tokens, vocabulary) behind the right answer's tokens, and the greedy tokens.

    The first pass feeds the questions with the right answers. While the greedy tokens are right they are the model's
    own continuation; from the first wrong one on, a second pass goes on with what the model said.
    """
    with fork(cache):
        fed = {
            number: [*question, *answer[:-1]]
            for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
        }
        behind = PackedQuestions(model, cache).feed(fed)
    logits = [behind[number][-len(answer) :].float() for number, answer in enumerate(answers)]
    said = [greedy_start(row, answer) for row, answer in zip(logits, answers, strict=True)]
    unfinished = [n for n, answer in enumerate(answers) if len(said[n]) < len(answer)]
    if unfinished:
        with fork(cache):
            packed = PackedQuestions(model, cache)
            parts: dict[int, Sequence[int]] = {n: [*questions[n], *said[n]] for n in unfinished}
            while parts:
                for n, row in packed.feed(parts).items():
                    said[n].append(int(row[-1].argmax()))
                parts = {n: [said[n][-1]] for n in parts if len(said[n]) < len(answers[n])}
    return list(zip(logits, said, strict=True))


def greedy_start(logits: Tensor, answer: Sequence[int]) -> list[int]:
    """The greedy tokens up to and with the first wrong one."""
    said: list[int] = []
    for row, right in zip(logits, answer, strict=True):
        said.append(int(row.argmax()))
        if said[-1] != right:
            break
    return said
