"""Sinusoids against the paper and a peer, the learned table and its end, refusals, JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import absolute as reference
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from ropewalk.encodings.absolute import Learned, Sinusoidal
from ropewalk.encodings.base import AbsoluteModule, Encoding
from ropewalk.errors import ArgumentError

ENCODINGS = [Sinusoidal(6), Sinusoidal(8, 500.0, "half"), Learned(5, 128)]


class TestSinusoidal:
    @given(
        width=st.integers(1, 12).map(lambda c: 2 * c),
        base=st.sampled_from([100.0, 10000.0]),
        positions=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    )
    def test_the_papers_equation(self, width: int, base: float, positions: list[int]) -> None:
        expected = torch.tensor([reference.sinusoid(position, width, base) for position in positions])
        found = Sinusoidal(width, base).module().embed(torch.tensor(positions))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        halves = Sinusoidal(width, base, "half").module().embed(torch.tensor(positions))
        split = torch.cat((expected[:, ::2], expected[:, 1::2]), dim=-1)
        torch.testing.assert_close(halves, split, rtol=1e-5, atol=1e-5)

    def test_far_positions(self) -> None:
        """An angle's float32 rounding is some 1e-2 at 131,071 and base 10,000."""
        expected = torch.tensor([reference.sinusoid(131_071, 64, 10000.0)])
        found = Sinusoidal(64).module().embed(torch.tensor([131_071]))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)

    def test_transformers_marian_has_the_half_layout(self) -> None:
        theirs = MarianSinusoidalPositionalEmbedding(50, 16).create_weight()
        ours = Sinusoidal(16, layout="half").module().embed(torch.arange(50))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_no_parameters_and_float32_whatever_the_cast(self) -> None:
        module = Sinusoidal(64).module()
        assert not module.state_dict() and not list(module.parameters())
        plain = module.embed(torch.arange(9))
        for changed in (module.to(torch.bfloat16), module.to("meta").to_empty(device="cpu")):
            found = changed.embed(torch.arange(9))
            assert found.dtype == torch.float32 and torch.equal(found, plain)


class TestLearned:
    def test_rows_of_the_table(self) -> None:
        module = Learned(5, 16).module()
        positions = torch.tensor([[3, 0, 15], [1, 1, 2]], dtype=torch.int16)
        assert torch.equal(module.embed(positions), module.table[positions.long()])

    def test_the_draws(self) -> None:
        torch.manual_seed(7)
        table = Learned(64, 512, std=0.5).module().table
        torch.manual_seed(7)
        assert torch.equal(Learned(64, 512, std=0.5).module().table, table)
        assert table.dtype == torch.float32 and table.std().item() == pytest.approx(0.5, rel=0.02)
        assert abs(table.mean().item()) < 0.02

    def test_gradients_reach_the_rows_that_were_read(self) -> None:
        module = Learned(5, 16).module()
        module.embed(torch.tensor([2, 2, 9])).sum().backward()
        assert module.table.grad is not None
        assert module.table.grad.abs().sum(-1).nonzero().flatten().tolist() == [2, 9]

    def test_a_cast_table_gives_its_dtype(self) -> None:
        assert Learned(5, 16).module().to(torch.bfloat16).embed(torch.arange(3)).dtype == torch.bfloat16

    def test_past_the_end_is_one_line(self) -> None:
        with pytest.raises(ArgumentError, match=r"^max\(positions\)=16: the table ends at position 15") as caught:
            Learned(5, 16).module().embed(torch.tensor([[3, 16]]))
        assert "\n" not in str(caught.value) and "max_positions=16" in str(caught.value)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.kind)
class TestBoth:
    def test_parts_and_rows_equal_the_whole(self, encoding: Encoding) -> None:
        module = encoding.module()
        assert isinstance(module, AbsoluteModule)
        positions = torch.stack([torch.arange(9) + start for start in (0, 7, 100)])
        whole = module.embed(positions)
        assert whole.shape == (3, 9, encoding.width)  # type: ignore[attr-defined]
        for b in range(3):
            parts = [module.embed(positions[b, s]) for s in (slice(0, 4), slice(4, 8), slice(8, 9))]
            assert torch.equal(torch.cat(parts), whole[b])

    def test_queries_and_keys_pass_untouched(self, encoding: Encoding) -> None:
        q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 1, 3, 4)
        q2, k2 = encoding.module()(q, k, torch.arange(3))
        assert q2 is q and k2 is k

    def test_round_trip(self, encoding: Encoding) -> None:
        assert Encoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding

    def test_compiled_whole(self, encoding: Encoding) -> None:
        module = encoding.module()
        assert isinstance(module, AbsoluteModule)
        compiled = torch.compile(module.embed, fullgraph=True, backend="eager")
        assert torch.equal(compiled(torch.arange(4)), module.embed(torch.arange(4)))

    @pytest.mark.parametrize(
        ("positions", "argument"),
        [
            (torch.arange(3.0), r"positions\.dtype"),
            (torch.ones(3, dtype=torch.bool), r"positions\.dtype"),
            (torch.tensor([2, -1]), r"min\(positions\)"),
            (torch.tensor(2), "positions"),
            ([0, 1], "positions"),
        ],
    )
    def test_wrong_positions_are_named(self, encoding: Encoding, positions: Any, argument: str) -> None:
        module = encoding.module()
        assert isinstance(module, AbsoluteModule)
        with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
            module.embed(positions)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Sinusoidal(7), "width"),
        (lambda: Sinusoidal(8, base=1.0), "base"),
        (lambda: Sinusoidal(8, layout="halves"), "layout"),
        (lambda: Learned(0, 8), "width"),
        (lambda: Learned(8.0, 8), "width"),  # type: ignore[arg-type]
        (lambda: Learned(8, 0), "max_positions"),
        (lambda: Learned(8, 8, std=0.0), "std"),
        (lambda: Encoding.from_dict({"kind": "learned", "width": 8}), "max_positions"),
    ],
)
def test_wrong_arguments_are_named(make: Any, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}="):
        make()
