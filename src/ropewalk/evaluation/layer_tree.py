"""Encodings as a tree of what they do in each layer, and where in it each reading of a prompt starts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE


def layer_path(encoding: Encoding, layers: Sequence[int]) -> tuple[Hashable, ...]:
    """For each of the rotary `layers` a value that is equal where two encodings do the same in that layer.

    Only rotations are compared layer by layer; an encoding of another kind is equal to itself alone.
    """
    inner = [entry for _, entry in encoding.layers] if isinstance(encoding, PerLayer) else [encoding]
    if not all(isinstance(entry, RoPE | DoPE) for entry in inner):
        return (("whole", encoding),) * len(layers)
    return tuple(_in_layer(encoding, layer) for layer in layers)


def _in_layer(encoding: Encoding, layer: int) -> Hashable:
    """What an encoding does in a layer: of a plan only what concerns the heads that it selects there."""
    if isinstance(encoding, PerLayer):
        return _in_layer(dict(encoding.layers)[layer], layer)
    if not isinstance(encoding, DoPE) or not encoding.heads.in_layer(layer):
        return encoding.rope.at(layer) if isinstance(encoding, DoPE) else encoding.at(layer)
    noise = (encoding.seed, encoding.sigma) if encoding.mode == "gaussian" else ()
    slow = encoding.original_length if encoding.mode == "parts" else 0
    change = encoding.mode, encoding.reading, encoding.scope, encoding.apply_to, noise, slow
    return "dope", encoding.heads.in_layer(layer), change, encoding.rope.at(layer)


def depth_first(numbers: list[int], paths: Sequence[Sequence[Hashable]], depth: int) -> list[int]:
    """The encodings in an order in which neighbours agree longest; plain rotations first, then as they were given."""
    if len(numbers) == 1 or not numbers or depth == len(paths[numbers[0]]):
        return numbers
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        groups.setdefault(paths[number][depth], []).append(number)
    ordered = sorted(groups.items(), key=lambda group: isinstance(group[0], tuple))
    return [number for _, group in ordered for number in depth_first(group, paths, depth + 1)]


def later_starts(starts: Sequence[int], number: int, layers: int) -> dict[int, int]:
    """The layers at which later readings leave the path of reading `number`, and how many do so there."""
    lowest = layers
    uses: dict[int, int] = {}
    for start in starts[number + 1 :]:
        if start == 0:
            break
        # One that starts above the lowest start so far leaves a later reading's path, not this one's.
        if start <= lowest and start < layers:
            lowest = start
            uses[start] = uses.get(start, 0) + 1
    return uses


def bounded(starts: Sequence[int], layers: int, most: int) -> list[int]:
    """The starts, some of them lowered so that no more than `most` inputs are kept at any time.

    Given up are those that cost the fewest layers: uses x the way down to the next start that is kept.
    """
    bounded = list(starts)
    for number in range(len(bounded)):
        while len(uses := later_starts(bounded, number, layers)) > most:
            kept = [0, *sorted(uses)]
            below = dict(zip(kept[1:], kept, strict=False))
            given_up = min(uses, key=lambda at: uses[at] * (at - below[at]))
            lowest = layers
            for later in range(number + 1, len(bounded)):
                if bounded[later] == 0:
                    break
                if bounded[later] == given_up and given_up <= lowest:
                    bounded[later] = below[given_up]
                lowest = min(lowest, bounded[later])
    return bounded
