"""What a language model knows without training: minimal pairs by likelihood, and last words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.score import Estimate, mean_interval, proportion_interval
from ropewalk.tasks.pairs import Pair, Passage

BATCH = 16


@dataclass(frozen=True)
class WordScore:
    """How often every token of the last word is the likeliest one, and nats a token of it."""

    exact: Estimate
    nll: Estimate


def pair_accuracy(
    model: nn.Module, tokenizer: Any, pairs: Sequence[Pair], on_done: Callable[[int], None] = lambda _: None
) -> dict[str, Estimate]:
    """The share of pairs whose good sentence is the likelier one: by test set, and `all`, with Wilson intervals.

    A sentence's likelihood is that of all its tokens after a start token, where the tokenizer has one, else of all but
    the first. Pairs are the independent units.
    """
    ids = [_ids(tokenizer, sentence) for pair in pairs for sentence in (pair.good, pair.bad)]
    sums = [float(losses.sum()) for losses in _losses(model, ids, on_done)]
    right: dict[str, list[bool]] = {"all": []}
    for number, pair in enumerate(pairs):
        is_right = sums[2 * number] < sums[2 * number + 1]
        right.setdefault(pair.test_set, []).append(is_right)
        right["all"].append(is_right)
    return {name: proportion_interval(found, range(len(found))) for name, found in right.items()}


def last_words(
    model: nn.Module, tokenizer: Any, passages: Sequence[Passage], on_done: Callable[[int], None] = lambda _: None
) -> WordScore:
    """How well the model finds the last word of each passage from all before it."""
    contexts = [_ids(tokenizer, passage.context) for passage in passages]
    whole = [_ids(tokenizer, f"{passage.context} {passage.word}") for passage in passages]
    exact, nats = [], []
    found = _answers(model, whole, on_done)
    for context, ids, (losses, is_likeliest) in zip(contexts, whole, found, strict=True):
        if ids[: len(context)] != context or len(ids) == len(context):
            remedy = "its last word can't be told from what comes before by this tokenizer; take it out"
            raise ArgumentError("last_words", tokenizer.decode(ids[-20:]), remedy)
        size = len(ids) - len(context)
        exact.append(bool(is_likeliest[-size:].all()))
        nats.append(float(losses[-size:].mean()))
    units = range(len(passages))
    return WordScore(proportion_interval(exact, units), mean_interval(nats, units))


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = getattr(tokenizer, "bos_token_id", None)
    ids = ids if start is None else [start, *ids]
    if len(ids) < 2:
        raise ArgumentError("text", text, "has no token to predict; give a longer sentence")
    return ids


def _losses(model: nn.Module, ids: Sequence[list[int]], on_done: Callable[[int], None]) -> list[Tensor]:
    return [losses for losses, _ in _answers(model, ids, on_done)]


@torch.no_grad()
def _answers(model: nn.Module, ids: Sequence[list[int]], on_done: Callable[[int], None]) -> list[tuple[Tensor, Tensor]]:
    """For each sequence: nats of each token but the first, and whether it was the likeliest; in the order given.

    Sequences of about one length share a batch, padded on the right, where a causal model never looks.
    """
    device = next(model.parameters()).device
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for numbers in _batches(ids):
        longest = max(len(ids[number]) for number in numbers)
        tokens = torch.tensor([ids[n] + [0] * (longest - len(ids[n])) for n in numbers], device=device)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").cpu()
        likeliest = (logits.argmax(dim=-1) == tokens[:, 1:]).cpu()
        for row, number in enumerate(numbers):
            size = len(ids[number]) - 1
            found[number] = losses[row, :size], likeliest[row, :size]
        on_done(len(found))
    return [found[number] for number in range(len(ids))]


def _batches(ids: Sequence[list[int]]) -> Iterator[list[int]]:
    ordered = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]
