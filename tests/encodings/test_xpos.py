"""xPos: the paper's equation, the reach of float32, relative positions, caches, peers, refusals, JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import xpos as reference

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError

LAYOUTS = ["half", "interleaved"]
LAST = 28_328


def scores(xpos: Encoding, q: torch.Tensor, k: torch.Tensor, positions: Any) -> torch.Tensor:
    """(B, H, N, M), each query head with its group's key."""
    q2, k2 = xpos(q, k, positions)
    return q2 @ k2.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("numbers", [(1e4, 512, 0.4), (500.0, 64.0, 1.5)])
def test_the_paper_equation(layout: str, numbers: tuple[float, float, float]) -> None:
    base, scale_base, gamma = numbers
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 4, 8)
    of_queries, of_keys = torch.tensor([5, 90, 400]), torch.tensor([0, 5, 17, 300])
    found = scores(XPos(8, base, scale_base, gamma, layout), q, k, (of_queries, of_keys))
    for h in range(4):
        for n, at in enumerate(of_queries.tolist()):
            for m, other in enumerate(of_keys.tolist()):
                content = q[0, h, n].tolist(), k[0, h // 2, m].tolist()
                expected = reference.score(*content, at, other, base, scale_base, gamma, layout)
                # the angles' float32 rounding; a key far after its query gets a large score
                assert found[0, h, n, m].item() == pytest.approx(expected, rel=2e-4, abs=2e-4)


class TestReach:
    def test_as_documented(self) -> None:
        assert XPos(8).last_position == LAST and XPos(64).last_position == LAST
        assert XPos(8, scale_base=5120).last_position == pytest.approx(10 * LAST, abs=20)
        assert XPos(8, scale_base=1e300, gamma=1e300).last_position == 2**24

    def test_scales_at_the_edges(self) -> None:
        """The smallest and largest scale of each pair, without the angles: at theta = 0 nothing turns."""
        xpos = XPos(16)
        module = xpos.module()
        module.frequencies.zero_()
        cos, sin = module.tables(torch.tensor([0, xpos.centre, LAST]), torch.float32)
        for row, position in enumerate((0, xpos.centre, LAST)):
            for c in range(8):
                expected = reference.zeta(c, 16, 0.4) ** ((position - xpos.centre) / 512)
                for channel in reference.pair_channels(c, 16, "half"):
                    assert cos[row, channel].item() == pytest.approx(expected, rel=1e-5)
                    assert cos[row, 16 + channel].item() == pytest.approx(1 / expected, rel=1e-5)
        assert cos.abs().max() <= 2.0**50 * 1.0001 and cos.abs().min() >= 2.0**-50 * 0.9999 and not sin.any()

    @pytest.mark.parametrize("start", [0, LAST - 600])
    def test_scores_at_the_edges(self, start: int) -> None:
        q, k = torch.randn(1, 1, 3, 16), torch.randn(1, 1, 3, 16)
        positions = torch.tensor([0, 40, 600]) + start
        found = scores(XPos(16), q, k, positions)
        for n, at in enumerate(positions.tolist()):
            for m, other in enumerate(positions.tolist()):
                expected = reference.score(q[0, 0, n].tolist(), k[0, 0, m].tolist(), at, other, 1e4, 512, 0.4)
                # RoPE's own limit: at 28,000 an angle's float32 rounding is up to 2e-3
                assert found[0, 0, n, m].item() == pytest.approx(expected, rel=5e-3, abs=2e-2)

    def test_one_call_over_the_whole_reach(self) -> None:
        """The first and the last position: a product of scales of 2^-100 or 2^100, and nothing overflows."""
        x = torch.ones(1, 1, 3, 16)
        found = scores(XPos(16), x, x, torch.tensor([0, LAST // 2, LAST]))
        assert found.isfinite().all()
        torch.testing.assert_close(found.diagonal(dim1=-2, dim2=-1), torch.full((1, 1, 3), 16.0), rtol=1e-5, atol=1e-4)
        # only the slowest pair, zeta = (14 / 16 + 0.4) / 1.4, still counts at that distance
        slowest = reference.zeta(7, 16, 0.4) ** (LAST / 512)
        assert abs(found[0, 0, 2, 0].item()) <= 2 * slowest * 1.01
        x = torch.full((1, 1, 2, 16), 1e4)
        assert scores(XPos(16), x, x, torch.tensor([0, LAST])).isfinite().all()

    @pytest.mark.parametrize(("position", "argument"), [(LAST + 1, "max"), (10**6, "max")])
    def test_beyond_is_refused(self, position: int, argument: str) -> None:
        q = torch.zeros(1, 1, 2, 8)
        with pytest.raises(ArgumentError, match=rf"^{argument}\(positions\)={position}.*0 to {LAST}") as caught:
            XPos(8)(q, q, torch.tensor([0, position]))
        assert "\n" not in str(caught.value)
        with pytest.raises(ArgumentError, match=r"^min\(positions\)=-1"):
            XPos(8).module().tables(torch.tensor([-1, 3]), torch.float32)

    def test_float16_is_refused(self) -> None:
        q = torch.zeros(1, 1, 2, 8, dtype=torch.float16)
        with pytest.raises(ArgumentError, match=r"^dtype=torch\.float16"):
            XPos(8)(q, q, torch.arange(2))


@st.composite
def encodings(draw: st.DrawFn) -> XPos:
    torch.manual_seed(draw(st.integers(0, 999)))
    return XPos(
        draw(st.sampled_from([2, 8])),
        draw(st.floats(1.5, 1e6)),
        draw(st.floats(100.0, 5000.0)),
        draw(st.floats(0.2, 3.0)),
        draw(st.sampled_from(LAYOUTS)),
    )


class TestInvariants:
    @given(xpos=encodings(), shift=st.integers(0, 3000))
    def test_only_distance_counts(self, xpos: XPos, shift: int) -> None:
        q, k = torch.randn(1, 4, 7, xpos.head_dim), torch.randn(1, 2, 7, xpos.head_dim)
        here = scores(xpos, q, k, torch.arange(7))
        # at 3000 an angle's float32 rounding is some 2e-4
        torch.testing.assert_close(scores(xpos, q, k, torch.arange(7) + shift), here, rtol=0, atol=2e-2)

    @given(xpos=encodings(), cut=st.integers(0, 9))
    def test_cached_keys_and_later_queries_equal_the_whole(self, xpos: XPos, cut: int) -> None:
        q, k = torch.randn(2, 4, 9, xpos.head_dim), torch.randn(2, 2, 9, xpos.head_dim)
        positions = torch.stack([torch.arange(9) + 3, torch.arange(9) + 50])
        whole = xpos(q, k, positions)
        slices = [slice(0, cut), *(slice(n, n + 1) for n in range(cut, 9))]
        parts = [xpos(q[:, :, s], k[:, :, s], positions[:, s]) for s in slices]
        for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(part, dim=2), expected)

    @given(xpos=encodings())
    def test_a_batch_equals_its_rows(self, xpos: XPos) -> None:
        q, k = torch.randn(3, 4, 5, xpos.head_dim), torch.randn(3, 2, 5, xpos.head_dim)
        positions = torch.stack([torch.arange(5) + start for start in (0, 7, 100)])
        whole = xpos(q, k, positions)
        for b in range(3):
            row = xpos(q[b : b + 1], k[b : b + 1], positions[b])
            assert all(torch.equal(one, many[b : b + 1]) for one, many in zip(row, whole, strict=True))

    @given(distance=st.integers(0, 2000))
    def test_at_no_distance_it_is_rope_and_decays_beyond(self, distance: int) -> None:
        x = torch.zeros(1, 1, 1, 2)
        x[..., 0] = 1.0
        at, origin = torch.tensor([distance]), torch.tensor([0])
        decayed, plain = scores(XPos(2), x, x, (at, origin)), scores(RoPE(2), x, x, (at, origin))
        factor = (0.4 / 1.4) ** (distance / 512)  # the only pair's zeta is gamma / (1 + gamma)
        torch.testing.assert_close(decayed, plain * factor, rtol=1e-4, atol=1e-4)

    @given(xpos=encodings())
    def test_json_round_trip(self, xpos: XPos) -> None:
        again = Encoding.from_dict(json.loads(json.dumps(xpos.to_dict())))
        assert again == xpos and hash(again) == hash(xpos)


class TestModule:
    def test_nothing_is_saved_or_learned(self) -> None:
        module = XPos(8).module()
        assert not module.state_dict() and not list(module.parameters()) and "XPos(" in repr(module)

    @pytest.mark.parametrize("spoil", [lambda m: m.to(torch.bfloat16), lambda m: m.to("meta").to_empty(device="cpu")])
    def test_casting_or_emptying_the_module_keeps_its_numbers(self, spoil: Any) -> None:
        module, fresh = spoil(XPos(64).module()), XPos(64).module()
        assert torch.equal(module.frequencies, fresh.frequencies) and torch.equal(module.decay, fresh.decay)

    def test_bfloat16_is_kept_and_serves_the_whole_reach(self) -> None:
        q, k, positions = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), torch.tensor([0, 20, LAST])
        narrow = XPos(8)(q.bfloat16(), k.bfloat16(), positions)
        assert all(one.dtype == torch.bfloat16 for one in narrow)
        for one, wide in zip(narrow, XPos(8)(q, k, positions), strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one.float().norm(dim=-1), wide.norm(dim=-1), rtol=2e-2, atol=0)

    def test_positions_of_few_bits(self) -> None:
        q = torch.randn(1, 1, 3, 8)
        few, many = torch.tensor([0, 3, 250], dtype=torch.uint8), torch.tensor([0, 3, 250])
        assert all(map(torch.equal, XPos(8)(q, q, few), XPos(8)(q, q, many)))

    def test_gradients_pass(self) -> None:
        q = torch.randn(1, 1, 3, 8, dtype=torch.float64, requires_grad=True)
        k = torch.randn(1, 1, 3, 8, dtype=torch.float64, requires_grad=True)
        module = XPos(8).module()
        tables = [
            [table.double() for table in module.tables(at, torch.float64)] for at in (torch.arange(3) + 14_164,) * 2
        ]
        assert torch.autograd.gradcheck(lambda q, k: module.encode(q, k, (q, k), tables), (q, k))  # type: ignore[arg-type]

    def test_compiled_whole(self) -> None:
        module, q = XPos(8).module(), torch.randn(1, 2, 4, 8)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(q, q, torch.arange(4)), module(q, q, torch.arange(4))))


class TestPeers:
    """Both write channels interleaved and centre each call on its own length; scores of one whole call agree."""

    def test_rotary_embedding_torch(self) -> None:
        peer = pytest.importorskip("rotary_embedding_torch")
        q, k, positions = torch.randn(2, 4, 40, 16), torch.randn(2, 4, 40, 16), torch.arange(40)
        theirs = peer.RotaryEmbedding(dim=16, use_xpos=True, cache_if_possible=False)
        q2, k2 = theirs.rotate_queries_and_keys(q, k)
        ours = scores(XPos(16, layout="interleaved"), q, k, positions)
        torch.testing.assert_close(ours, q2 @ k2.transpose(-1, -2), rtol=1e-4, atol=1e-4)

    def test_rotary_embedding_torch_is_wrong_for_cached_keys(self) -> None:
        """It centres queries on half their own number and keys on half of theirs: scores get a false factor."""
        peer = pytest.importorskip("rotary_embedding_torch")
        q, k, positions = torch.randn(1, 1, 40, 16), torch.randn(1, 1, 40, 16), torch.arange(40)
        theirs = peer.RotaryEmbedding(dim=16, use_xpos=True, xpos_scale_base=64, cache_if_possible=False)
        q2, k2 = theirs.rotate_queries_with_cached_keys(q[:, :, -1:], k)
        ours = scores(XPos(16, scale_base=64, layout="interleaved"), q, k, positions)[:, :, -1:]
        assert not torch.allclose(q2 @ k2.transpose(-1, -2), ours, rtol=1e-2, atol=1e-2)
        per_pair = torch.tensor([reference.zeta(c, 16, 0.4) for c in range(8)]) ** ((40 // 2 - 1 // 2) / 64)
        mended = q2 / per_pair.repeat_interleave(2)
        torch.testing.assert_close(mended @ k2.transpose(-1, -2), ours, rtol=1e-4, atol=1e-4)

    def test_x_transformers(self) -> None:
        peer = pytest.importorskip("x_transformers.x_transformers")
        q, k, positions = torch.randn(2, 4, 40, 16), torch.randn(2, 4, 40, 16), torch.arange(40)
        theirs = peer.RotaryEmbedding(16, use_xpos=True)
        angles, scale = theirs(positions)
        q2 = peer.apply_rotary_pos_emb(q, angles, scale)
        k2 = peer.apply_rotary_pos_emb(k, angles, scale**-1)
        ours = scores(XPos(16, layout="interleaved"), q, k, positions)
        torch.testing.assert_close(ours, q2 @ k2.transpose(-1, -2), rtol=1e-4, atol=1e-4)
        # its centre is half of the call's last position, so a key encoded in a longer call is another key
        angles, scale = theirs(torch.arange(2000))
        longer = peer.apply_rotary_pos_emb(torch.cat((k, k.new_zeros(2, 4, 1960, 16)), dim=2), angles, scale**-1)
        assert not torch.allclose(longer[:, :, :40], k2, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"head_dim": 7}, "head_dim"),
        ({"head_dim": 8, "base": 1.0}, "base"),
        ({"head_dim": 8, "scale_base": 0}, "scale_base"),
        ({"head_dim": 8, "scale_base": math.inf}, "scale_base"),
        ({"head_dim": 8, "gamma": -0.4}, "gamma"),
        ({"head_dim": 8, "layout": "halves"}, "layout"),
    ],
)
def test_wrong_configs_are_refused_at_construction(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        XPos(**arguments)
    assert "\n" not in str(caught.value)
