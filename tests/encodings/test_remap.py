"""What the three remaps share: the paper's distances, blocks, decoding, grouped keys, batches, JSON, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import frequencies as reference_frequencies
from tests.reference import remap as reference

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap, RemapModule, grouped_products
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError
from ropewalk.scaling import Linear, YaRN

SCALE = 0.25


def content(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def distance_of(remap: Remap) -> reference.Distance:
    if isinstance(remap, SelfExtend):
        return lambda n, m: reference.self_extend(n, m, remap.window, remap.group)
    if isinstance(remap, ReRoPE):
        return lambda n, m: reference.rerope(n, m, remap.window, remap.leak)
    assert isinstance(remap, DualChunk) and remap.local_size is not None
    local = remap.local_size
    return lambda n, m: reference.dual_chunk(n, m, remap.chunk_size, local)


def scores(
    remap: Remap, q: torch.Tensor, k: torch.Tensor, of_queries: torch.Tensor, of_keys: torch.Tensor
) -> torch.Tensor:
    module = remap.module()
    assert isinstance(module, RemapModule)
    of_queries, of_keys = (p if p.dim() == 2 else p[None] for p in (of_queries, of_keys))
    return module.scores(q, module.keys(k, of_keys), of_queries, of_keys, None, SCALE)


def causal(found: torch.Tensor, of_queries: torch.Tensor, of_keys: torch.Tensor) -> torch.Tensor:
    return found.masked_fill(of_queries[:, None] < of_keys[None, :], 0.0)


@st.composite
def ropes(draw: st.DrawFn) -> RoPE:
    return RoPE(
        8,
        rule=draw(st.sampled_from([None, YaRN(4.0, 64), Linear(2.0)])),
        layout=draw(st.sampled_from(["half", "interleaved"])),
        rotary_dim=draw(st.sampled_from([None, 4])),
    )


@st.composite
def remaps(draw: st.DrawFn) -> Remap:
    rope, window = draw(ropes()), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["self_extend", "rerope", "dual_chunk"]))
    if kind == "self_extend":
        return SelfExtend(rope, window, draw(st.integers(1, 5)))
    if kind == "rerope":
        return ReRoPE(rope, window, draw(st.sampled_from([None, 0.25, 1.0])))
    return DualChunk(rope, draw(st.integers(window, 12)), window)


ONE_OF_EACH = [
    SelfExtend(RoPE(8), 5, 2),
    ReRoPE(RoPE(8), 5),
    ReRoPE(RoPE(8, layout="interleaved"), 5, leak=0.25),
    DualChunk(RoPE(8, rotary_dim=4), 6, 4),
]


class TestAgainstLoops:
    @given(remap=remaps(), seed=st.integers(0, 99))
    def test_every_pair_has_the_papers_distance(self, remap: Remap, seed: int) -> None:
        torch.manual_seed(seed)
        rope = remap.single_rope()
        of_queries = torch.randint(0, 40, (5,))
        of_keys = torch.randint(0, 40, (9,))  # in any order, with gaps
        q, k = content(1, 1, 5, 8), content(1, 1, 9, 8)
        r = rope.rotary_dim or 8
        factor = 4.0 if isinstance(rope.rule, YaRN) else 1.0
        frequencies = (
            reference_frequencies.default(r, 1e4)
            if rope.rule is None
            else reference_frequencies.linear(r, 1e4, 2.0)
            if isinstance(rope.rule, Linear)
            else reference_frequencies.yarn(r, 1e4, 4.0, 64, 32.0, 1.0, True)
        )
        expected = reference.scores(
            q[0, 0].tolist(),
            k[0, 0].tolist(),
            of_queries.tolist(),
            of_keys.tolist(),
            distance_of(remap),
            frequencies,
            rope.layout,
            reference_frequencies.yarn_scale(factor),
        )
        found = scores(remap, q, k, of_queries, of_keys)
        torch.testing.assert_close(found[0, 0], torch.tensor(expected) * SCALE, rtol=1e-5, atol=2e-5)

    @given(remap=remaps(), length=st.integers(1, 60))
    def test_no_distance_is_over_the_largest(self, remap: Remap, length: int) -> None:
        distance = distance_of(remap)
        met = [distance(n, m) for n in range(length) for m in range(n + 1)]
        assert min(met) >= 0
        assert max(met) == pytest.approx(remap.largest_distance(length))


class TestProperties:
    @given(remap=remaps(), cut=st.integers(0, 30), seed=st.integers(0, 99))
    def test_blocks_of_queries_equal_the_whole(self, remap: Remap, cut: int, seed: int) -> None:
        torch.manual_seed(seed)
        q, k, positions = content(2, 4, 30, 8), content(2, 2, 30, 8), torch.arange(30) + 3
        whole = scores(remap, q, k, positions, positions)
        parts = [scores(remap, q[:, :, s], k, positions[s], positions) for s in (slice(0, cut), slice(cut, 30))]
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-5, atol=1e-5)

    @given(remap=remaps(), seed=st.integers(0, 99))
    def test_decoding_equals_one_full_pass(self, remap: Remap, seed: int) -> None:
        """The keys of earlier steps are those that were kept, not worked out anew."""
        torch.manual_seed(seed)
        q, k, positions = content(1, 2, 26, 8), content(1, 2, 26, 8), torch.arange(26)
        whole = causal(scores(remap, q, k, positions, positions), positions, positions)
        module = remap.module()
        assert isinstance(module, RemapModule)
        kept: tuple[torch.Tensor, ...] = ()
        steps = [slice(0, 10), slice(10, 17), *(slice(n, n + 1) for n in range(17, 26))]
        for s in steps:
            new = module.keys(k[:, :, s], positions[None, s])
            kept = tuple(torch.cat(pair, dim=2) for pair in zip(kept, new, strict=True)) if kept else new
            seen = positions[: s.stop]
            found = module.scores(q[:, :, s], kept, positions[None, s], seen[None], None, SCALE)
            torch.testing.assert_close(
                causal(found, positions[s], seen), whole[:, :, s, : s.stop], rtol=1e-5, atol=1e-5
            )

    @given(remap=remaps())
    def test_a_batch_equals_its_rows(self, remap: Remap) -> None:
        q, k = content(3, 4, 7, 8), content(3, 2, 7, 8)
        positions = torch.stack([torch.arange(7) * step + start for step, start in ((1, 0), (3, 7), (2, 100))])
        whole = scores(remap, q, k, positions, positions)
        for b in range(3):
            row = scores(remap, q[b : b + 1], k[b : b + 1], positions[b], positions[b])
            torch.testing.assert_close(row, whole[b : b + 1], rtol=1e-5, atol=1e-5)

    @given(remap=remaps())
    def test_grouped_keys_are_read_in_blocks_of_heads(self, remap: Remap) -> None:
        q, k, positions = content(2, 6, 20, 8), content(2, 2, 20, 8), torch.arange(20)
        repeated = scores(remap, q, k.repeat_interleave(3, dim=1), positions, positions)
        torch.testing.assert_close(scores(remap, q, k, positions, positions), repeated, rtol=1e-5, atol=1e-5)

    @given(remap=remaps())
    def test_json_round_trip(self, remap: Remap) -> None:
        again = Encoding.from_dict(json.loads(json.dumps(remap.to_dict())))
        assert again == remap and hash(again) == hash(remap)


@pytest.mark.parametrize("remap", ONE_OF_EACH, ids=lambda r: r.kind)
class TestModule:
    def test_nothing_is_saved_or_learned_and_frequencies_stay_float32(self, remap: Remap) -> None:
        module = remap.module()
        assert not module.state_dict() and not list(module.parameters())
        rope = module.to(torch.bfloat16).get_submodule("rope")
        assert torch.equal(rope.frequencies, remap.single_rope().schedule().frequencies)

    def test_half_precision_and_small_integers(self, remap: Remap) -> None:
        q, k = content(1, 2, 60, 8), content(1, 1, 60, 8)
        positions = torch.arange(60)
        wide = scores(remap, q, k, positions, positions)
        for narrow_type in (torch.uint8, torch.int8):
            small = positions.to(narrow_type)
            assert torch.equal(scores(remap, q, k, small, small), wide)
        narrow = scores(remap, q.bfloat16(), k.bfloat16(), positions, positions)
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(narrow.float(), wide, rtol=0.1, atol=0.1)

    def test_gradients_pass(self, remap: Remap) -> None:
        q = content(1, 2, 4, 8).double().requires_grad_()
        k = content(1, 1, 12, 8).double().requires_grad_()
        of_queries = torch.tensor([3, 8, 14, 20])
        assert torch.autograd.gradcheck(
            lambda q, k: scores(remap, q, k, of_queries, torch.arange(12)), (q, k), atol=1e-4
        )

    def test_compiled_equals_eager(self, remap: Remap) -> None:
        q, k, positions = content(1, 2, 20, 8), content(1, 1, 20, 8), torch.arange(20)
        module = remap.module()
        assert isinstance(module, RemapModule)

        def whole(q: torch.Tensor, k: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            return module.scores(q, module.keys(k, p), p, p, None, SCALE)

        compiled = torch.compile(whole, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(q, k, positions[None]), whole(q, k, positions[None]), rtol=1e-5, atol=1e-5)

    def test_no_keys_or_no_queries(self, remap: Remap) -> None:
        q, k, none = content(1, 2, 3, 8), content(1, 1, 3, 8), torch.arange(0)
        assert scores(remap, q[:, :, :0], k, none, torch.arange(3)).shape == (1, 2, 0, 3)
        assert scores(remap, q, k[:, :, :0], torch.arange(3), none).shape == (1, 2, 3, 0)

    def test_each_layer_keeps_its_own_rope(self, remap: Remap) -> None:
        fields = {**remap.to_dict(), "rope": PerLayer(((0, RoPE(8)), (1, NoPE()), (2, RoPE(8, base=500.0)))).to_dict()}
        mixed = Encoding.from_dict(fields)
        assert isinstance(mixed, Remap) and Encoding.from_dict(mixed.to_dict()) == mixed
        third = mixed.at(2)
        assert isinstance(third, type(remap)) and third.rope == RoPE(8, base=500.0)
        assert mixed.at(1) == NoPE()
        assert remap.at(5) is remap
        with pytest.raises(ArgumentError, match=r"^rope=.*\.at\(layer\)"):
            mixed.module()


class TestWork:
    """What no pair needs isn't worked out."""

    @pytest.fixture
    def worked_out(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        keys: list[int] = []

        def counted(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            keys.append(k.shape[2])
            return grouped_products(q, k)

        monkeypatch.setattr("ropewalk.encodings.remap.grouped_products", counted)
        return keys

    @pytest.mark.parametrize(
        ("remap", "query", "expected"),
        [
            (SelfExtend(RoPE(8), 10, 4), 5, [40]),  # all keys near
            (SelfExtend(RoPE(8), 10, 4), 39, [10, 30]),
            (SelfExtend(RoPE(8), 10, 4), 60, [40]),  # all far
            (ReRoPE(RoPE(8), 10), 39, [10, 30]),
            (DualChunk(RoPE(8), 10), 39, [10, 10, 20]),
            (DualChunk(RoPE(8), 10), 45, [10, 30]),
            (DualChunk(RoPE(8), 10), 75, [40]),
        ],
    )
    def test_each_key_once_for_one_query(
        self, worked_out: list[int], remap: Remap, query: int, expected: list[int]
    ) -> None:
        scores(remap, content(1, 2, 1, 8), content(1, 1, 40, 8), torch.tensor([query]), torch.arange(40))
        assert worked_out == expected


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: SelfExtend("rope"), "rope"),  # type: ignore[arg-type]
        (lambda: SelfExtend(RoPE(8), 0), "window"),
        (lambda: SelfExtend(RoPE(8), 8, 2.0), "group"),  # type: ignore[arg-type]
        (lambda: SelfExtend(RoPE(8)).largest_distance(0), "length"),
        (lambda: ReRoPE(NoPE()), "rope"),  # type: ignore[arg-type]
        (lambda: ReRoPE(RoPE(8), True), "window"),
        (lambda: ReRoPE(RoPE(8), 8, 0.0), "leak"),
        (lambda: ReRoPE(RoPE(8), 8, 1.5), "leak"),
        (lambda: DualChunk(None, 8), "rope"),  # type: ignore[arg-type]
        (lambda: DualChunk(RoPE(8), 0), "chunk_size"),
        (lambda: DualChunk(RoPE(8), 8, 0), "local_size"),
        (lambda: DualChunk(RoPE(8), 8, 9), "local_size"),
        (lambda: Encoding.from_dict({**DualChunk(RoPE(8), 8).to_dict(), "chunk": 4}), "chunk"),
        (lambda: Encoding.from_dict({"kind": "dual_chunk", "rope": RoPE(8).to_dict()}), "chunk_size"),
    ],
)
def test_wrong_arguments_are_named(make: Any, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        make()
    assert "\n" not in str(caught.value)
