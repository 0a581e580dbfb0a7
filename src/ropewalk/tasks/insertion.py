"""Sentences hidden in a longer text at known depths, with start tokens after each in the noisy setting."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ropewalk.data.text import Text, draw_window, spelled
from ropewalk.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS = ("original", "noisy")
SNAP_TOKENS = 50
# Steps of the golden ratio spread the windows of prompts 0, 1, 2 ... evenly over the text.
_GOLDEN = 0.6180339887498949


def check_hiding(length: int, setting: str, noise_tokens: int) -> None:
    """Refuse a length, a setting or a number of start tokens that no task of this kind can use."""
    if setting not in SETTINGS:
        raise ArgumentError("setting", setting, f"choose {' or '.join(SETTINGS)}")
    if length < 1:
        raise ArgumentError("length", length, "must be a positive number of tokens")
    if noise_tokens < 1:
        raise ArgumentError("noise_tokens", noise_tokens, "must be at least 1; for none use setting='original'")


def checked_depths(depths: int | Sequence[float]) -> int | tuple[float, ...]:
    """A number of uniform depths as it is, depths as a tuple; refuses what `depth_values` can't use."""
    if isinstance(depths, int) and not isinstance(depths, bool):
        if depths < 1:
            raise ArgumentError("depths", depths, "must be at least 1")
        return depths
    try:
        values = () if isinstance(depths, (str, bool)) else tuple(float(d) for d in depths)
    except (TypeError, ValueError):
        values = ()
    if not values or not all(0 <= d <= 1 for d in values) or list(values) != sorted(set(values)):
        raise ArgumentError("depths", depths, "must be a number of depths, or distinct ones from 0 to 1, ascending")
    return values


def depth_values(depths: int | tuple[float, ...]) -> tuple[float, ...]:
    """The depths, ascending: as given, or so many from 0 to 1; a single uniform depth is the middle."""
    if not isinstance(depths, int):
        return depths
    return (0.5,) if depths == 1 else tuple(i / (depths - 1) for i in range(depths))


def start_tokens(tokenizer: PreTrainedTokenizerBase, setting: str, count: int) -> list[int]:
    """What follows each hidden sentence: nothing, or in the noisy setting `count` start (else end) tokens."""
    if setting == "original":
        return []
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ArgumentError("setting", setting, "the tokenizer has no start or end token; use 'original'")
    return [int(start)] * count


def window_of(text: Text, tokenizer: PreTrainedTokenizerBase, count: int, seed: int, index: int) -> list[int]:
    """`count` tokens of the text for prompt `index`: those of different prompts are spread over it."""
    start = random.Random(f"window/{seed}").random()
    return draw_window(text, tokenizer, count, (start + index * _GOLDEN) % 1.0)


def place_in(tokenizer: PreTrainedTokenizerBase, window: Sequence[int], depth: float) -> int:
    """The index in the window where a sentence goes: its depth, moved to a sentence's end within SNAP_TOKENS.

    Ends without a line break come first: there the hidden sentence's own leading space and the next sentence's fit.
    A greater depth never has a smaller place.
    """
    wanted = round(depth * len(window))
    if wanted in (0, len(window)):
        return wanted
    near = [place for step in range(SNAP_TOKENS + 1) for place in (wanted - step, wanted + step)]
    inside = {place: spelled(tokenizer, window[place - 1]) for place in near if 0 < place < len(window)}
    for ends in (r"[.!?][^\n]*$", r"[.!?\n]"):
        for place, before in inside.items():
            if re.search(ends, before):
                return place
    return wanted


def hide(
    head: Sequence[int],
    window: Sequence[int],
    places: Sequence[int],
    hidden: Sequence[Sequence[int]],
    noise: Sequence[int],
) -> tuple[list[int], list[tuple[int, int]]]:
    """The head and the window with pieces at ascending places, each followed by the noise; and their [start, end)."""
    haystack, spans, done = list(head), [], 0
    for place, piece in zip(places, hidden, strict=True):
        haystack += window[done:place]
        spans.append((len(haystack), len(haystack) + len(piece)))
        haystack += [*piece, *noise]
        done = place
    return haystack + list(window[done:]), spans
