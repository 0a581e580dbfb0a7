"""Remaps of positions as candidates beside length rules, in sizes that fit the lengths."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError, RopewalkError, unknown_name
from ropewalk.evaluation.candidates import Candidate, rule_candidates
from ropewalk.patching import installed

# The kinds by name, with the settings that a search tries: windows as a share of the training length, likeliest first,
# and for Self-Extend the share of it under which the smallest group is to keep all far positions. Past 0.83 a model
# was seen to lose what its training length still gave it.
_SELF_EXTEND = ((1 / 4, 0.84), (1 / 8, 0.71), (1 / 2, 0.84))
_RECTIFIED, _CHUNK = 1 / 2, 3 / 4


class _Form(NamedTuple):
    """How the sizes of a remap are written, as a pattern and for people."""

    pattern: str
    shown: str


_FORMS = {
    SelfExtend.kind: _Form(r"([0-9]{1,9})/([0-9]{1,9})", "WINDOW/GROUP"),
    ReRoPE.kind: _Form(r"([0-9]{1,9})(?:/([0-9]?\.?[0-9]{1,9}))?", "WINDOW or WINDOW/LEAK"),
    DualChunk.kind: _Form(r"([0-9]{1,9})/([0-9]{1,9})", "CHUNK/LOCAL"),
}
# So many rules come before dual chunk attention.
_RULES_FIRST = 4
REMAPS = (SelfExtend.kind, ReRoPE.kind, DualChunk.kind)


def remap_candidates(
    model: nn.Module,
    own: RoPE | PerLayer,
    original_length: int,
    target_length: int,
    stretched: Callable[[int], bool] = lambda _: True,
) -> list[Candidate]:
    """Self-Extend with several windows, ReRoPE and dual chunk attention on a model's own rotation, likeliest first.

    No distance in `target_length` tokens reaches the training length. Under Self-Extend a quarter of the training
    length, an eighth or half of it stays exact, and the smallest group is taken that keeps far positions under a share
    of it; half of it stays exact under ReRoPE; dual chunk attention has chunks of three quarters with a local window
    of a quarter. Each is called after its sizes in tokens. Remaps that the model can't have are left out.

    Args:
        stretched: whether a layer is remapped; layers with a window don't see far enough to need it.
    """
    found = []
    for name in REMAPS:
        for remap in _sized(name, original_length, target_length):
            with contextlib.suppress(RopewalkError):
                found.append(_candidate(model, own, remap, stretched))
    return found


def smallest_group(window: int, target_length: int, furthest: float) -> int:
    """The smallest group of Self-Extend, 2 or more, under which no distance in so many tokens is over `furthest`.

    Raises ArgumentError for a window that leaves no room for far positions.
    """
    if window >= furthest:
        remedy = f"leaves no room for far positions, which are to stay under {furthest:.0f} tokens; give a smaller one"
        raise ArgumentError("window", window, remedy)
    group = 2
    while group < target_length and _largest(window, group, target_length) > furthest:
        group += 1
    return group


def _largest(window: int, group: int, length: int) -> int:
    return (length - 1) // group + window - window // group


def _sized(name: str, original_length: int, target_length: int) -> list[Callable[[RoPE], Remap]]:
    """The settings of one kind that suit the lengths, likeliest first."""

    def tokens(share: float) -> int:
        return max(1, int(share * original_length))

    def self_extend(window: int, group: int) -> Callable[[RoPE], Remap]:
        return lambda rope: SelfExtend(rope, window=window, group=group)

    if name == SelfExtend.kind:
        pairs = [
            (tokens(share), smallest_group(tokens(share), target_length, furthest * original_length))
            for share, furthest in _SELF_EXTEND
            if tokens(share) < furthest * original_length
        ]
        return [self_extend(*pair) for pair in dict.fromkeys(pairs)]
    if name == ReRoPE.kind:
        return [lambda rope: ReRoPE(rope, window=tokens(_RECTIFIED))]
    if name == DualChunk.kind:
        chunk = tokens(_CHUNK)
        return [lambda rope: DualChunk(rope, chunk_size=chunk, local_size=max(1, original_length - chunk))]
    raise unknown_name("remap", name, REMAPS)


def _candidate(
    model: nn.Module, own: RoPE | PerLayer, remap: Callable[[RoPE], Remap], stretched: Callable[[int], bool]
) -> Candidate:
    encoding = _remapped(own, remap, stretched)
    check_serves(model, encoding)
    each = [encoding] if isinstance(own, RoPE) else [entry for _, entry in getattr(encoding, "layers", ())]
    made = next(entry for entry in each if isinstance(entry, Remap))
    return Candidate(f"{made.kind} {made.sizes}", encoding)


def named_remap(
    spec: str,
    own: RoPE | PerLayer,
    original_length: int,
    target_length: int,
    stretched: Callable[[int], bool] = lambda _: True,
) -> Encoding:
    """The remap of a rotation that a config or a command line names: `self_extend`, or with its sizes in tokens.

    `self_extend:WINDOW/GROUP`, `rerope:WINDOW` or `rerope:WINDOW/LEAK`, `dual_chunk:CHUNK/LOCAL`; without sizes the
    likeliest ones for the lengths.

    Raises:
        ArgumentError: an unknown kind, sizes that aren't such numbers, or that don't fit the lengths.
    """
    kind, sizes = parsed_remap(spec)
    if not sizes:
        return _remapped(own, _sized(kind, original_length, target_length)[0], stretched)

    def remap(rope: RoPE) -> Remap:
        if kind == SelfExtend.kind:
            return SelfExtend(rope, window=int(sizes[0]), group=int(sizes[1]))
        if kind == ReRoPE.kind:
            return ReRoPE(rope, window=int(sizes[0]), leak=sizes[1] if len(sizes) > 1 else None)
        return DualChunk(rope, chunk_size=int(sizes[0]), local_size=int(sizes[1]))

    example = own if isinstance(own, RoPE) else next(one for _, one in own.layers if isinstance(one, RoPE))
    check_fits(remap(example), original_length, target_length)
    return _remapped(own, remap, stretched)


def is_remap_name(spec: str) -> bool:
    """Whether a name on a command line or in a config is a remap's, with sizes or without."""
    return spec.partition(":")[0] in REMAPS


def parsed_remap(spec: str) -> tuple[str, tuple[float, ...]]:
    """(kind, sizes) of what `named_remap` takes; sizes are empty where none are told."""
    kind, colon, rest = spec.partition(":")
    if kind not in REMAPS:
        raise unknown_name("remap", kind, REMAPS)
    if not colon:
        return kind, ()
    form = _FORMS[kind]
    found = re.fullmatch(form.pattern, rest)
    if found is None:
        raise ArgumentError("remap", spec, f"give {kind}:{form.shown}, in tokens")
    return kind, tuple(float(number) for number in found.groups() if number is not None)


def check_fits(remap: Remap, original_length: int, target_length: int) -> None:
    """Refuse sizes that do nothing in so many tokens, or let distances reach the training length.

    Raises ArgumentError that tells what would fit.
    """
    name, near = remap.near
    if near >= target_length:
        remedy = f"is not shorter than the text of {target_length:,} tokens, so nothing changes; give less"
        raise ArgumentError(name, near, f"{remedy} than the training length, {original_length:,}")
    furthest = remap.largest_distance(target_length)
    if furthest < original_length:
        return
    beyond = f"lets distances reach {furthest:,.0f}, but the model was trained on {original_length:,} tokens"
    if isinstance(remap, SelfExtend) and near < original_length - 1:
        group = smallest_group(near, target_length, original_length - 1)
        raise ArgumentError("group", remap.group, f"{beyond}; with this window give {group} or more")
    if isinstance(remap, ReRoPE) and remap.leak is not None and near < original_length:
        leak = (original_length - 1 - near) / max(1, target_length - 1 - near)
        fits = [math.floor(leak * 10**digits) / 10**digits for digits in (3, 6)]
        shown = next((f"{value:.6f}".rstrip("0") + " or less" for value in fits if value > 0), "no leak")
        raise ArgumentError("leak", remap.leak, f"{beyond}; with this window give {shown}")
    raise ArgumentError(name, near, f"{beyond}; give less")


def search_candidates(
    model: nn.Module,
    own: RoPE | PerLayer,
    original_length: int,
    target_length: int,
    stretched: Callable[[int], bool] = lambda _: True,
) -> list[Candidate]:
    """Length rules and remaps in the order of a search, likeliest first.

    The first rule (YaRN, or the model's own taken further), Self-Extend and ReRoPE, the next rules, dual chunk
    attention, and all other rules and factors.
    """
    rules = rule_candidates(own, original_length, target_length, stretched)
    remaps = remap_candidates(model, own, original_length, target_length, stretched)
    likely = [c for c in remaps if not c.name.startswith(DualChunk.kind)]
    others = [c for c in remaps if c not in likely]
    return [*rules[:1], *likely, *rules[1:_RULES_FIRST], *others, *rules[_RULES_FIRST:]]


def _remapped(own: RoPE | PerLayer, remap: Callable[[RoPE], Remap], stretched: Callable[[int], bool]) -> Encoding:
    if isinstance(own, RoPE):
        return remap(own)
    return own.map(lambda layer, rope: remap(rope) if isinstance(rope, RoPE) and stretched(layer) else rope)


def check_serves(model: nn.Module, encoding: Encoding) -> None:
    """Refuse what a model can't have, also where only its attention says so."""
    device = next(model.parameters()).device
    with torch.no_grad(), installed(model, encoding):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long, device=device), use_cache=False)
