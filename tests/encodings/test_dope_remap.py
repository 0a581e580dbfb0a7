"""DoPE on remaps of positions: against slow loops pair by pair, untouched heads, and as a value."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.encodings.test_remap import distance_of
from tests.reference import attention as reference_attention
from tests.reference import dope as oracle
from torch import Tensor

from ropewalk.attention import attend, merged, remapped
from ropewalk.attention.blockwise import attend_scored
from ropewalk.attention.mask import Visible
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import READINGS, SCOPES, SIDES, VIEWS, DoPE, gaussian
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap, RemapModule
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError
from ropewalk.heads import HeadSelection
from ropewalk.scaling import YaRN

LAYER, LENGTH, SEED, D, HEADS, GROUPS, SCALE = 2, 40, 7, 8, 6, 2, 0.3
YARN = RoPE(D, rule=YaRN(4.0, LENGTH))
ALL_READINGS = [(mode, reading) for mode, readings in READINGS.items() for reading in readings]
EACH = [SelfExtend(YARN, 5, 3), ReRoPE(YARN, 5), DualChunk(YARN, 6, 4)]
SELECTIONS = [[(LAYER, 1)], [(LAYER, 0), (LAYER, 1), (LAYER, 2)], [(LAYER, 1), (LAYER, 4), (0, 3)]]


@st.composite
def remaps(draw: st.DrawFn) -> Remap:
    rope = draw(st.sampled_from([YARN, RoPE(D, layout="interleaved", base=300.0), RoPE(D, rotary_dim=4)]))
    window = draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["self_extend", "rerope", "dual_chunk"]))
    if kind == "self_extend":
        return SelfExtend(rope, window, draw(st.integers(1, 4)))
    return ReRoPE(rope, window) if kind == "rerope" else DualChunk(rope, draw(st.integers(window, 12)), window)


@st.composite
def plans(draw: st.DrawFn) -> DoPE:
    mode, reading = draw(st.sampled_from(ALL_READINGS))
    return DoPE(
        draw(remaps()),
        HeadSelection(draw(st.sampled_from(SELECTIONS))),
        mode,
        reading,
        LENGTH,
        SEED,
        scope=draw(st.sampled_from(SCOPES)),
        apply_to=draw(st.sampled_from(SIDES)),
        view=draw(st.sampled_from(VIEWS)),
    )


@contextmanager
def small_kernels(rows: int = 4) -> Iterator[None]:
    """Bands of a few tokens are cut as long ones are; where all scores of a block would be taken, the test fails."""

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("block by block")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "LEAST_BAND", 4)
        patch.setattr(merged, "ROWS", rows)
        patch.setattr(remapped, "attend_scored", refuse)
        yield


def module_of(encoding: Encoding) -> RemapModule:
    made: Any = encoding.at(LAYER).module()
    assert isinstance(made, RemapModule)
    return made


def inputs(tokens: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(batch, heads, tokens, D) for heads in (HEADS, GROUPS, GROUPS))
    return q, k, v


def changed_heads(plan: DoPE) -> list[int]:
    """The query heads that are to be changed: those selected, with `kv_group` their whole groups."""
    chosen, size = plan.heads.in_layer(LAYER), HEADS // GROUPS
    if plan.scope == "query_head":
        return list(chosen)
    return [head for head in range(HEADS) if head // size in {one // size for one in chosen}]


def stands(remap: Remap, n: int, m: int) -> tuple[bool, int, int]:
    """Whether a pair is near, and where its query and its key stand: from the papers, pair by pair."""
    if isinstance(remap, SelfExtend):
        w, group = remap.window, remap.group
        return (True, n, m) if n - m < w else (False, n // group + w - w // group, m // group)
    if isinstance(remap, ReRoPE):
        return (True, n, m) if n - m < remap.window else (False, remap.window, 0)
    assert isinstance(remap, DualChunk) and remap.local_size is not None
    size, last = remap.chunk_size, remap.chunk_size + remap.local_size - 1
    back = n // size - m // size
    query = n % size if back == 0 else min(n % size + size, last) if back == 1 else last
    return back == 0, query, m % size


def noise(stream: int, head: int, position: int, channel: int) -> float:
    return float(gaussian(SEED, stream, LAYER, [head], torch.tensor([position]), channel + 1)[0, 0, channel])


def slow_scores(plan: DoPE, q: Tensor, k: Tensor) -> Tensor:
    """(1, H, N, N) float64, q . k a pair at a time, both where the paper's formula puts them."""
    remap = plan.rope
    assert isinstance(remap, Remap)
    rope, distance = remap.single_rope(), distance_of(remap)
    own = RoPE(D, rope.base, rotary_dim=rope.rotary_dim).schedule().frequencies.tolist()
    schedule = rope.schedule()
    how: dict[str, Any] = {
        "frequencies": schedule.frequencies.tolist(),
        "own_frequencies": own,
        "scale": schedule.attention_scale,
        "layout": rope.layout,
        "reading": plan.reading,
        "original_length": LENGTH,
        "sigma": plan.sigma,
        "noise": noise,
    }
    selected, size, kept = changed_heads(plan), HEADS // GROUPS, {}

    def encoded(x: Tensor, head: int, token: int, side: int, position: int, is_changed: bool) -> Tensor:
        key = head, token, side, position, is_changed
        if key not in kept:
            vector = x[0, head if side == oracle.QUERY else head // size, token].tolist()
            noise_head = head // size * size if plan.scope == "kv_group" else head
            rotation = [
                how["scale"] * complex(math.cos(position * f), math.sin(position * f)) for f in how["frequencies"]
            ]
            kept[key] = torch.tensor(
                oracle.changed(vector, position, noise_head, side, **how)
                if is_changed
                else oracle.turned(vector, rotation, how["layout"]),
                dtype=torch.float64,
            )
        return kept[key]

    tokens = q.shape[2]
    found = torch.zeros(1, HEADS, tokens, tokens, dtype=torch.float64)
    for head in range(HEADS):
        for n in range(tokens):
            for m in range(n + 1):
                is_near, of_query, of_key = stands(remap, n, m)
                assert of_query - of_key == distance(n, m)
                here = head in selected and plan.view in ("both", "near" if is_near else "far")
                one = encoded(q, head, n, oracle.QUERY, of_query, here and plan.apply_to in ("both", "query"))
                other = encoded(k, head, m, oracle.KEY, of_key, here and plan.apply_to in ("both", "key"))
                found[0, head, n, m] = SCALE * (one @ other)
    return found


class TestAgainstLoops:
    @given(plan=plans(), seed=st.integers(0, 99))
    def test_any_plan(self, plan: DoPE, seed: int) -> None:
        torch.manual_seed(seed)
        q, k, v = inputs(13)
        with small_kernels():
            found = attend(q, k, v, module_of(plan), scale=SCALE)
        expected = reference_attention.attention(slow_scores(plan, q, k), v)
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-4)

    @pytest.mark.parametrize("view", VIEWS)
    @pytest.mark.parametrize("apply_to", SIDES)
    @pytest.mark.parametrize(("mode", "reading"), [("all", "nope"), ("all", "zero"), ("parts", "unrotated")])
    @pytest.mark.parametrize("remap", EACH, ids=lambda remap: remap.kind)
    def test_each_view_and_side(self, remap: Remap, mode: str, reading: str, apply_to: str, view: str) -> None:
        plan = DoPE(remap, HeadSelection(SELECTIONS[2]), mode, reading, LENGTH, SEED, apply_to=apply_to, view=view)
        q, k, v = inputs(14)
        found = attend(q, k, v, module_of(plan), scale=SCALE)
        expected = reference_attention.attention(slow_scores(plan, q, k), v)
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-4)


class TestProperties:
    @given(plan=plans(), seed=st.integers(0, 99))
    def test_kernels_equal_the_scores_block_by_block(self, plan: DoPE, seed: int) -> None:
        torch.manual_seed(seed)
        q, k, v = inputs(30, batch=2)
        module, positions = module_of(plan), torch.arange(30)[None]
        with small_kernels(rows=8):
            found = attend(q, k, v, module, scale=SCALE)
        blocks = attend_scored(module, q, k, v, (positions, positions), Visible(30, 30), SCALE)
        torch.testing.assert_close(found, blocks, atol=2e-5, rtol=1e-4)

    @given(plan=plans(), seed=st.integers(0, 99))
    def test_heads_that_are_not_selected_are_untouched(self, plan: DoPE, seed: int) -> None:
        torch.manual_seed(seed)
        q, k, v = inputs(30)
        found, without = (attend(q, k, v, module_of(one), scale=SCALE) for one in (plan, plan.rope))
        chosen = changed_heads(plan)
        others = [head for head in range(HEADS) if head not in chosen]
        assume(others)
        torch.testing.assert_close(found[:, others], without[:, others], atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("view", VIEWS)
    @pytest.mark.parametrize("remap", EACH, ids=lambda remap: remap.kind)
    def test_selected_heads_change_where_their_view_has_keys(self, remap: Remap, view: str) -> None:
        q, k, v = inputs(30)
        plan = DoPE(remap, HeadSelection(SELECTIONS[0]), original_length=LENGTH, view=view)
        found, without = (attend(q, k, v, module_of(one), scale=SCALE) for one in (plan, remap))
        gap = (found - without).abs().amax(dim=(0, 1, 3))
        inside = 5 if remap.kind != "dual_chunk" else 6
        assert float(gap[1:inside].min()) > 1e-3 if view != "far" else float(gap[:inside].max()) < 1e-6
        # A chunk's first query has itself alone nearby, at distance 0.
        assert float(gap[[n for n in range(inside + 1, 30) if n % inside]].min()) > 1e-4

    @pytest.mark.parametrize("scope", SCOPES)
    @pytest.mark.parametrize(("mode", "reading"), [one for one in ALL_READINGS if one[0] == "gaussian"])
    def test_draws_are_the_same_each_time_and_in_steps(self, mode: str, reading: str, scope: str) -> None:
        q, k, v = inputs(20)
        for remap in EACH:
            plan = DoPE(remap, HeadSelection(SELECTIONS[2]), mode, reading, LENGTH, SEED, scope=scope, view="far")
            whole = attend(q, k, v, module_of(plan), scale=SCALE)
            assert torch.equal(attend(q, k, v, module_of(plan), scale=SCALE), whole)
            last = attend(q[:, :, 15:], k, v, module_of(plan), scale=SCALE)
            torch.testing.assert_close(last, whole[:, :, 15:], atol=1e-5, rtol=1e-4)
            other = dataclasses.replace(plan, seed=SEED + 1)
            gap = (attend(q, k, v, module_of(other), scale=SCALE) - whole).abs()
            assert gap[:, changed_heads(plan)].amax() > 1e-3

    def test_under_grouped_keys_no_other_head_reads_a_selected_heads_key(self) -> None:
        """With `query_head` keys come a head each in a changed view; with `kv_group` the group's key changes."""
        _, k, _ = inputs(20)
        for scope, heads in (("query_head", HEADS), ("kv_group", GROUPS)):
            plan = DoPE(EACH[0], HeadSelection(SELECTIONS[0]), original_length=LENGTH, scope=scope, view="far")
            near, far = module_of(plan).keys(k, torch.arange(20)[None], HEADS)
            assert (near.shape[1], far.shape[1]) == (GROUPS, heads)


class TestValue:
    @given(plan=plans())
    def test_json_round_trip(self, plan: DoPE) -> None:
        written = json.loads(json.dumps(plan.to_dict()))
        assert ("view" in written) == (plan.view != "both")
        again = Encoding.from_dict(written)
        assert again == plan and hash(again) == hash(plan)

    def test_plans_without_a_view_are_read_as_both(self) -> None:
        plan = DoPE(EACH[0], HeadSelection(SELECTIONS[0]), view="far")
        old = {name: value for name, value in plan.to_dict().items() if name != "view"}
        read = Encoding.from_dict(old)
        assert isinstance(read, DoPE) and read.view == "both" and read != plan
        assert read.to_dict() == old

    @pytest.mark.parametrize("rope", [RoPE(8), PerLayer(((0, RoPE(8)), (1, RoPE(8))))])
    @pytest.mark.parametrize("view", ["near", "far"])
    def test_a_rope_has_one_view(self, rope: RoPE | PerLayer, view: str) -> None:
        with pytest.raises(ArgumentError, match=rf"^view='{view}'") as caught:
            DoPE(rope, HeadSelection([(0, 1)]), view=view)
        assert "\n" not in str(caught.value)

    def test_a_view_that_is_not_known_is_named(self) -> None:
        with pytest.raises(ArgumentError, match="view='fra': did you mean far"):
            DoPE(EACH[0], HeadSelection([(0, 1)]), view="fra")

    def test_layers_of_which_one_is_remapped_have_views(self) -> None:
        mixed = PerLayer(((0, RoPE(8)), (1, EACH[0])))
        plan = DoPE(mixed, HeadSelection([(1, 1)]), view="near")
        assert Encoding.from_dict(plan.to_dict()) == plan
        assert plan.at(0) == RoPE(8) and isinstance(plan.at(1).module(), RemapModule)
