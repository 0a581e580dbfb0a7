"""RoPE++: the paper's complex score, which heads are imaginary, the paper's two configurations, refusals, JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import frequencies as reference_frequencies
from tests.reference import rope_plus_plus as reference

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.rope_plus_plus import RoPEPlusPlus
from ropewalk.errors import ArgumentError
from ropewalk.scaling import Linear, YaRN

LAYOUTS = ["half", "interleaved"]


def scores(encoding: Encoding, q: torch.Tensor, k: torch.Tensor, positions: Any) -> torch.Tensor:
    """(B, H, N, M), each query head with its group's key."""
    q2, k2 = encoding(q, k, positions)
    return q2 @ k2.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [None, 4])
def test_the_paper_equation(layout: str, width: int | None) -> None:
    encoding = RoPEPlusPlus(RoPE(8, rule=Linear(2.0), layout=layout, rotary_dim=width))
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 4, 8)
    of_queries, of_keys = torch.tensor([5, 90, 400]), torch.tensor([0, 5, 17, 300])
    found = scores(encoding, q, k, (of_queries, of_keys))
    frequencies = reference_frequencies.linear(width or 8, 1e4, 2.0)
    for h in range(4):
        for n, at in enumerate(of_queries.tolist()):
            for m, other in enumerate(of_keys.tolist()):
                content = q[0, h, n].tolist(), k[0, h // 2, m].tolist()
                expected = reference.score(*content, at, other, frequencies, layout, is_imaginary=h in (1, 3))
                assert found[0, h, n, m].item() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_heads_and_keys_are_rope_to_the_bit(layout: str) -> None:
    rope = RoPE(8, rule=YaRN(4.0, 64), layout=layout)
    q, k, positions = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.arange(6) + 700
    q2, k2 = RoPEPlusPlus(rope)(q, k, positions)
    plain_q, plain_k = rope(q, k, positions)
    assert torch.equal(k2, plain_k) and torch.equal(q2[:, ::2], plain_q[:, ::2])
    cos, sin = rope.tables(positions)
    assert torch.equal(q2[:, 1::2], rope.rotate(q[:, 1::2], sin, -cos))
    assert not torch.allclose(q2[:, 1::2], plain_q[:, 1::2], atol=0.1)


@pytest.mark.parametrize(
    ("imaginary", "heads", "groups", "expected"),
    [
        ("half", 8, 2, (2, 3, 6, 7)),
        ("half", 4, 2, (1, 3)),
        ("half", 6, 2, (2, 5)),
        ("half", 4, 4, (2, 3)),
        ("half", 4, 1, (2, 3)),
        ("alternate", 8, 2, (1, 3, 5, 7)),
        ("alternate", 4, 4, (1, 3)),
        ((3, 0), 4, 2, (0, 3)),
    ],
)
def test_which_heads_are_imaginary(imaginary: Any, heads: int, groups: int, expected: tuple[int, ...]) -> None:
    encoding = RoPEPlusPlus(RoPE(8), imaginary)
    assert encoding.imaginary_heads(heads, groups) == expected
    q, k = torch.randn(1, heads, 3, 8), torch.randn(1, groups, 3, 8)
    turned, _ = encoding(q, k, torch.arange(3))
    plain, _ = RoPE(8)(q, k, torch.arange(3))
    assert tuple(h for h in range(heads) if not torch.equal(turned[:, h], plain[:, h])) == expected


class TestPaperConfigurations:
    """Each projected query goes to two heads: the real and the imaginary part of one complex score."""

    @pytest.mark.parametrize("projected", [2, 4], ids=["equal heads", "equal cache"])
    def test_a_pair_of_heads_holds_one_complex_score(self, projected: int) -> None:
        groups = projected // 2
        q, k, positions = torch.randn(1, projected, 5, 8), torch.randn(1, groups, 5, 8), torch.arange(5)
        found = scores(RoPEPlusPlus(RoPE(8), "alternate"), q.repeat_interleave(2, dim=1), k, positions)
        assert found.shape[1] == 2 * projected
        real = scores(RoPE(8), q, k, positions)
        torch.testing.assert_close(found[:, ::2], real)
        pairs = q.double().unflatten(-1, (2, 4)), k.double().repeat_interleave(2, dim=1).unflatten(-1, (2, 4))
        one, other = (torch.complex(pair[..., 0, :], pair[..., 1, :]) for pair in pairs)
        angles = (positions[:, None] - positions)[..., None] * 1e4 ** (-torch.arange(4).double() / 4)
        z = torch.einsum("bhnc,bhmc,nmc->bhnm", one, other.conj(), torch.polar(torch.ones_like(angles), angles))
        torch.testing.assert_close(torch.complex(found[:, ::2], found[:, 1::2]).to(z.dtype), z, rtol=1e-5, atol=1e-5)


@st.composite
def encodings(draw: st.DrawFn) -> RoPEPlusPlus:
    torch.manual_seed(draw(st.integers(0, 999)))
    rope = RoPE(
        draw(st.sampled_from([4, 8])),
        draw(st.floats(1.5, 1e6)),
        rule=draw(st.sampled_from([None, Linear(2.0)])),
        layout=draw(st.sampled_from(LAYOUTS)),
        rotary_dim=draw(st.sampled_from([None, 2])),
    )
    return RoPEPlusPlus(rope, draw(st.sampled_from(["half", "alternate", (0,), (1, 2)])))


class TestInvariants:
    @given(encoding=encodings(), shift=st.integers(0, 5000))
    def test_only_distance_counts(self, encoding: RoPEPlusPlus, shift: int) -> None:
        q, k = torch.randn(1, 4, 7, encoding.rope.head_dim), torch.randn(1, 2, 7, encoding.rope.head_dim)
        here = scores(encoding, q, k, torch.arange(7))
        # at 5000 an angle's float32 rounding is some 2e-4
        torch.testing.assert_close(scores(encoding, q, k, torch.arange(7) + shift), here, rtol=0, atol=2e-2)

    @given(encoding=encodings(), cut=st.integers(0, 9))
    def test_chunks_and_single_tokens_equal_the_whole(self, encoding: RoPEPlusPlus, cut: int) -> None:
        q, k = torch.randn(2, 4, 9, encoding.rope.head_dim), torch.randn(2, 2, 9, encoding.rope.head_dim)
        positions = torch.stack([torch.arange(9) + 3, torch.arange(9) + 50])
        whole = encoding(q, k, positions)
        slices = [slice(0, cut), *(slice(n, n + 1) for n in range(cut, 9))]
        parts = [encoding(q[:, :, s], k[:, :, s], positions[:, s]) for s in slices]
        for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(part, dim=2), expected)

    @given(encoding=encodings())
    def test_a_batch_equals_its_rows(self, encoding: RoPEPlusPlus) -> None:
        q, k = torch.randn(3, 4, 5, encoding.rope.head_dim), torch.randn(3, 2, 5, encoding.rope.head_dim)
        positions = torch.stack([torch.arange(5) + start for start in (0, 7, 100)])
        whole = encoding(q, k, positions)
        for b in range(3):
            row = encoding(q[b : b + 1], k[b : b + 1], positions[b])
            assert all(torch.equal(one, many[b : b + 1]) for one, many in zip(row, whole, strict=True))

    @given(encoding=encodings())
    def test_json_round_trip(self, encoding: RoPEPlusPlus) -> None:
        again = Encoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
        assert again == encoding and hash(again) == hash(encoding)


class TestModule:
    def test_nothing_is_saved_or_learned_and_tables_are_shared_with_rope(self) -> None:
        module, rope = RoPEPlusPlus(RoPE(8)).module(), RoPE(8).module()
        assert not module.state_dict() and not list(module.parameters()) and "RoPEPlusPlus(" in repr(module)
        assert module.table_key == rope.table_key and not module.own_keys(4, 2)
        positions = torch.arange(5)
        assert all(map(torch.equal, module.tables(positions, torch.float32), rope.tables(positions)))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_dtypes_are_kept(self, dtype: torch.dtype) -> None:
        q, k = torch.randn(1, 4, 3, 8).to(dtype), torch.randn(1, 2, 3, 8).to(dtype)
        q2, k2 = RoPEPlusPlus(RoPE(8))(q, k, torch.arange(3) + 1000)
        wide, _ = RoPEPlusPlus(RoPE(8))(q.float(), k.float(), torch.arange(3) + 1000)
        assert q2.dtype == k2.dtype == dtype
        torch.testing.assert_close(q2.float(), wide, rtol=0, atol=5e-2)

    def test_gradients_pass_and_the_input_stays(self) -> None:
        q = torch.randn(1, 4, 3, 8, dtype=torch.float64, requires_grad=True)
        k = torch.randn(1, 2, 3, 8, dtype=torch.float64, requires_grad=True)
        module, before = RoPEPlusPlus(RoPE(8, layout="interleaved", rotary_dim=4)).module(), q.detach().clone()
        assert torch.autograd.gradcheck(lambda q, k: module(q, k, torch.arange(3)), (q, k))
        assert torch.equal(q, before)

    def test_compiled_whole(self) -> None:
        module, q = RoPEPlusPlus(RoPE(8)).module(), torch.randn(1, 2, 4, 8)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(q, q, torch.arange(4)), module(q, q, torch.arange(4))))


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"rope": 8}, "rope"),
        ({"rope": NoPE()}, "rope"),
        ({"rope": RoPE(8), "imaginary": "halves"}, "imaginary"),
        ({"rope": RoPE(8), "imaginary": ()}, "imaginary"),
        ({"rope": RoPE(8), "imaginary": None}, "imaginary"),
        ({"rope": RoPE(8), "imaginary": (1, 1)}, "imaginary"),
        ({"rope": RoPE(8), "imaginary": (-1,)}, "imaginary"),
        ({"rope": RoPE(8), "imaginary": (True,)}, "imaginary"),
    ],
)
def test_wrong_configs_are_refused_at_construction(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        RoPEPlusPlus(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("imaginary", "heads"), [((4,), 4), ("half", 1), ("alternate", 1)])
def test_layers_without_such_heads_are_refused(imaginary: Any, heads: int) -> None:
    q = torch.zeros(1, heads, 3, 8)
    with pytest.raises(ArgumentError, match=r"^imaginary="):
        RoPEPlusPlus(RoPE(8), imaginary)(q, q, torch.arange(3))
