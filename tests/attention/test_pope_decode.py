"""Decoding with PoPE: phases on the query's side give what encoded keys give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.attention.cases import HEADS, D, Largest, close, gradients

from ropewalk.attention import attend
from ropewalk.attention import pope_decode as folded
from ropewalk.attention.mask import Visible, check_mask
from ropewalk.attention.pope_decode import attend_folded
from ropewalk.encodings.pope import PoPE, PoPEModule
from ropewalk.errors import ArgumentError


def content(queries: int, keys: int, groups: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = (2, HEADS, queries, D), (2, groups, keys, D), (2, groups, keys, 3)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def decoded(
    module: PoPEModule, qkv: list[torch.Tensor], positions: tuple[torch.Tensor, torch.Tensor], visible: Visible
) -> torch.Tensor:
    q, k, v = qkv
    return attend_folded(module, q, module.stored(k), v, positions[0], module.tables(positions[1]), visible, D**-0.5)


@given(
    queries=st.integers(1, 4),
    more=st.integers(0, 9),
    groups=st.sampled_from([1, 2, 4]),
    rotary_dim=st.sampled_from([None, 3]),
    delta=st.sampled_from(["uniform", "none"]),
    bound=st.sampled_from(["clamp", "free"]),
    causal=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 6)),
    mask=st.sampled_from(["none", "bool", "float"]),
    batched=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_attend(
    queries: int,
    more: int,
    groups: int,
    rotary_dim: int | None,
    delta: str,
    bound: str,
    causal: bool,
    window: int | None,
    mask: str,
    batched: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    keys, window = queries + more, window if causal else None
    shown: torch.Tensor | None = None
    if mask != "none":  # a row may see nothing
        shown = torch.rand(2, 1, queries if seed % 2 else 1, keys) < 0.5
        shown = shown if mask == "bool" else torch.randn(shown.shape).masked_fill(~shown, -torch.inf)
    module = PoPE(D, groups, delta=delta, bound=bound, rotary_dim=rotary_dim).module()
    of_keys = torch.arange(keys).expand(2, keys) + (torch.tensor([[0], [7]]) if batched else 0)
    of_keys = of_keys if batched else of_keys[:1]
    positions = of_keys[:, more:], of_keys
    qkv = content(queries, keys, groups)
    wanted = [*qkv, *module.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded, "CHUNK", 3)
        ours = decoded(module, qkv, positions, Visible(queries, keys, causal, window, shown))
    plain = attend(*qkv, module, positions, causal=causal, mask=shown, window=window)
    close(ours, plain)
    for found, expected in zip(gradients(ours, wanted), gradients(plain, wanted), strict=True):
        assert found.isfinite().all()
        close(found, expected, 3e-5)


def test_bfloat16_is_as_near_as_encoded_keys() -> None:
    """Errors against float64, both ways, over 700 keys: no more than 3 times the other's."""
    module = PoPE(D, 2, delta="uniform").module()
    exact = [x.detach() * 2 for x in content(1, 700, 2, torch.float64)]
    rounded = [x.bfloat16() for x in exact]
    exact = [x.double() for x in rounded]
    positions = torch.tensor([[699]]), torch.arange(700)[None]
    expected = attend(*exact, module, positions)
    found = decoded(module, rounded, positions, Visible(1, 700))
    assert found.dtype == torch.bfloat16
    error, other = ((x - expected).abs().max() for x in (found, attend(*rounded, module, positions)))
    assert error <= 3 * other and error <= 0.05 * expected.abs().max()


def test_a_number_that_is_none_is_shown() -> None:
    """A NaN in what is seen must not turn to zeros because there is a mask."""
    module = PoPE(D, 2).module()
    qkv = [x.detach() for x in content(1, 6, 2)]
    qkv[1][0, :, 3] = torch.nan
    out = decoded(
        module, qkv, (torch.tensor([[5]]), torch.arange(6)[None]),
        Visible(1, 6, mask=check_mask("mask", torch.ones(6, dtype=torch.bool), (2, HEADS, 1, 6))),
    )  # fmt: skip
    assert out[0].isnan().all() and out[1].isfinite().all()


def test_nothing_of_twice_the_size_is_made_for_all_keys() -> None:
    module = PoPE(64, 2).module()
    q, k, v = torch.randn(1, HEADS, 1, 64), torch.randn(1, 2, 32768, 64), torch.randn(1, 2, 32768, 64)
    at, tables, stored = torch.tensor([[32767]]), module.tables(torch.arange(32768)[None]), module.stored(k)
    with torch.no_grad(), Largest(q, v, stored, *tables) as largest:
        attend_folded(module, q, stored, v, at, tables, Visible(1, 32768), 0.1)
    assert largest.numbers <= stored.numel() // 8


def test_keys_of_another_number_of_heads_are_refused() -> None:
    module = PoPE(D, 2).module()
    with pytest.raises(ArgumentError, match=r"^num_kv_heads=2: ") as caught:
        decoded(module, content(1, 5, 4), (torch.tensor([[4]]), torch.arange(5)[None]), Visible(1, 5))
    assert "\n" not in str(caught.value)
