"""Rotations whose frequencies depend on the length: a text read in chunks is that read in one pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation import likelihood
from ropewalk.evaluation.likelihood import token_nll
from ropewalk.patching import installed
from ropewalk.patching.fixed_schedule import one_schedule

TRAINED = 48
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": None,
}


def dynamic() -> Any:
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=TRAINED, rope_parameters=rope)).eval()


def longrope() -> Any:
    torch.manual_seed(0)
    lists = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **lists}
    lengths = {"max_position_embeddings": 4 * TRAINED, "original_max_position_embeddings": TRAINED}
    return Phi3ForCausalLM(Phi3Config(**SIZES, **lengths, rope_parameters=rope)).eval()


def tokens(count: int) -> list[int]:
    drawn: list[int] = torch.randint(1, 60, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    return drawn


@torch.no_grad()
def in_one_pass(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("build", [dynamic, longrope])
@pytest.mark.parametrize("length", [TRAINED - 8, TRAINED, TRAINED + 1, 3 * TRAINED])
def test_chunks_give_the_likelihoods_of_one_pass(build: Any, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CHUNK_TOKENS", 17)
    wanted = in_one_pass(build(), tokens(length))
    assert torch.allclose(token_nll(build(), tokens(length)), wanted, atol=1e-5)


@pytest.mark.parametrize("build", [dynamic, longrope])
def test_without_it_chunks_would_differ(build: Any) -> None:
    ids, model = tokens(3 * TRAINED), build()
    wanted = in_one_pass(build(), ids)
    with torch.no_grad():
        first = model(torch.tensor([ids[:TRAINED]]), use_cache=True)
        rest = model(torch.tensor([ids[TRAINED:-1]]), past_key_values=first.past_key_values).logits[0].float()
    losses = nn.functional.cross_entropy(rest, torch.tensor(ids[TRAINED + 1 :]), reduction="none")
    assert (losses - wanted[TRAINED:]).abs().max() > 0.1


@pytest.mark.parametrize("build", [dynamic, longrope])
def test_what_was_read_before_makes_no_difference_and_the_model_is_as_it_was(build: Any) -> None:
    model, ids = build(), tokens(2 * TRAINED)
    wanted = token_nll(build(), ids)
    in_one_pass(model, tokens(4 * TRAINED))  # a dynamic rotation keeps the frequencies of the longest pass
    assert torch.equal(token_nll(model, ids), wanted)
    assert torch.equal(in_one_pass(model, ids[:TRAINED]), in_one_pass(build(), ids[:TRAINED]))
    assert "forward" not in model.model.rotary_emb.__dict__


def test_the_forward_comes_back_after_an_error() -> None:
    model = dynamic()
    with pytest.raises(RuntimeError, match="inside"), one_schedule(model, 100):
        raise RuntimeError("inside")
    assert "forward" not in model.model.rotary_emb.__dict__


def test_an_installed_encoding_and_fixed_rotations_are_left_alone() -> None:
    model = dynamic()
    with installed(model, RoPE(8)):
        held = model.model.rotary_emb.__dict__["forward"]
        with one_schedule(model, 100):
            assert model.model.rotary_emb.__dict__["forward"] is held
    torch.manual_seed(0)
    fixed: Any = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=TRAINED)).eval()
    with one_schedule(fixed, 100):
        assert "forward" not in fixed.model.rotary_emb.__dict__
