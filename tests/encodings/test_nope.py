"""NoPE: the very tensors given come back."""

from __future__ import annotations

import json

import pytest
import torch

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.nope import NoPE
from ropewalk.errors import ArgumentError


def test_queries_and_keys_pass_untouched() -> None:
    q, k = torch.randn(2, 4, 5, 7), torch.randn(2, 2, 5, 7)
    q2, k2 = NoPE()(q, k, torch.arange(5))
    assert q2 is q and k2 is k


def test_round_trip() -> None:
    assert Encoding.from_dict(json.loads(json.dumps(NoPE().to_dict()))) == NoPE()


def test_positions_are_checked_all_the_same() -> None:
    with pytest.raises(ArgumentError, match=r"positions\.shape"):
        NoPE()(torch.randn(2, 4, 5, 7), torch.randn(2, 2, 5, 7), torch.arange(4))
