"""Fingerprints tell weights apart and nothing else; descriptions bear with configs that say little."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaForCausalLM, PretrainedConfig

from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.hub.fingerprint import FIELDS, describe, fingerprint


def test_same_weights_have_the_same_fingerprint_in_either_dtype(tiny_llama: LlamaForCausalLM) -> None:
    made = fingerprint(tiny_llama)
    assert len(made) == 64 and int(made, 16) >= 0
    assert fingerprint(copy.deepcopy(tiny_llama)) == made
    assert fingerprint(copy.deepcopy(tiny_llama).to(torch.bfloat16)) == made


@pytest.mark.parametrize("index", [0, -1])
def test_a_changed_weight_changes_the_fingerprint(tiny_llama: LlamaForCausalLM, index: int) -> None:
    made = fingerprint(tiny_llama)
    with torch.no_grad():
        tiny_llama.model.layers[2].mlp.up_proj.weight.view(-1)[index] += 1.0
    assert fingerprint(tiny_llama) != made


def test_names_and_shapes_count() -> None:
    def holding(name: str, *shape: int) -> nn.Module:
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        return module

    made = [fingerprint(holding(*given)) for given in [("a", 4, 6), ("b", 4, 6), ("a", 6, 4), ("a", 24)]]
    assert len(set(made)) == 4


def test_layout_in_memory_and_odd_sizes_make_no_difference() -> None:
    module = nn.Module()
    weight = torch.randn(40, 30)
    module.odd = nn.ParameterList([torch.tensor(2.0), torch.zeros(0, 3), torch.randn(3)])
    module.weight = nn.Parameter(weight)
    made = fingerprint(module)
    module.weight = nn.Parameter(weight.T.contiguous().T)
    assert not module.weight.is_contiguous()
    assert fingerprint(module) == made


def test_modules_of_ours_are_left_out(tiny_llama: LlamaForCausalLM) -> None:
    made = fingerprint(tiny_llama)
    ours = RoPE(16).module()
    ours.delta = nn.Parameter(torch.zeros(8))
    tiny_llama.model.layers[0].self_attn.add_module("encoding", ours)
    assert fingerprint(tiny_llama) == made
    tiny_llama.model.layers[0].self_attn.add_module("another", nn.Linear(2, 2))
    assert fingerprint(tiny_llama) != made


def test_weights_that_are_not_there(tiny_llama: LlamaForCausalLM) -> None:
    with torch.device("meta"):
        empty = LlamaForCausalLM(tiny_llama.config)
    with pytest.raises(ArgumentError, match="meta"):
        fingerprint(empty)
    assert describe(empty) == describe(tiny_llama) | {"fingerprint": None}


def test_description_of_a_llama(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.config._name_or_path = "someone/tiny"
    tiny_llama.config._commit_hash = "0123abc"
    assert describe(tiny_llama) == {
        "name": "someone/tiny",
        "revision": "0123abc",
        "model_type": "llama",
        "num_layers": 4,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 16,
        "base": 10000.0,
        "original_length": 128,
        "fingerprint": fingerprint(tiny_llama),
    }


def test_description_of_a_config_that_leaves_things_out() -> None:
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 16}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(num_hidden_layers=2, num_attention_heads=4, **small))
    described = describe(model)
    assert (described["num_kv_heads"], described["head_dim"], described["name"]) == (4, 8, None)
    bare = nn.Linear(2, 2)
    bare.config = PretrainedConfig(num_attention_heads=[2, 4])
    described = describe(bare)
    assert described.keys() == FIELDS.keys()
    assert {name for name, value in described.items() if value} == {"fingerprint"}


@pytest.mark.parametrize(
    ("parameters", "base"),
    [
        ({"rope_theta": 5000, "rope_type": "default"}, 5000.0),
        ({"full": {"rope_theta": 1e6}, "sliding": {"rope_theta": 1e6}}, 1e6),
        ({"full": {"rope_theta": 1e6}, "sliding": {"rope_theta": 1e4}}, None),
        (None, None),
    ],
)
def test_base_where_layers_differ(parameters: Any, base: float | None) -> None:
    bare = nn.Linear(2, 2)
    bare.config = PretrainedConfig()
    bare.config.rope_parameters = parameters
    assert describe(bare)["base"] == base


def test_description_is_plain_json(tiny_llama: LlamaForCausalLM) -> None:
    described = describe(tiny_llama)
    assert json.loads(json.dumps(described)) == described
    assert all(value is None or type(value) is FIELDS[name] for name, value in described.items())


def test_not_a_hugging_face_model() -> None:
    with pytest.raises(UnsupportedModelError, match="no config"):
        describe(nn.Linear(2, 2))
