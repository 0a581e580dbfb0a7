"""What a plan costs on short inputs: the likelihood of held-out text."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.data.text import Text, draw_windows
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.evaluation.calibration import start_suffix
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.kv_fork import forkable_cache
from ropewalk.evaluation.records import Store
from ropewalk.evaluation.statistics import mean_interval
from ropewalk.patching import installed
from ropewalk.patching.fixed_schedule import one_schedule
from ropewalk.patching.input_limits import check_vocabulary

# Nats a token: far more than any real answer has, and still a number that means and files can hold.
WORST_NLL = 100.0


def bounded(losses: Tensor) -> Tensor:
    """Losses in nats, those that are no number or more than `WORST_NLL` as that; the shape stays."""
    return losses.nan_to_num(WORST_NLL).clamp(max=WORST_NLL)


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


FULL, SLIDING = "full", "sliding"
WAYS = (FULL, SLIDING)


def multiples(training_length: int, furthest: int) -> list[int]:
    """Positions 0, L, 2 L, ... up to `furthest` times the training length L: the edges of a bucket for each length."""
    return [training_length * i for i in range(furthest + 1)]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How windows are read to see what becomes of a model at 1, 2, ... `furthest` times its training length L.

    `full`: a window of `furthest` L tokens is read once; the figure at k L is the mean over positions (k - 1) L to
    k L - 1, which are the last L tokens of a text of k L. Longer texts are judged on later tokens.

    `sliding`: a context of k L tokens moves over the window by `stride` tokens at a time and only its newest `stride`
    tokens are judged, which have all that context before them. Every length is judged on the same tokens, about L of a
    window, so that what differs is the context alone. It costs (`furthest` + 1) L / (2 `stride`) times as much.

    Args:
        training_length: L in tokens.
        furthest: the longest length, in training lengths.
        way: `full` or `sliding`.
        stride: for `sliding`, 1 to L - 1 tokens; None: L / 2.
    """

    training_length: int
    furthest: int = 10
    way: str = FULL
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise unknown_name("way", self.way, WAYS)
        _check_whole("training_length", self.training_length, 2)
        _check_whole("furthest", self.furthest, 1)
        if self.way == FULL and self.stride is not None:
            raise ArgumentError("stride", self.stride, f"is for the {SLIDING} way; leave it out")
        if self.way == SLIDING:
            stride = self.training_length // 2 if self.stride is None else self.stride
            _check_whole("stride", stride, 1, self.training_length - 1)
            object.__setattr__(self, "stride", stride)

    @property
    def lengths(self) -> list[int]:
        """The lengths at which there is a figure, in tokens."""
        return multiples(self.training_length, self.furthest)[1:]

    @property
    def longest(self) -> int:
        """Tokens that a model reads at once at the most."""
        return self.training_length * self.furthest

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return self.longest if self.stride is None else self.longest + (self._moves - 1) * self.stride

    @property
    def _moves(self) -> int:
        """How often a context is placed in a window."""
        return 1 if self.stride is None else max(1, self.training_length // self.stride)

    def nats(self, model: nn.Module, window: Sequence[int], start: Sequence[int] = ()) -> list[float]:
        """Mean nats a token at each of `lengths`.

        Args:
            model: a causal model.
            window: token ids, `self.window` of them.
            start: what every text begins with, such as a start token; it takes the place of as many tokens.
        """
        if len(window) != self.window:
            raise ArgumentError("window", len(window), f"give {self.window} tokens")
        if self.stride is None:
            losses = token_nll(model, [*start, *window[: len(window) - len(start)]])
            edges = multiples(self.training_length, self.furthest)
            # Position 0 has nothing before it, so the losses begin with position 1.
            parts = [losses[max(first - 1, 0) : last - 1] for first, last in itertools.pairwise(edges)]
            return [float(part.double().mean()) for part in parts]
        return [self._slid(model, window, context, start) for context in self.lengths]

    def judged(self, length: int) -> int:
        """How many tokens of a window are judged at a length."""
        if self.stride is not None:
            return self._moves * self.stride
        return self.training_length - (length == self.training_length)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return dataclasses.asdict(self)

    def _slid(self, model: nn.Module, window: Sequence[int], context: int, start: Sequence[int]) -> float:
        assert self.stride is not None
        total = 0.0
        for move in range(self._moves):
            end = self.longest + move * self.stride
            ids = [*start, *window[end - context + len(start) : end]]
            total += float(token_nll(model, ids, newest=self.stride).double().mean())
        return total / self._moves


def _check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise ArgumentError(name, value, f"give a whole number, {limits}")
