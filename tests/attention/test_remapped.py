"""Remaps by torch's kernels: equal to the scores block by block and to the papers' distances, in every layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.attention.cases import close, gradients
from tests.encodings.test_remap import distance_of
from tests.reference import attention as reference
from tests.reference import frequencies as reference_frequencies
from tests.reference import remap as reference_remap
from torch import Tensor

from ropewalk.attention import contiguous as runs_module
from ropewalk.attention import merged, remapped
from ropewalk.attention.blockwise import attend_scored
from ropewalk.attention.mask import Visible
from ropewalk.attention.remapped import attend_remapped
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.remap import Remap, RemapModule
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.scaling import YaRN

SCALE, D = 0.3, 8
YARN = RoPE(D, rule=YaRN(4.0, 64))
EACH = [SelfExtend(YARN, 5, 2), ReRoPE(YARN, 5), ReRoPE(YARN, 5, 0.25), DualChunk(YARN, 6, 4)]
each = pytest.mark.parametrize("remap", EACH, ids=["self_extend", "rerope", "leaky", "dual_chunk"])


@st.composite
def remaps(draw: st.DrawFn) -> Remap:
    rope = draw(st.sampled_from([YARN, RoPE(D, layout="interleaved"), RoPE(D, rotary_dim=4)]))
    window = draw(st.integers(1, 12))
    kind = draw(st.sampled_from(["self_extend", "rerope", "leaky", "dual_chunk"]))
    if kind == "self_extend":
        return SelfExtend(rope, window, draw(st.integers(1, 4)))
    if kind == "dual_chunk":
        return DualChunk(rope, draw(st.integers(window, 15)), window)
    return ReRoPE(rope, window, 0.25 if kind == "leaky" else None)


def module_of(remap: Remap) -> RemapModule:
    made = remap.module()
    assert isinstance(made, RemapModule)
    return made


@contextmanager
def sizes(least_band: int = 256, rows: int = 256, least_prefix: int = 512) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "LEAST_BAND", least_band)
        patch.setattr(merged, "ROWS", rows)
        patch.setattr(runs_module, "LEAST_PREFIX", least_prefix)
        yield


@contextmanager
def no_blocks() -> Iterator[None]:
    """Where all scores of a block would be taken, the test fails."""

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("block by block")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remapped, "attend_scored", refuse)
        yield


class Input:
    """q, k and v at positions that count up from `start`, or from each row's first token after its padding."""

    def __init__(self, queries: int, keys: int, pads: tuple[int, ...] = (0,), start: int = 0, **options: Any):
        dtype, size = options.get("dtype", torch.float32), options.get("size", D)
        heads, groups, batch = options.get("heads", 6), options.get("groups", 2), len(pads)
        self.q = torch.randn(batch, heads, queries, D, dtype=dtype)
        self.k, self.v = (torch.randn(batch, groups, keys, n, dtype=dtype) for n in (D, size))
        of_keys = torch.stack([(torch.arange(keys) - pad).clamp(min=0) + start for pad in pads])
        self.positions = of_keys[:, keys - queries :], of_keys
        self.plain = Visible(queries, keys, window=options.get("window"))
        self.mask: Tensor | None = None
        if any(pads):
            self.mask = (torch.arange(keys) >= torch.tensor(pads)[:, None])[:, None, None]

    def visible(self, form: str = "bool") -> Visible:
        if self.mask is None:
            return self.plain
        mask = self.mask.expand(-1, -1, self.plain.queries, -1)
        if form == "lowest":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return Visible(self.plain.queries, self.plain.keys, window=self.plain.window, mask=mask)

    def blockwise(self, module: RemapModule, visible: Visible | None = None) -> Tensor:
        visible = self.visible() if visible is None else visible
        return attend_scored(module, self.q, self.k, self.v, self.positions, visible, SCALE)

    def attended(self, module: RemapModule, visible: Visible | None = None, stored: bool = False) -> Tensor:
        k = module.stored(self.k, self.positions[1]) if stored else self.k
        visible = self.visible() if visible is None else visible
        return attend_remapped(module, self.q, k, self.v, self.positions, visible, SCALE, is_stored=stored)


@st.composite
def laid_out(draw: st.DrawFn) -> dict[str, Any]:
    queries, more = draw(st.integers(1, 20)), draw(st.just(0) | st.integers(1, 30))
    pads = draw(st.lists(st.integers(0, min(5, queries + more - 1)), min_size=1, max_size=3))
    return {
        "queries": queries,
        "keys": queries + more,
        "pads": tuple(pads),
        "start": draw(st.sampled_from([0, 1, 17])),
        "window": draw(st.none() | st.integers(1, 20)),
        "size": draw(st.sampled_from([D, 3, 11])),
        "groups": draw(st.sampled_from([1, 2, 6])),
    }


class TestEqualsBlocks:
    @given(
        remap=remaps(),
        layout=laid_out(),
        form=st.sampled_from(["bool", "lowest"]),
        least=st.sampled_from([1, 3, 256]),
        rows=st.sampled_from([3, 256]),
    )
    def test_content_and_stored_keys(
        self, remap: Remap, layout: dict[str, Any], form: str, least: int, rows: int
    ) -> None:
        given, module = Input(**layout), module_of(remap)
        expected = given.blockwise(module)
        with sizes(least, rows), no_blocks():
            for stored in (False, True):
                close(given.attended(module, given.visible(form), stored), expected)

    @given(
        remap=remaps(),
        prefix=st.integers(2, 30),
        owners=st.sampled_from([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 2, 0, 1, 2], [0]]),
        more=st.booleans(),
        form=st.sampled_from(["bool", "lowest"]),
    )
    def test_packed_questions_after_a_prefix(
        self, remap: Remap, prefix: int, owners: list[int], more: bool, form: str
    ) -> None:
        """Each question's tokens stand right after the prefix and don't see those of the others."""
        queries, of_all = len(owners), owners * 2 if more else owners
        keys = prefix + len(of_all)
        given, module = Input(queries, keys), module_of(remap)
        own = torch.tensor([prefix + of_all[:i].count(owner) for i, owner in enumerate(of_all)])
        given.positions = own[None, -queries:], torch.cat([torch.arange(prefix), own])[None]
        whose = torch.cat([torch.full((prefix,), -1), torch.tensor(of_all)])
        order = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None]
        seen = (order & ((whose == -1) | (whose == whose[-queries:, None])))[None, None]
        mask = seen if form == "bool" else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        expected = given.blockwise(module, Visible(queries, keys, causal=False, mask=seen))
        with sizes(least_prefix=2), no_blocks():
            for stored in (False, True):
                close(given.attended(module, Visible(queries, keys, causal=False, mask=mask), stored), expected)

    @given(
        remap=remaps(),
        seen=st.lists(st.booleans(), min_size=54, max_size=54),
        least=st.sampled_from([2, 512]),
        form=st.sampled_from(["bool", "lowest"]),
    )
    def test_any_mask(self, remap: Remap, seen: list[bool], least: int, form: str) -> None:
        """The fourth query sees nothing, and gets zeros also where a mask of numbers says so."""
        given, module = Input(7, 9, (0, 0)), module_of(remap)
        mask = torch.tensor([*seen[:27], *[False] * 9, *seen[27:]]).reshape(1, 1, 7, 9)
        expected = given.blockwise(module, Visible(7, 9, mask=mask))
        if form == "lowest":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        with sizes(least_prefix=least):
            for stored in (False, True):
                found = given.attended(module, Visible(7, 9, mask=mask), stored)
                close(found, expected)
                assert not found[:, :, 3].any()

    @each
    def test_positions_that_do_not_count_up(self, remap: Remap) -> None:
        given, module = Input(7, 9), module_of(remap)
        given.positions = given.positions[0] * 2, given.positions[1] * 2
        for stored in (False, True):
            close(given.attended(module, stored=stored), given.blockwise(module))

    @each
    def test_gradients_are_those_of_blocks(self, remap: Remap) -> None:
        given, module, found = Input(9, 12, (0, 2), dtype=torch.float64), module_of(remap), []
        wanted = [x.requires_grad_() for x in (given.q, given.k, given.v)]
        for out in (given.attended(module), given.blockwise(module)):
            found.append(gradients(out, wanted))
        assert all(bool(g.any()) for g in found[0])
        for ours, theirs in zip(*found, strict=True):
            close(ours, theirs, 1e-12)


class TestEqualsThePapers:
    @given(remap=remaps(), layout=laid_out())
    def test_distances_in_float64(self, remap: Remap, layout: dict[str, Any]) -> None:
        """Angles are float32: at positions under 70 they are right to some 1e-6."""
        given, module = Input(**{**layout, "groups": 1}, heads=2, dtype=torch.float64), module_of(remap)
        rope = remap.single_rope()
        turned = rope.rotary_dim or D
        frequencies = (
            reference_frequencies.default(turned, 1e4)
            if rope.rule is None
            else reference_frequencies.yarn(turned, 1e4, 4.0, 64, 32.0, 1.0, True)
        )
        factor = 1.0 if rope.rule is None else reference_frequencies.yarn_scale(4.0)
        scores = torch.zeros(*given.q.shape[:3], given.k.shape[2], dtype=torch.float64)
        for b in range(len(given.q)):
            positions = [p[b].tolist() for p in given.positions]
            for h in range(2):
                q, k = given.q[b, h].tolist(), given.k[b, 0].tolist()
                told = *positions, distance_of(remap), frequencies, rope.layout, factor
                scores[b, h] = torch.tensor(reference_remap.scores(q, k, *told), dtype=torch.float64)
        expected = reference.attention(scores * SCALE, given.v, window=given.plain.window, mask=given.mask)
        for stored in (False, True):
            found = given.attended(module, stored=stored)
            assert found.dtype == torch.float64
            assert (found - expected).abs().max() <= 2e-6 * expected.abs().max().clamp(min=1.0)


class TestParts:
    @given(remap=remaps(), cuts=st.lists(st.integers(1, 39), max_size=3), window=st.none() | st.integers(1, 20))
    def test_chunks_and_steps_equal_the_whole(self, remap: Remap, cuts: list[int], window: int | None) -> None:
        """Chunk by chunk, then token by token, over keys stored as they came."""
        given, module = Input(40, 40, window=window), module_of(remap)
        whole, found = given.attended(module), []
        edges = sorted({0, *cuts, *range(36, 41)})
        stored = torch.empty_like(given.k)
        for begin, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007
            new = slice(begin, end)
            stored[:, :, new] = module.stored(given.k[:, :, new], given.positions[1][:, new])
            part = tuple(p[:, s] for p, s in zip(given.positions, (new, slice(0, end)), strict=True))
            held = given.q[:, :, new], stored[:, :, :end], given.v[:, :, :end]
            visible = Visible(end - begin, end, window=window)
            found.append(attend_remapped(module, *held, part, visible, SCALE, is_stored=True))  # type: ignore[arg-type]
        close(torch.cat(found, dim=2), whole)

    @given(remap=remaps(), pads=st.lists(st.integers(0, 9), min_size=2, max_size=4))
    def test_rows_with_padding_equal_each_alone(self, remap: Remap, pads: list[int]) -> None:
        given, module = Input(14, 14, tuple(pads)), module_of(remap)
        found = given.attended(module)
        for row, pad in enumerate(pads):
            one = slice(row, row + 1), slice(None), slice(pad, None)
            own = torch.arange(14 - pad)[None]
            held = given.q[one], given.k[one], given.v[one]
            alone = attend_remapped(module, *held, (own, own), Visible(14 - pad, 14 - pad), SCALE)
            close(found[row : row + 1, :, pad:], alone)
            assert not found[row, :, :pad].any()
