"""DAPE: the paper's equation, blocks and cuts, grouped keys, dtypes, gradients, JSON, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import dape as reference

from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding, ScoreModule
from ropewalk.encodings.dape import DAPE, DAPEModule, scaled_products
from ropewalk.encodings.fire import FIRE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError

BIASES = [ALiBi(4), KERPLE(4), FIRE(4)]
SCALE = 0.35


def asked(
    module: ScoreModule, q: torch.Tensor, k: torch.Tensor, of_queries: torch.Tensor, of_keys: torch.Tensor
) -> torch.Tensor:
    """The scores with each key at or before its query visible."""
    visible = (of_keys[:, None, :] <= of_queries[:, :, None])[:, None]
    return module.scores(q, module.keys(k, of_keys), of_queries, of_keys, visible, SCALE)


def layer(one: torch.nn.Linear) -> tuple[list[list[float]], list[float]]:
    return one.weight.tolist(), one.bias.tolist()


@pytest.mark.parametrize("bias", BIASES, ids=lambda bias: bias.kind)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_paper_equation(bias: Encoding, groups: int) -> None:
    module = DAPE(4, bias, hidden=5).module()
    q, k = torch.randn(1, 4, 3, 6), torch.randn(1, groups, 5, 6)
    of_queries, of_keys = torch.tensor([[4, 9, 11]]), torch.tensor([[0, 1, 3, 4, 9]])
    found = module.scores(q, (k,), of_queries, of_keys, None, SCALE)
    products = reference.products(q[0].double().tolist(), k[0].double().tolist(), SCALE)
    given_bias = module.bias.bias(of_queries, of_keys)[0].double().tolist()
    expected = reference.scores(products, given_bias, layer(module.first), layer(module.second))
    assert found.dtype == torch.float32 and found.shape == (1, 4, 3, 5)
    torch.testing.assert_close(found[0].double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


@st.composite
def cases(draw: st.DrawFn) -> tuple[DAPEModule, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(draw(st.integers(0, 999)))
    module = DAPE(4, draw(st.sampled_from(BIASES)), draw(st.integers(1, 9))).module()
    positions = torch.stack([torch.arange(9) * draw(st.integers(1, 3)) + draw(st.integers(0, 900)) for _ in range(2)])
    return module, torch.randn(2, 4, 9, 6), torch.randn(2, draw(st.sampled_from([1, 2, 4])), 9, 6), positions


class TestInvariants:
    @given(case=cases(), start=st.integers(0, 8), size=st.integers(1, 9))
    def test_a_block_of_queries_and_its_keys_equal_the_whole(self, case: Any, start: int, size: int) -> None:
        module, q, k, positions = case
        whole = asked(module, q, k, positions, positions)
        stop = min(start + size, 9)
        block = asked(module, q[:, :, start:stop], k[:, :, :stop], positions[:, start:stop], positions[:, :stop])
        torch.testing.assert_close(block, whole[:, :, start:stop, :stop], rtol=1e-5, atol=1e-5)

    @given(case=cases())
    def test_a_batch_equals_its_rows(self, case: Any) -> None:
        module, q, k, positions = case
        whole = asked(module, q, k, positions, positions)
        for b in range(2):
            row = slice(b, b + 1)
            one = asked(module, q[row], k[row], positions[row], positions[row])
            torch.testing.assert_close(one, whole[row], rtol=1e-5, atol=1e-5)

    @given(case=cases(), key=st.integers(0, 8))
    def test_a_key_reaches_its_own_scores_only(self, case: Any, key: int) -> None:
        module, q, k, positions = case
        before = asked(module, q, k, positions, positions)
        k[:, :, key] = torch.nan
        after = asked(module, q, k, positions, positions)
        others = torch.arange(9) != key
        assert torch.equal(after[..., others], before[..., others]) and after[..., key].isnan().all()

    @given(shift=st.integers(0, 5000))
    def test_only_distance_counts_with_a_relative_bias(self, shift: int) -> None:
        torch.manual_seed(shift)
        module, q, k, here = (
            DAPE(4, ALiBi(4)).module(),
            torch.randn(1, 4, 5, 6),
            torch.randn(1, 2, 5, 6),
            torch.arange(5),
        )
        one = asked(module, q, k, here[None], here[None])
        torch.testing.assert_close(asked(module, q, k, here[None] + shift, here[None] + shift), one)

    @pytest.mark.parametrize("bias", BIASES, ids=lambda bias: bias.kind)
    def test_json_round_trip(self, bias: Encoding) -> None:
        dape = DAPE(4, bias, hidden=7)
        again = Encoding.from_dict(json.loads(json.dumps(dape.to_dict())))
        assert again == dape and hash(again) == hash(dape)


class TestModule:
    @pytest.mark.parametrize("bias", BIASES, ids=lambda bias: bias.kind)
    def test_gradients_reach_every_parameter(self, bias: Encoding) -> None:
        module = DAPE(4, bias).module()
        q, k = torch.randn(1, 4, 5, 6, requires_grad=True), torch.randn(1, 2, 5, 6, requires_grad=True)
        asked(module, q, k, torch.arange(5)[None], torch.arange(5)[None]).pow(2).sum().backward()
        for name, parameter in [*module.named_parameters(), ("q", q), ("k", k)]:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())

    def test_the_bias_is_part_of_the_state(self) -> None:
        names = set(DAPE(4, KERPLE(4)).module().state_dict())
        assert {"first.weight", "first.bias", "second.weight", "second.bias"} < names
        assert any(name.startswith("bias.") for name in names)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_scores_are_float32_or_wider(self, dtype: torch.dtype) -> None:
        module = DAPE(4, ALiBi(4)).module()
        q, k, positions = torch.randn(1, 4, 3, 6).to(dtype), torch.randn(1, 2, 3, 6).to(dtype), torch.arange(3)[None]
        found = asked(module, q, k, positions, positions)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.float(), asked(module, q.float(), k.float(), positions, positions))

    def test_a_module_cast_to_bfloat16_works_in_float32(self) -> None:
        module = DAPE(4, ALiBi(4)).module().to(torch.bfloat16)
        q, positions = torch.randn(1, 4, 3, 6), torch.arange(3)[None]
        assert asked(module, q, q, positions, positions).dtype == torch.float32
        assert module.first.weight.dtype == torch.bfloat16 and "DAPE(" in repr(module)

    def test_a_config_moves_no_random_numbers(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        DAPE(4, KERPLE(4))
        assert torch.equal(torch.rand(4), expected)

    def test_queries_and_keys_pass_untouched(self) -> None:
        q, k = torch.randn(1, 4, 3, 6), torch.randn(1, 2, 3, 6)
        q2, k2 = DAPE(4, ALiBi(4))(q, k, torch.arange(3))
        assert q2 is q and k2 is k

    def test_grouped_products(self) -> None:
        q, k = torch.randn(2, 6, 3, 5), torch.randn(2, 2, 7, 5)
        repeated = k.repeat_interleave(3, dim=1)
        torch.testing.assert_close(scaled_products(q, k, 2.0), 2.0 * q @ repeated.transpose(-1, -2))


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"num_heads": 0, "inner": ALiBi(4)}, "num_heads"),
        ({"num_heads": 4.0, "inner": ALiBi(4)}, "num_heads"),
        ({"num_heads": 4, "inner": None}, "inner"),
        ({"num_heads": 4, "inner": "alibi"}, "inner"),
        ({"num_heads": 4, "inner": RoPE(8)}, "inner"),
        ({"num_heads": 4, "inner": PerLayer(((0, ALiBi(4)),))}, "inner"),
        ({"num_heads": 4, "inner": ALiBi(8)}, r"inner\.num_heads"),
        ({"num_heads": 4, "inner": ALiBi(4), "hidden": 0}, "hidden"),
        ({"num_heads": 4, "inner": ALiBi(4), "hidden": True}, "hidden"),
    ],
)
def test_wrong_configs_are_refused_at_construction(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        DAPE(**arguments)
    assert "\n" not in str(caught.value)


def test_wrong_dicts_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"^inner=None"):
        Encoding.from_dict({"kind": "dape", "num_heads": 4})
    with pytest.raises(ArgumentError, match=r"^kind="):
        Encoding.from_dict({"kind": "dape", "num_heads": 4, "inner": {"kind": "alibl", "num_heads": 4}})
    with pytest.raises(ArgumentError, match=r"^width="):
        Encoding.from_dict(DAPE(4, ALiBi(4)).to_dict() | {"width": 3})


@pytest.mark.parametrize(("heads", "groups", "argument"), [(6, 2, r"q\.shape"), (4, 3, r"k\.shape")])
def test_wrong_head_counts_are_named(heads: int, groups: int, argument: str) -> None:
    positions = torch.arange(3)[None]
    with pytest.raises(ArgumentError, match=f"^{argument}="):
        asked(
            DAPE(4, ALiBi(4)).module(), torch.zeros(1, heads, 3, 6), torch.zeros(1, groups, 3, 6), positions, positions
        )
