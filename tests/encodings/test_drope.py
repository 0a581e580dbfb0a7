"""DroPE at inference: NoPE, and scores times 1 + c ln(L' / L)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.patching import families

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.drope import DroPE
from ropewalk.encodings.nope import NoPE
from ropewalk.errors import ArgumentError
from ropewalk.patching import installed


@given(target=st.integers(1, 4096), slope=st.sampled_from([0.0, 0.103, 0.412]))
def test_scores_are_nopes_times_the_papers_factor(target: int, slope: float) -> None:
    q, k, positions = torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7), torch.arange(5) * 9
    q2, k2 = DroPE(256, target, slope)(q, k, positions)
    ratio = max(target / 256, 1.0)
    torch.testing.assert_close(q2 @ k2.mT, (q @ k.mT) * (1 + slope * math.log(ratio)))


def test_within_the_original_length_it_is_nope() -> None:
    q, k = torch.randn(2, 4, 5, 7).bfloat16(), torch.randn(2, 2, 5, 7).bfloat16()
    for encoding in (DroPE(256, 256, 0.412), DroPE(256, 8, 0.412), DroPE(256, 1024, 0.0)):
        q2, k2 = encoding(q, k, torch.arange(5))
        assert q2 is q and k2 is k
    encoding, positions = DroPE(256, 1024, 0.412), torch.arange(5)
    module, none = encoding.module(), (q, q)
    for q2, k2 in (encoding(q, k, positions), module.encode(q, k, (positions, positions), (none, none))):
        assert q2.dtype == torch.bfloat16 and k2 is k
        torch.testing.assert_close(q2, q * encoding.sharpening)


def test_the_papers_numbers() -> None:
    assert DroPE(1024, 2048, 0.412).sharpening == pytest.approx(1.2856, abs=1e-4)
    assert DroPE(2048, 16384, 0.103).sharpening == pytest.approx(1.2142, abs=1e-4)


def test_round_trip() -> None:
    encoding = DroPE(256, 1024, 0.412)
    assert Encoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding


@torch.no_grad()
def test_in_a_model_decoding_equals_one_full_pass() -> None:
    model, x = families.build("llama"), families.tokens(2, 20)
    with installed(model, NoPE()):
        plain = model(x).logits
    with installed(model, DroPE(64, 64, 0.412)):
        assert torch.equal(model(x).logits, plain)
    with installed(model, DroPE(64, 256, 0.412)):
        whole = model(x).logits
        assert (whole - plain).abs().max() > 1e-3
        past = model(x[:, :12], use_cache=True).past_key_values
        for n in range(12, 20):
            step = model(x[:, n : n + 1], past_key_values=past, use_cache=True)
            torch.testing.assert_close(step.logits[:, 0], whole[:, n], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((0, 8, 0.1), "original_length"),
        ((8, 8.0, 0.1), "target_length"),
        ((8, 8, -0.1), "slope"),
        ((8, 8, float("nan")), "slope"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}=") as caught:
        DroPE(*arguments)
    assert "\n" not in str(caught.value)


def test_positions_are_checked_all_the_same() -> None:
    with pytest.raises(ArgumentError, match=r"positions\.shape"):
        DroPE(8, 16, 0.1)(torch.randn(2, 4, 5, 7), torch.randn(2, 2, 5, 7), torch.arange(4))
