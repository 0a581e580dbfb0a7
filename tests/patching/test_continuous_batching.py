"""Continuous batching with an encoding installed: the tokens of `generate`, or a refusal before the first token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.patching.test_activation import LIMIT, llama
from transformers import GenerationConfig

from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import UnsupportedModelError
from ropewalk.heads import HeadSelection
from ropewalk.patching import install, installed
from ropewalk.scaling import YaRN

PROMPT = torch.randint(1, 60, (30,), generator=torch.Generator().manual_seed(1)).tolist()


def batched(model: Any, prompt: list[int]) -> list[int]:
    config = GenerationConfig(
        max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0, num_blocks=64, max_batch_tokens=256
    )
    result = next(iter(model.generate_batch(inputs=[prompt], generation_config=config, progress_bar=False).values()))
    assert result.error is None
    tokens: list[int] = result.generated_tokens
    return tokens


def test_a_rule_for_every_pass_gives_the_tokens_of_generate() -> None:
    model = llama()
    install(model, RoPE(8, rule=YaRN(2.0, LIMIT)))
    wanted = model.generate(torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False)[0, len(PROMPT) :].tolist()
    assert batched(model, PROMPT) == wanted


@pytest.mark.parametrize(
    ("encoding", "when", "reason"),
    [
        (RoPE(8, rule=YaRN(2.0, LIMIT)), "long", "when='always'"),
        (PoPE(8, num_kv_heads=2), "always", "pope needs its keys with their positions"),
        (ALiBi(4), "always", "alibi needs its keys"),
        (SelfExtend(RoPE(8), window=8, group=2), "always", "self_extend needs its keys"),
        (DoPE(RoPE(8), HeadSelection([(0, 1)])), "always", "keys of their own"),
    ],
)
def test_what_can_not_be_served_is_refused_before_the_first_token(encoding: Encoding, when: str, reason: str) -> None:
    model = llama()
    handle = install(model, encoding, when=when)
    with pytest.raises(UnsupportedModelError, match=reason):
        batched(model, PROMPT)
    with pytest.raises(UnsupportedModelError, match=reason):
        model.generate(torch.tensor([PROMPT]), max_new_tokens=6, cache_implementation="paged")
    handle.remove()
    assert "init_continuous_batching" not in model.__dict__


def test_whole_key_groups_are_served() -> None:
    model = llama()
    with installed(model, DoPE(RoPE(8), HeadSelection([(0, 1)]), scope="kv_group")):
        wanted = model.generate(torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False)[0, len(PROMPT) :].tolist()
        assert batched(model, PROMPT) == wanted
