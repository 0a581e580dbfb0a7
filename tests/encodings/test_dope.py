"""DoPE against slow loops, and as a value: round trips and bad input."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import dope as oracle

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import READINGS, DoPE, gaussian
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.heads import HeadSelection
from ropewalk.scaling import Linear, YaRN

LAYER, LENGTH, SEED = 2, 40, 7
ALL_READINGS = [(mode, reading) for mode, readings in READINGS.items() for reading in readings]
ROPES = {
    "half": RoPE(8),
    "interleaved": RoPE(8, layout="interleaved", base=500.0),
    "partial": RoPE(8, rotary_dim=4, base=100.0),
    "partial interleaved": RoPE(8, rotary_dim=6, layout="interleaved"),
    "yarn": RoPE(8, rule=YaRN(4.0, LENGTH)),
    "linear": RoPE(8, rule=Linear(4.0)),
}


def noise(stream: int, head: int, position: int, channel: int) -> float:
    return float(gaussian(SEED, stream, LAYER, [head], torch.tensor([position]), channel + 1)[0, 0, channel])


def module_scores(encoding: DoPE, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(H, N, M) float64 from the module's vectors: each query head with the key that `own_keys` gives it."""
    module = encoding.at(LAYER).module()
    q2, k2 = module(q, k, positions)
    heads, groups = q.shape[1], k.shape[1]
    own = dict(module.own_keys(heads, groups))
    assert k2.shape[1] == groups + len(set(own.values()))
    read = [groups + own[h] if h in own else h // (heads // groups) for h in range(heads)]
    return (q2.double() @ k2[:, read].double().transpose(-1, -2) / q.shape[-1] ** 0.5)[0]


def expected_scores(encoding: DoPE, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    rope: Any = encoding.rope
    schedule, own = rope.schedule(), RoPE(rope.head_dim, rope.base, rotary_dim=rope.rotary_dim).schedule()
    found = oracle.scores(
        q[0].tolist(),
        k[0].tolist(),
        positions.tolist(),
        encoding.heads.in_layer(LAYER),
        encoding.scope,
        encoding.apply_to,
        frequencies=schedule.frequencies.tolist(),
        own_frequencies=own.frequencies.tolist(),
        scale=schedule.attention_scale,
        layout=rope.layout,
        reading=encoding.reading,
        original_length=encoding.original_length,
        sigma=encoding.sigma,
        noise=noise,
    )
    return torch.tensor(found, dtype=torch.float64)


def compare(encoding: DoPE, num_heads: int = 4, num_kv_heads: int = 2) -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(1, num_heads, 5, 8, generator=generator)
    k = torch.randn(1, num_kv_heads, 5, 8, generator=generator)
    positions = torch.tensor([0, 1, 2, 7, 33])
    seen, expected = module_scores(encoding, q, k, positions), expected_scores(encoding, q, k, positions)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
    weights = [oracle.causal_softmax(head) for head in expected.tolist()]
    mask = torch.ones(5, 5).tril().log()
    torch.testing.assert_close((seen + mask).softmax(-1), torch.tensor(weights).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scope", ["query_head", "kv_group"])
@pytest.mark.parametrize("apply_to", ["both", "query", "key"])
@pytest.mark.parametrize(("mode", "reading"), ALL_READINGS)
def test_scores_equal_the_loops(mode, reading, scope, apply_to):
    for heads in ([(LAYER, 1)], [(LAYER, 0), (LAYER, 1), (LAYER, 2), (0, 3)]):
        compare(DoPE(RoPE(8), HeadSelection(heads), mode, reading, LENGTH, SEED, 0.7, scope, apply_to))


@pytest.mark.parametrize("name", sorted(ROPES))
@pytest.mark.parametrize(("mode", "reading"), ALL_READINGS)
def test_layouts_widths_and_length_rules(mode, reading, name):
    compare(DoPE(ROPES[name], HeadSelection([(LAYER, 1)]), mode, reading, LENGTH, SEED))


@given(data=st.data())
def test_any_selection_under_any_grouping(data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    size = data.draw(st.sampled_from([1, 2, 3]))
    heads = data.draw(st.sets(st.integers(0, groups * size - 1), min_size=1))
    mode, reading = data.draw(st.sampled_from(ALL_READINGS))
    scope, apply_to = (
        data.draw(st.sampled_from(["query_head", "kv_group"])),
        data.draw(st.sampled_from(["both", "query", "key"])),
    )
    chosen = HeadSelection([(LAYER, head) for head in heads])
    encoding = DoPE(RoPE(8), chosen, mode, reading, LENGTH, SEED, 1.0, scope, apply_to)
    compare(encoding, groups * size, groups)


def test_a_band_at_the_very_bound_is_not_rotated_and_a_rule_does_not_move_the_bound():
    """theta_f <= 2 pi / L, theta of the model's own bands: linear interpolation changes no choice."""
    for rope in (RoPE(8), RoPE(8, rule=Linear(4.0))):
        slow = DoPE(rope, HeadSelection([(LAYER, 0)]), "parts", original_length=62).at(LAYER).module()
        # Bands 1, 0.1, 0.01, 0.001; 2 pi / 62 = 0.1013 and 2 pi / 63 = 0.0997.
        assert slow.slow_channels.tolist() == [False, True, True, True] * 2
        fast = DoPE(rope, HeadSelection([(LAYER, 0)]), "parts", original_length=63).at(LAYER).module()
        assert fast.slow_channels.tolist() == [False, False, True, True] * 2


def test_grouped_keys_cost_one_key_a_group_or_none():
    def added(heads: list[int], **options: Any) -> int:
        module = DoPE(RoPE(8), HeadSelection([(0, h) for h in heads]), **options).module()
        _, k2 = module(torch.randn(1, 8, 3, 8), torch.randn(1, 2, 3, 8), torch.arange(3))
        return k2.shape[1] - 2

    assert added([0]) == 1
    assert added([0, 1, 2]) == 1
    assert added([0, 5]) == 2
    assert added([0, 1, 2, 3]) == 0
    assert added([0, 1], mode="gaussian") == 2
    assert added([0, 1], scope="kv_group", mode="gaussian") == 0
    assert added([0], apply_to="query") == 0


def test_input_is_not_written_to_and_gradients_flow():
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    for mode, reading in ALL_READINGS:
        encoding = DoPE(RoPE(8), HeadSelection([(0, 1)]), mode, reading)
        q1, k1 = q.clone().requires_grad_(), k.clone().requires_grad_()
        q2, k2 = encoding(q1, k1, torch.arange(5))
        assert torch.equal(q1, q) and torch.equal(k1, k)
        (q2.square().sum() + k2.square().sum()).backward()
        assert q1.grad is not None and k1.grad is not None and q1.grad[:, [0, 2, 3]].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(dtype):
    q, k = torch.randn(1, 4, 5, 8).to(dtype), torch.randn(1, 2, 5, 8).to(dtype)
    for mode, reading in ALL_READINGS:
        q2, k2 = DoPE(RoPE(8), HeadSelection([(0, 1)]), mode, reading)(q, k, torch.arange(5))
        assert q2.dtype == k2.dtype == dtype


ENCODINGS = [
    RoPE(8),
    RoPE(8, base=500.0, rule=YaRN(4.0, 128), layout="interleaved", rotary_dim=4),
    NoPE(),
    DoPE(
        RoPE(8, rule=Linear(2.0)),
        HeadSelection([(0, 1), (3, 2)]),
        "gaussian",
        "multiply",
        128,
        5,
        0.5,
        "kv_group",
        "key",
    ),
    PerLayer(((0, RoPE(8)), (1, NoPE()), (2, DoPE(RoPE(8), HeadSelection([(2, 0)]))))),
    DoPE(PerLayer(((0, RoPE(8)), (1, RoPE(8, base=100.0)))), HeadSelection([(1, 0)])),
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.kind)
def test_round_trip_through_json(encoding):
    back = Encoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
    assert back == encoding
    assert hash(back) == hash(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.kind)
def test_unknown_and_missing_keys_are_refused_by_name(encoding):
    with pytest.raises(ArgumentError, match="wobble"):
        Encoding.from_dict({**encoding.to_dict(), "wobble": 1})
    with pytest.raises(ArgumentError, match=r"kind='ropy'.*rope"):
        Encoding.from_dict({**encoding.to_dict(), "kind": "ropy"})
    for name in {"rope": ["head_dim"], "dope": ["rope", "heads"], "per_layer": ["layers"]}.get(encoding.kind, []):
        short = {key: value for key, value in encoding.to_dict().items() if key != name}
        with pytest.raises(ArgumentError, match=name):
            Encoding.from_dict(short)


@pytest.mark.parametrize("data", [None, [], "rope", {"kind": ["rope"]}, {"kind": None}, {}])
def test_what_is_no_encoding_is_refused(data):
    with pytest.raises(ArgumentError):
        Encoding.from_dict(data)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"mode": "gausian"}, "mode='gausian': did you mean gaussian"),
    ({"mode": "parts", "reading": "unrotate"}, "did you mean unrotated"),
    ({"mode": "all", "reading": "drop"}, "reading='drop'"),
    ({"scope": "kvgroup"}, "did you mean kv_group"),
    ({"apply_to": "querry"}, "did you mean query"),
    ({"sigma": 0.0}, "sigma=0.0"),
    ({"sigma": float("nan")}, "sigma=nan"),
    ({"sigma": "1"}, "sigma='1'"),
    ({"sigma": True}, "sigma=True"),
    ({"seed": 1.5}, "seed=1.5"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": 2**64}, "seed="),
    ({"seed": True}, "seed=True"),
    ({"original_length": 0}, "original_length=0"),
    ({"original_length": 8192.0}, "original_length=8192.0"),
    ({"original_length": True}, "original_length=True"),
    ({"rope": NoPE()}, "rope=NoPE"),
    ({"heads": [(0, 1)]}, "HeadSelection"),
    ({"mode": ["all"]}, "mode="),
]


@pytest.mark.parametrize(("changes", "text"), BAD, ids=lambda x: str(x)[:40])
def test_bad_arguments_are_refused_in_one_line(changes, text):
    with pytest.raises(ArgumentError) as caught:
        DoPE(**{"rope": RoPE(8), "heads": HeadSelection([(0, 1)]), **changes})
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_head_that_is_not_there_and_several_layers_are_refused():
    encoding = DoPE(RoPE(8), HeadSelection([(0, 4)]))
    with pytest.raises(ArgumentError, match="query heads 0 to 3"):
        encoding(torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.arange(3))
    with pytest.raises(ArgumentError, match="more than one layer"):
        DoPE(RoPE(8), HeadSelection([(0, 1), (1, 1)])).module()
    with pytest.raises(ArgumentError, match="layer=5: no encoding"):
        PerLayer(((0, RoPE(8)),)).at(5)


def test_no_heads_is_plain_rope():
    encoding = DoPE(RoPE(8), HeadSelection())
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    seen, expected = encoding(q, k, torch.arange(3)), RoPE(8)(q, k, torch.arange(3))
    assert torch.equal(seen[0], expected[0]) and torch.equal(seen[1], expected[1])
