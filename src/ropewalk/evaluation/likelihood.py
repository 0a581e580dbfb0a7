"""What a plan costs on short inputs: the likelihood of held-out text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.evaluation.calibration import start_suffix
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.forkable import forkable_cache
from ropewalk.evaluation.score import mean_interval
from ropewalk.evaluation.store import Store
from ropewalk.evaluation.worst import bounded
from ropewalk.hf import installed
from ropewalk.hf.one_schedule import one_schedule
from ropewalk.hf.reach import check_vocabulary
from ropewalk.tasks.haystack import Text, draw_windows

CHUNK_TOKENS = 1024
SHORT_TOKENS, SHORT_WINDOWS = 512, 8


@torch.no_grad()
def token_nll(model: nn.Module, ids: Sequence[int], newest: int | None = None) -> Tensor:
    """Negative log-likelihood of each token but the first, in nats: shape (N - 1,), float32, on the CPU.

    The text is fed in chunks with a cache, so that the logits of a long text are never there all at once; a rotation
    that depends on the length of a pass is that of the whole text in each of them. With
    `newest`, only that many tokens at the end are judged, (newest,); the others' logits aren't made.
    """
    check_vocabulary(model, ids)
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    config: Any = model.config
    cache = forkable_cache(config, room=len(ids))
    last = len(ids) - 1  # the last token is predicted, never read
    first = 0 if newest is None else last - newest
    losses = []
    with one_schedule(model, len(ids)):
        for start in range(0, last, CHUNK_TOKENS):
            end = min(start + CHUNK_TOKENS, last)
            judged = min(end - start, end - first)
            keep = {} if judged == end - start else {"logits_to_keep": max(judged, 1)}
            output = model(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True, **keep)
            if judged > 0:
                logits, targets = output.logits[0, -judged:].float(), tokens[0, end + 1 - judged : end + 1]
                losses.append(nn.functional.cross_entropy(logits, targets, reduction="none").cpu())
    return torch.cat(losses)


def short_lengths(original_length: int) -> dict[int, int]:
    """At which lengths a plan is measured that is meant for longer ones, each with its number of windows.

    512 tokens, where inputs are usually short, and the training length, in one window as it costs most; one length
    where those are the same.
    """
    return {original_length: 1, min(SHORT_TOKENS, original_length): SHORT_WINDOWS}


def short_cost(
    model: nn.Module,
    tokenizer: Any,
    text: Text,
    original_length: int,
    arms: Sequence[Candidate],
    store: Store,
    on_start: Callable[[str, str, str], None] = lambda *_: None,
) -> dict[str, dict[int, tuple[float, float, float]]]:
    """Mean nats a token of held-out text at `short_lengths`: {name: {length: (mean, low, high)}}, shortest first.

    Windows are the independent units of the intervals; a single window has the whole line for its interval.
    """
    known = {record["key"]: record for record in store.records()}
    found: dict[str, dict[int, tuple[float, float, float]]] = {}
    for arm in arms:
        found[arm.name] = {}
        for length, windows in sorted(short_lengths(original_length).items()):
            key = f"likelihood/{length}/{arm.name}{start_suffix(tokenizer)}"
            if key not in known:
                on_start("short inputs", arm.name, f"{length} tokens")
                known[key] = _likelihood(model, tokenizer, text, arm, length, windows, key)
                store.append(known[key])
            found[arm.name][length] = _spread(known[key]["window_means"])
    return found


def _likelihood(
    model: nn.Module, tokenizer: Any, text: Text, arm: Candidate, length: int, windows: int, key: str
) -> dict[str, Any]:
    began = time.monotonic()
    with installed(model, arm.encoding):
        means = [float(bounded(token_nll(model, ids)).mean()) for ids in draw_windows(text, tokenizer, length, windows)]
    return {
        "key": key,
        "kind": "likelihood",
        "candidate": arm.name,
        "length": length,
        "window_means": means,
        "seconds": round(time.monotonic() - began, 2),
    }


def _spread(means: Sequence[float]) -> tuple[float, float, float]:
    estimate = mean_interval(means, range(len(means)))
    return estimate.mean, estimate.low, estimate.high
