"""DAPE V2: the paper's equation, what padding means, blocks and cuts, hidden keys, gradients, JSON, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import dape as reference_dape
from tests.reference import dape_v2 as reference

from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dape import DAPE
from ropewalk.encodings.dape_v2 import DAPEv2, DAPEv2Module
from ropewalk.encodings.fire import FIRE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError

BIASES = [None, ALiBi(4), KERPLE(4), FIRE(4)]
SCALE = 0.35


def asked(
    module: DAPEv2Module,
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor | None,
    queries: slice = slice(None),
    keys: slice = slice(None),
) -> torch.Tensor:
    """The scores of some queries with some keys, 0 where hidden; visible is (B, H or 1, N, M)."""
    seen = None if visible is None else visible[:, :, queries, keys]
    kept = tuple(one[:, :, keys] for one in module.keys(k, positions))
    found = module.scores(q[:, :, queries], kept, positions[:, queries], positions[:, keys], seen, SCALE)
    return found if seen is None else found.masked_fill(~seen, 0.0)


def causal(tokens: int) -> torch.Tensor:
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()


def layer(one: torch.nn.Conv2d) -> tuple[reference.Kernels, list[float]]:
    assert one.bias is not None
    return one.weight[:, :, 0].tolist(), one.bias.tolist()


@pytest.mark.parametrize("bias", BIASES, ids=lambda bias: "none" if bias is None else bias.kind)
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("window", [9, 3])
def test_the_paper_equation(bias: Encoding | None, kernel: int, window: int) -> None:
    module = DAPEv2(4, bias, kernel, hidden=5).module()
    q, k, positions = torch.randn(1, 4, 6, 6), torch.randn(1, 2, 6, 6), torch.tensor([[0, 1, 3, 4, 9, 10]])
    visible = causal(6).triu(1 - window)
    found = asked(module, q, k, positions, visible)
    products = reference_dape.products(q[0].double().tolist(), k[0].double().tolist(), SCALE)
    biases = None if module.bias is None else module.bias.bias(positions, positions)[0].double().tolist()
    expected = reference.scores(products, biases, visible[0, 0].tolist(), layer(module.first), layer(module.second))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0].double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_authors_padding_where_the_end_of_the_map_is_out_of_reach(kernel: int) -> None:
    module, side = DAPEv2(4, ALiBi(4), kernel).module(), kernel // 2
    q, positions = torch.randn(2, 4, 9, 6), torch.arange(9)[None]
    assert module.bias is not None
    products, bias = SCALE * q @ q.transpose(-1, -2), module.bias.bias(positions, positions)
    maps = torch.cat((products, bias.expand_as(products)), dim=1).tril()
    padded = [
        torch.nn.Conv2d(8, 32, (1, kernel), padding=(0, side)),
        torch.nn.Conv2d(32, 4, (1, kernel), padding=(0, side)),
    ]
    for theirs, ours in zip(padded, (module.first, module.second), strict=True):
        theirs.load_state_dict(ours.state_dict())
    expected = (products + bias + padded[1](torch.nn.functional.leaky_relu(padded[0](maps)))).tril()
    found = asked(module, q, q, positions, causal(9))
    torch.testing.assert_close(found[:, :, : 9 - side], expected[:, :, : 9 - side], rtol=1e-5, atol=1e-5)
    assert kernel == 1 or not torch.allclose(found[:, :, -1], expected[:, :, -1], atol=1e-3)


def test_a_kernel_of_one_is_dape() -> None:
    v2, v1 = DAPEv2(4, ALiBi(4), kernel=1).module(), DAPE(4, ALiBi(4)).module()
    for theirs, ours in ((v1.first, v2.first), (v1.second, v2.second)):
        theirs.load_state_dict({"weight": ours.weight[:, :, 0, 0], "bias": ours.bias})
    q, positions = torch.randn(2, 4, 9, 6), torch.arange(9)[None]
    expected = v1.scores(q, (q,), positions, positions, None, SCALE)
    torch.testing.assert_close(asked(v2, q, q, positions, None), expected, rtol=1e-5, atol=1e-5)


@st.composite
def cases(draw: st.DrawFn) -> tuple[DAPEv2Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A module, q and k of 10 tokens, positions (2, 10)."""
    torch.manual_seed(draw(st.integers(0, 999)))
    module = DAPEv2(
        4, draw(st.sampled_from(BIASES)), draw(st.sampled_from([1, 3, 5, 7])), draw(st.integers(1, 9))
    ).module()
    positions = torch.stack([torch.arange(10) * draw(st.integers(1, 3)) + draw(st.integers(0, 900)) for _ in range(2)])
    return module, torch.randn(2, 4, 10, 6), torch.randn(2, draw(st.sampled_from([1, 2, 4])), 10, 6), positions


class TestInvariants:
    @given(case=cases(), key=st.integers(0, 9), heads=st.sampled_from([1, 4]))
    def test_the_content_of_a_hidden_key_changes_no_visible_score(self, case: Any, key: int, heads: int) -> None:
        module, q, k, positions = case
        visible = torch.rand(2, heads, 10, 10) < 0.6
        before = asked(module, q, k, positions, visible)
        k[:, :, key] = torch.nan  # a far stronger change than any number
        after = asked(module, q, k, positions, visible)
        for b in range(2):
            for n in range(10):
                if not visible[b, :, n, key].any():
                    assert torch.equal(after[b, :, n], before[b, :, n])

    @given(case=cases(), start=st.integers(0, 9), size=st.integers(1, 10), window=st.integers(1, 10))
    def test_a_block_with_the_keys_that_it_sees_equals_the_whole(
        self, case: Any, start: int, size: int, window: int
    ) -> None:
        module, q, k, positions = case
        visible = causal(10).triu(1 - window)
        whole = asked(module, q, k, positions, visible)
        stop = min(start + size, 10)
        for first in (0, max(0, start + 1 - window)):  # keys cut at the end only, and at both ends
            keys = slice(first, stop)
            block = asked(module, q, k, positions, visible, slice(start, stop), keys)
            torch.testing.assert_close(block, whole[:, :, start:stop, keys], rtol=1e-5, atol=1e-5)

    @given(case=cases(), hidden=st.integers(0, 5), keys=st.integers(6, 10))
    def test_keys_that_no_query_sees_change_nothing(self, case: Any, hidden: int, keys: int) -> None:
        module, q, k, positions = case
        visible = (torch.rand(2, 1, 10, 10) < 0.7) & (torch.arange(10) >= hidden) & (torch.arange(10) < keys)
        whole = asked(module, q, k, positions, visible)
        cut = asked(module, q, k, positions, visible, keys=slice(hidden, keys))
        torch.testing.assert_close(cut, whole[..., hidden:keys], rtol=1e-5, atol=1e-5)

    @given(case=cases(), cut=st.integers(0, 10))
    def test_no_mask_means_that_all_is_visible(self, case: Any, cut: int) -> None:
        module, q, k, positions = case
        keys = slice(0, max(cut, 1))
        visible = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        bare = module.scores(q, (k[:, :, keys],), positions, positions[:, keys], None, SCALE)
        broadcast = module.scores(q, (k[:, :, keys],), positions, positions[:, keys], visible[0, 0], SCALE)
        assert torch.equal(broadcast, bare)
        masked = asked(module, q, k, positions, (torch.arange(10) < keys.stop).expand(1, 1, 10, 10))
        torch.testing.assert_close(masked[..., keys], bare, rtol=1e-5, atol=1e-5)

    @given(case=cases(), padding=st.integers(0, 4))
    def test_a_left_padded_row_of_a_batch_equals_the_row_alone(self, case: Any, padding: int) -> None:
        module, q, k, positions = case
        visible = causal(10).repeat(2, 1, 1, 1)
        visible[1, :, :, :padding] = False
        whole, tokens, row = asked(module, q, k, positions, visible), slice(padding, None), slice(1, 2)
        alone = asked(module, q[row, :, tokens], k[row, :, tokens], positions[row, tokens], causal(10 - padding))
        torch.testing.assert_close(alone, whole[row, :, tokens, tokens], rtol=1e-5, atol=1e-5)

    @given(seed=st.integers(0, 999), order=st.permutations(range(4)))
    def test_heads_with_masks_of_their_own_are_alike(self, seed: int, order: list[int]) -> None:
        """Other names for the heads, in the masks and in the weights too, give the same scores under those names."""
        torch.manual_seed(seed)
        module, renamed = DAPEv2(4).module(), DAPEv2(4).module()
        renamed.load_state_dict(module.state_dict())
        with torch.no_grad():
            renamed.first.weight.copy_(module.first.weight[:, order])
            renamed.second.weight.copy_(module.second.weight[order])
            renamed.second.bias.copy_(module.second.bias[order])
        q, k, positions = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6), torch.arange(6)[None]
        visible = torch.rand(1, 4, 6, 6) < 0.3
        found = asked(renamed, q[:, order], k[:, order], positions, visible[:, order])
        torch.testing.assert_close(found, asked(module, q, k, positions, visible)[:, order], rtol=1e-5, atol=1e-5)

    @given(bias=st.sampled_from(BIASES), kernel=st.sampled_from([1, 3, 11]), hidden=st.integers(1, 64))
    def test_json_round_trip(self, bias: Encoding | None, kernel: int, hidden: int) -> None:
        dape = DAPEv2(4, bias, kernel, hidden)
        again = Encoding.from_dict(json.loads(json.dumps(dape.to_dict())))
        assert again == dape and hash(again) == hash(dape)


class TestModule:
    @pytest.mark.parametrize("bias", BIASES, ids=lambda bias: "none" if bias is None else bias.kind)
    def test_gradients_reach_every_parameter(self, bias: Encoding | None) -> None:
        module = DAPEv2(4, bias).module()
        q, k = torch.randn(1, 4, 5, 6, requires_grad=True), torch.randn(1, 2, 5, 6, requires_grad=True)
        asked(module, q, k, torch.arange(5)[None], causal(5)).pow(2).sum().backward()
        for name, parameter in [*module.named_parameters(), ("q", q), ("k", k)]:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_scores_are_float32_or_wider(self, dtype: torch.dtype) -> None:
        module, positions = DAPEv2(4, ALiBi(4)).module(), torch.arange(3)[None]
        q, k = torch.randn(1, 4, 3, 6).to(dtype), torch.randn(1, 2, 3, 6).to(dtype)
        found = asked(module, q, k, positions, causal(3))
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.float(), asked(module, q.float(), k.float(), positions, causal(3)))

    def test_a_module_cast_to_bfloat16_works_in_float32(self) -> None:
        module, q, positions = DAPEv2(4).module().to(torch.bfloat16), torch.randn(1, 4, 3, 6), torch.arange(3)[None]
        assert asked(module, q, q, positions, causal(3)).dtype == torch.float32 and "DAPEv2(" in repr(module)

    def test_a_query_that_sees_nothing_gets_finite_scores(self) -> None:
        q, positions = torch.randn(1, 4, 3, 6), torch.arange(3)[None]
        found = DAPEv2(4).module().scores(q, (q,), positions, positions, torch.zeros(3, 3, dtype=torch.bool), SCALE)
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"num_heads": 0}, "num_heads"),
        ({"num_heads": 4, "inner": "alibi"}, "inner"),
        ({"num_heads": 4, "inner": RoPE(8)}, "inner"),
        ({"num_heads": 4, "inner": ALiBi(8)}, r"inner\.num_heads"),
        ({"num_heads": 4, "kernel": 2}, "kernel"),
        ({"num_heads": 4, "kernel": 0}, "kernel"),
        ({"num_heads": 4, "kernel": 3.0}, "kernel"),
        ({"num_heads": 4, "hidden": 0}, "hidden"),
    ],
)
def test_wrong_configs_are_refused_at_construction(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        DAPEv2(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("heads", "groups", "argument"), [(6, 2, r"q\.shape"), (4, 3, r"k\.shape")])
def test_wrong_head_counts_are_named(heads: int, groups: int, argument: str) -> None:
    q, k = torch.zeros(1, heads, 3, 6), torch.zeros(1, groups, 3, 6)
    with pytest.raises(ArgumentError, match=f"^{argument}="):
        asked(DAPEv2(4).module(), q, k, torch.arange(3)[None], causal(3))
