"""What a plan costs on short inputs: the likelihood of held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.evaluation.forkable import forkable_cache

CHUNK_TOKENS = 1024


@torch.no_grad()
def token_nll(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """Negative log-likelihood of each token but the first, in nats: shape (N - 1,), float32, on the CPU.

    The text is fed in chunks with a cache, so that the logits of a long text are never there all at once.
    """
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    config: Any = model.config
    cache = forkable_cache(config, room=len(ids))
    losses = []
    for start in range(0, len(ids) - 1, CHUNK_TOKENS):
        part = tokens[:, start : min(start + CHUNK_TOKENS, len(ids) - 1)]
        logits = model(input_ids=part, past_key_values=cache, use_cache=True).logits[0].float()
        targets = tokens[0, start + 1 : start + 1 + part.shape[1]]
        losses.append(nn.functional.cross_entropy(logits, targets, reduction="none").cpu())
    return torch.cat(losses)
