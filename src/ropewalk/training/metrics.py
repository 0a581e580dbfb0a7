"""The figures that judge a model on a split, gathered batch by batch: no more logits at once than one batch has."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.data.dataset_cache import NO_LABEL
from ropewalk.training.batches import Collator, Rows


@dataclasses.dataclass(frozen=True)
class Figures:
    """How well labelled tokens are told.

    Args:
        nll: nats a labelled token.
        token_accuracy: the share of labelled tokens that are the likeliest.
        sequence_accuracy: the share of sequences all of whose labelled tokens are.
        tokens: labelled tokens.
        sequences: sequences with a label.
    """

    nll: float
    token_accuracy: float
    sequence_accuracy: float
    tokens: int
    sequences: int

    def metric(self, name: str) -> float:
        """The figure that a task is judged by: `accuracy` of whole sequences, or `nll`."""
        return self.sequence_accuracy if name == "accuracy" else self.nll


def measure(
    model: nn.Module, rows: Rows, collator: Collator, batch: int, device: torch.device, share: tuple[int, int] = (0, 1)
) -> Tensor:
    """Sums over a process's share of the rows, (5,) float64 on `device`; `figures_of` the sums of all processes.

    They are: nats, right tokens, right sequences, tokens, sequences. Every process does the same number of forward
    passes, as sharded models want it.

    Args:
        model: a causal model; it is put into `eval` and back as it was.
        rows: what to measure on.
        collator: makes batches of rows.
        batch: sequences a forward pass.
        device: where the model is.
        share: (number of this process, of all processes).
    """
    process, processes = share
    was_training = model.training
    model.eval()
    total = torch.zeros(5, dtype=torch.float64, device=device)
    with torch.no_grad():
        for begin in range(0, len(rows), batch * processes):
            chosen = range(begin + process * batch, min(begin + (process + 1) * batch, len(rows)))
            made = collator(rows.__getitems__(chosen or range(1)))
            sums = _sums(model, made["input_ids"].to(device), made["labels"].to(device))
            if chosen:
                total += sums
    model.train(was_training)
    return total


def figures_of(total: Tensor) -> Figures:
    """The figures from the sums that `measure` gives."""
    nats, right, whole, tokens, sequences = total.tolist()
    return Figures(
        nll=nats / max(tokens, 1),
        token_accuracy=right / max(tokens, 1),
        sequence_accuracy=whole / max(sequences, 1),
        tokens=int(tokens),
        sequences=int(sequences),
    )


def _sums(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """The five sums of a batch, ids and labels (B, N); float64 (5,)."""
    total = torch.zeros(5, dtype=torch.float64, device=ids.device)
    # A label's prediction is made one place before; only places that some sequence needs go through the last layer.
    asked = labels[:, 1:] != NO_LABEL
    places = asked.any(dim=0).nonzero()[:, 0]
    logits = model(input_ids=ids, logits_to_keep=places if len(places) else 1, use_cache=False).logits
    if not len(places):
        return total
    targets, asked = labels[:, places + 1], asked[:, places]
    for of_one, wanted, counted in zip(logits, targets, asked, strict=True):
        if not counted.any():
            continue
        chosen, right = of_one[counted].float(), wanted[counted]
        is_right = chosen.argmax(dim=-1) == right
        nats = nn.functional.cross_entropy(chosen, right, reduction="none").double().sum()
        one = (nats, is_right.sum(), is_right.all(), counted.sum(), torch.ones_like(nats))
        total += torch.stack([value.double() for value in one])
    return total


def finite(value: float) -> float | None:
    """The number, or None in the place of NaN and infinity, which JSON doesn't have."""
    return value if math.isfinite(value) else None


def figure_text(value: float | None, metric: str) -> str:
    """A metric as a person reads it: accuracy in percent, nats with four digits."""
    if value is None:
        return "not a number"
    return f"{value:.1%}" if metric == "accuracy" else f"{value:.4f}"
