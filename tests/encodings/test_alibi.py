"""ALiBi: the paper's slopes, transformers' and the peer's biases."""

from __future__ import annotations

import pytest
import torch
from tests.reference import alibi as reference
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from ropewalk.encodings.alibi import ALiBi

HEAD_COUNTS = [1, 2, 3, 6, 7, 8, 12, 16, 20, 33, 71]


@pytest.mark.parametrize("num_heads", HEAD_COUNTS)
def test_the_papers_equation(num_heads: int) -> None:
    of_queries, of_keys = torch.tensor([0, 5, 4000]), torch.tensor([0, 1, 5, 3999, 9000])
    ours = ALiBi(num_heads).bias(of_queries, of_keys)
    for n, query in enumerate(of_queries.tolist()):
        for m, key in enumerate(of_keys.tolist()):
            expected = torch.tensor(reference.bias(num_heads, query, key))
            torch.testing.assert_close(ours[:, n, m], expected, rtol=1e-6, atol=0)


def test_the_papers_own_numbers() -> None:
    assert ALiBi(8).slopes().tolist() == [2.0**-h for h in range(1, 9)]
    assert ALiBi(4).slopes().tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    assert ALiBi(6).slopes().tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]


@pytest.mark.parametrize("num_heads", HEAD_COUNTS)
def test_blooms_weights_are_equal(num_heads: int) -> None:
    # Bloom's differ by a number per query, slope * position, which the softmax takes away
    tokens = 24
    theirs = build_alibi_tensor(torch.ones(1, tokens, dtype=torch.int64), num_heads, torch.float32)
    ours = ALiBi(num_heads).bias(torch.arange(tokens), torch.arange(tokens))
    assert not torch.allclose(theirs.expand_as(ours), ours)
    scores = torch.randn(num_heads, tokens, tokens).masked_fill(torch.ones(tokens, tokens).triu(1) == 1, -torch.inf)
    torch.testing.assert_close((scores + ours).softmax(-1), (scores + theirs).softmax(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_heads", HEAD_COUNTS)
def test_the_peer_agrees(num_heads: int) -> None:
    peer = pytest.importorskip("x_transformers.x_transformers").AlibiPositionalBias(num_heads)
    ours = ALiBi(num_heads).bias(torch.arange(4, 9), torch.arange(9))
    torch.testing.assert_close(ours, peer(5, 9), rtol=1e-6, atol=0)


def test_casting_and_emptying_keep_the_slopes() -> None:
    encoding = ALiBi(12)
    with torch.device("meta"):
        made_empty = encoding.module()
    for module in (
        made_empty,
        encoding.module().to(torch.bfloat16),
        encoding.module().to("meta").to_empty(device="cpu"),
    ):
        assert torch.equal(module.slopes, encoding.slopes()) and not module.state_dict()
