"""T5's bias: transformers' buckets and biases bit for bit, the paper's edges, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.reference import t5 as reference
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from ropewalk.encodings.t5 import T5Bias
from ropewalk.errors import ArgumentError

SIZES = [(32, 128, False), (32, 128, True), (2, 2, False), (4, 2, True), (7, 50, False), (64, 1000, True)]
DISTANCES = torch.cat([torch.arange(-1100, 1101), torch.tensor([-(10**6), 2**24 + 1, 10**9])])


@pytest.mark.parametrize(("num_buckets", "max_distance", "bidirectional"), SIZES)
class TestBuckets:
    def test_transformers_bit_for_bit(self, num_buckets: int, max_distance: int, bidirectional: bool) -> None:
        # theirs takes the key's position minus the query's
        theirs = T5Attention._relative_position_bucket(-DISTANCES, bidirectional, num_buckets, max_distance)
        ours = T5Bias(1, num_buckets, max_distance, bidirectional).buckets(DISTANCES)
        assert ours.dtype == torch.int64 and torch.equal(ours, theirs)

    def test_whole_number_edges(self, num_buckets: int, max_distance: int, bidirectional: bool) -> None:
        ours = T5Bias(1, num_buckets, max_distance, bidirectional).buckets(DISTANCES).tolist()
        for distance, bucket in zip(DISTANCES.tolist(), ours, strict=True):
            expected = reference.bucket(distance, 0, num_buckets, max_distance, bidirectional)
            assert bucket == expected, distance

    def test_the_peer_agrees(self, num_buckets: int, max_distance: int, bidirectional: bool) -> None:
        peer = pytest.importorskip("x_transformers.x_transformers").RelativePositionBias
        theirs = peer._relative_position_bucket(-DISTANCES, not bidirectional, num_buckets, max_distance)
        assert torch.equal(T5Bias(1, num_buckets, max_distance, bidirectional).buckets(DISTANCES), theirs)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5s_own_weights_give_t5s_own_bias(bidirectional: bool) -> None:
    config = T5Config(num_heads=4, d_model=8, d_kv=2, is_decoder=not bidirectional)
    theirs = T5Attention(config, has_relative_attention_bias=True)
    module = T5Bias(4, bidirectional=bidirectional).module()
    with torch.no_grad():
        module.table.copy_(theirs.relative_attention_bias.weight)
    expected = theirs.compute_bias(3, 200, past_seen_tokens=197)[0]
    assert torch.equal(module.bias(torch.arange(197, 200), torch.arange(200)), expected)


def test_it_starts_as_no_encoding_and_learns_each_entry() -> None:
    module, positions = T5Bias(2, 8, 20).module(), torch.arange(30)
    bias = module.bias(positions, positions)
    assert not bias.any()
    (bias * torch.rand(30, 30)).sum().backward()
    assert module.table.grad is not None and (module.table.grad > 0).all()


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"num_buckets": 1}, "num_buckets"),
        ({"num_buckets": 32.0}, "num_buckets"),
        ({"num_buckets": 2, "bidirectional": True}, "num_buckets"),
        ({"num_buckets": 33, "bidirectional": True}, "num_buckets"),
        ({"max_distance": 16}, "max_distance"),
        ({"max_distance": 8, "bidirectional": True}, "max_distance"),
        ({"max_distance": True}, "max_distance"),
        ({"max_distance": 128.0}, "max_distance"),
        ({"bidirectional": 1}, "bidirectional"),
    ],
)
def test_wrong_configs_are_refused(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        T5Bias(8, **arguments)
    assert "\n" not in str(caught.value)
