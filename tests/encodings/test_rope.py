"""RoPE: transformers' bits, the paper's equation, relative positions, partial widths, refusals, JSON."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import frequencies as reference_frequencies
from tests.reference import rope as reference
from transformers import LlamaConfig
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.scaling import NTK, CoPE, Given, Linear, LongRoPE, Resonance, YaRN

LAYOUTS = ["half", "interleaved"]
LONG = torch.tensor([0, 1, 17, 4095, 131_071, 1_000_003])


def content(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype)


class TestTransformersBits:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(
        ("parameters", "rule"),
        [
            ({"rope_type": "default"}, None),
            ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, YaRN(4.0, 2048)),
        ],
    )
    def test_llama(self, dtype: torch.dtype, parameters: dict[str, Any], rule: YaRN | None) -> None:
        config = LlamaConfig(
            head_dim=64, max_position_embeddings=8192, rope_parameters={"rope_theta": 5e5, **parameters}
        )
        q, k = content(2, 8, 6, 64).to(dtype), content(2, 2, 6, 64).to(dtype)
        theirs = modeling_llama.LlamaRotaryEmbedding(config)
        cos, sin = theirs(q, LONG.expand(2, -1))
        ours = RoPE(64, base=5e5, rule=rule)
        our_cos, our_sin = ours.tables(LONG.expand(2, -1), dtype)
        assert torch.equal(our_cos, cos) and torch.equal(our_sin, sin)
        expected = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
        for positions in (LONG, LONG.expand(2, -1), LONG[None]):
            assert all(map(torch.equal, ours(q, k, positions), expected))

    @pytest.mark.parametrize(
        ("family", "width"),
        [(modeling_cohere, 64), (modeling_glm, 64), (modeling_glm, 32)],
        ids=["cohere", "glm", "glm-partial"],
    )
    def test_interleaved(self, family: ModuleType, width: int) -> None:
        q, k = content(2, 8, 6, 64), content(2, 2, 6, 64)
        ours = RoPE(64, layout="interleaved", rotary_dim=width)
        # GLM takes its numbers, one a pair, from the first half of a half-split table
        tables = ours if family is modeling_cohere else RoPE(width)
        cos, sin = tables.tables(LONG.expand(2, -1))
        expected = family.apply_rotary_pos_emb(q, k, cos, sin)
        assert all(map(torch.equal, ours(q, k, LONG), expected))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [None, 8, 2])
class TestPaperEquation:
    def test_each_pair_is_a_complex_number_turned(self, layout: str, width: int | None) -> None:
        x, positions = content(1, 1, 5, 16), torch.tensor([0, 3, 4, 100, 1000])
        rope = RoPE(16, rule=Linear(2.0), layout=layout, rotary_dim=width)
        turned, _ = rope(x, x, positions)
        frequencies = reference_frequencies.linear(width or 16, 1e4, 2.0)
        for n, position in enumerate(positions.tolist()):
            expected = reference.rotated(x[0, 0, n].tolist(), position, frequencies, layout)
            torch.testing.assert_close(turned[0, 0, n].tolist(), expected, rtol=1e-4, atol=2e-4)

    def test_channels_past_the_width_pass(self, layout: str, width: int | None) -> None:
        q = content(2, 4, 6, 16)
        turned, _ = RoPE(16, layout=layout, rotary_dim=width)(q, q, LONG)
        assert torch.equal(turned[..., width or 16 :], q[..., width or 16 :])
        assert not torch.equal(turned[:, :, 1:, : width or 16], q[:, :, 1:, : width or 16])

    def test_lengths_are_kept(self, layout: str, width: int | None) -> None:
        q = content(2, 4, 6, 16)
        turned, _ = RoPE(16, layout=layout, rotary_dim=width)(q, q, LONG)
        torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))


@st.composite
def ropes(draw: st.DrawFn) -> RoPE:
    head_dim = 2 * draw(st.integers(2, 16))
    width = 2 * draw(st.integers(2, head_dim // 2))
    choices = [None, Linear(2.0), NTK(3.0), YaRN(4.0, 64), Resonance(YaRN(2.0, 64)), CoPE(original_length=64)]
    return RoPE(
        head_dim,
        base=draw(st.sampled_from([100.0, 10000.0, 5e5])),
        rule=draw(st.sampled_from(choices)),
        layout=draw(st.sampled_from(LAYOUTS)),
        rotary_dim=draw(st.sampled_from([None, width])),
    )


def scores(rope: RoPE, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    q, k = rope(q, k, positions)
    return q @ k.mT


class TestProperties:
    @given(rope=ropes(), shift=st.integers(0, 5000), seed=st.integers(0, 99))
    def test_scores_depend_on_distance_alone(self, rope: RoPE, shift: int, seed: int) -> None:
        torch.manual_seed(seed)
        q, k = content(1, 2, 7, rope.head_dim), content(1, 2, 7, rope.head_dim)
        here = scores(rope, q, k, torch.arange(7))
        # at 5000 an angle's float32 rounding is some 2e-4
        torch.testing.assert_close(scores(rope, q, k, torch.arange(7) + shift), here, rtol=0, atol=2e-2)

    @given(rope=ropes(), cut=st.integers(0, 9))
    def test_chunks_equal_the_whole(self, rope: RoPE, cut: int) -> None:
        q, k, positions = (
            content(2, 4, 9, rope.head_dim),
            content(2, 2, 9, rope.head_dim),
            torch.arange(9) + 3,
        )
        whole = rope(q, k, positions)
        parts = [rope(q[:, :, s], k[:, :, s], positions[s]) for s in (slice(0, cut), slice(cut, 9))]
        for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(part, dim=2), expected)

    @given(rope=ropes())
    def test_a_batch_equals_its_rows(self, rope: RoPE) -> None:
        q, k = content(3, 4, 5, rope.head_dim), content(3, 2, 5, rope.head_dim)
        positions = torch.stack([torch.arange(5) + start for start in (0, 7, 100)])
        whole = rope(q, k, positions)
        for b in range(3):
            row = rope(q[b : b + 1], k[b : b + 1], positions[b])
            assert all(torch.equal(one, many[b : b + 1]) for one, many in zip(row, whole, strict=True))

    @given(rope=ropes())
    def test_json_round_trip(self, rope: RoPE) -> None:
        again = Encoding.from_dict(json.loads(json.dumps(rope.to_dict())))
        assert again == rope and hash(again) == hash(rope)

    @given(rope=ropes())
    def test_position_zero_only_scales(self, rope: RoPE) -> None:
        q = content(1, 2, 1, rope.head_dim)
        turned, _ = rope(q, q, torch.tensor([0]))
        width, scale = rope.rotary_dim or rope.head_dim, rope.schedule().attention_scale
        torch.testing.assert_close(turned[..., :width], q[..., :width] * scale)


class TestModule:
    def test_pairs_of_positions_and_dtypes(self) -> None:
        q, k = content(1, 2, 2, 8), content(1, 2, 5, 8)
        whole_q, whole_k = RoPE(8)(content(1, 2, 5, 8).index_copy(2, torch.tensor([3, 4]), q), k, torch.arange(5))
        q2, k2 = RoPE(8)(q, k, (torch.tensor([3, 4]), torch.arange(5)))
        assert torch.equal(q2, whole_q[:, :, 3:]) and torch.equal(k2, whole_k)
        mixed = RoPE(8)(q.bfloat16(), k, (torch.tensor([3, 4]), torch.arange(5)))
        assert mixed[0].dtype == torch.bfloat16 and torch.equal(mixed[1], k2)

    def test_nothing_is_saved_or_learned(self) -> None:
        module = RoPE(8).module()
        assert not module.state_dict() and not list(module.parameters())
        assert torch.equal(module.frequencies, RoPE(8).schedule().frequencies)
        assert module.attention_scale == 1.0 and "RoPE(" in repr(module)

    def test_casting_the_module_keeps_float32_frequencies(self) -> None:
        module = RoPE(64).module().to(torch.bfloat16)
        assert torch.equal(module.frequencies, RoPE(64).schedule().frequencies)

    def test_a_module_made_empty_gets_its_frequencies_back(self) -> None:
        module = RoPE(64).module().to("meta").to_empty(device="cpu")
        assert torch.equal(module.frequencies, RoPE(64).schedule().frequencies)

    def test_gradients_pass(self) -> None:
        q = content(1, 1, 3, 8, dtype=torch.float64).requires_grad_()
        k = content(1, 1, 3, 8, dtype=torch.float64).requires_grad_()
        module = RoPE(8, layout="interleaved", rotary_dim=4).module()
        assert torch.autograd.gradcheck(lambda q, k: module(q, k, torch.arange(3)), (q, k))

    def test_tables_of_config_and_module_agree(self) -> None:
        rope = RoPE(8, rule=YaRN(2.0, 64))
        for ours, other in zip(rope.tables(LONG, device="cpu"), rope.module().tables(LONG), strict=True):
            assert torch.equal(ours, other) and ours.shape == (6, 8)

    def test_compiled_whole(self) -> None:
        module, q = RoPE(8).module(), content(1, 2, 4, 8)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(q, q, torch.arange(4)), module(q, q, torch.arange(4))))


Q = torch.zeros(2, 4, 6, 8)


@pytest.mark.parametrize(
    ("positions", "argument"),
    [
        (torch.arange(6.0), "positions.dtype"),
        (torch.ones(6, dtype=torch.bool), "positions.dtype"),
        (torch.arange(5), "positions.shape"),
        (torch.zeros(3, 6, dtype=torch.int64), "positions.shape"),
        (torch.arange(6)[None, None], "positions.shape"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), r"min\(positions\)"),
        ([0, 1, 2, 3, 4, 5], "positions"),
        (None, "positions"),
        ((torch.arange(6), torch.arange(5)), r"positions\[1\].shape"),
        ((torch.arange(6), 3), r"positions\[1\]"),
    ],
)
def test_wrong_positions_are_named(positions: Any, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        RoPE(8)(Q, Q, positions)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"head_dim": 7}, "head_dim"),
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": 8.0}, "head_dim"),
        ({"head_dim": 8, "base": 1.0}, "base"),
        ({"head_dim": 8, "base": float("nan")}, "base"),
        ({"head_dim": 8, "rotary_dim": 10}, "rotary_dim"),
        ({"head_dim": 8, "rotary_dim": 3}, "rotary_dim"),
        ({"head_dim": 8, "rule": "yarn"}, "rule"),
        ({"head_dim": 8, "rule": Given((1.0, 0.1))}, r"len\(frequencies\)"),
        ({"head_dim": 8, "rule": LongRoPE((1.0,), (2.0,), 64, 128)}, r"len\(short_factor\)"),
    ],
)
def test_wrong_configs_are_refused_at_construction(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}="):
        RoPE(**arguments)


def test_a_near_layout_is_suggested() -> None:
    with pytest.raises(ArgumentError, match="did you mean interleaved"):
        RoPE(8, layout="interleave")


def test_unequal_lengths_need_a_pair() -> None:
    with pytest.raises(ArgumentError, match="need a pair"):
        RoPE(8)(Q, Q[:, :, :5], torch.arange(6))


@pytest.mark.parametrize(("q", "k"), [(Q[..., :6], Q), (Q, Q[..., :6]), (Q[0], Q)])
def test_wrong_shapes_are_refused(q: torch.Tensor, k: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match="head_dim=8"):
        RoPE(8)(q, k, torch.arange(6))


@pytest.mark.parametrize("width", [16, 8])
def test_the_peer_agrees_on_the_interleaved_layout(width: int) -> None:
    peer = pytest.importorskip("rotary_embedding_torch")
    q, positions = content(2, 4, 40, 16), torch.arange(40)
    theirs = peer.RotaryEmbedding(dim=width, theta=10000).rotate_queries_or_keys(q)
    ours, _ = RoPE(16, layout="interleaved", rotary_dim=width)(q, q, positions)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
