"""A model's own rotation: base, rule, layout, width and layers read off the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.patching import families
from transformers import LlamaConfig, LlamaForCausalLM

from ropewalk.encodings.model_rotation import model_config, rotary_layers
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import UnsupportedModelError
from ropewalk.patching import installed
from ropewalk.scaling import Given, Llama3, YaRN

BASES = {"llama": 10000.0, "seed_oss": 10000.0, "smollm3": 2e6, "cohere": 5e5, "glm": 10000.0, "mixtral": 1e6}


@pytest.mark.parametrize("name", sorted(BASES))
def test_base(name):
    rope: Any = RoPE.from_model(families.build(name))
    assert rope.base == BASES[name] and rope.head_dim == 8


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama", "half"),
        ("cohere", "interleaved"),
        ("glm", "interleaved"),
        ("ernie4_5", "interleaved"),
        ("gpt_oss", "half"),
    ],
)
def test_layout(name, layout):
    rope: Any = RoPE.from_model(families.build(name))
    assert rope.layout == layout


@pytest.mark.parametrize(("name", "width"), [("glm", 4), ("gpt_neox", 4), ("phi", 4), ("llama", 8)])
def test_width(name, width):
    rope: Any = RoPE.from_model(families.build(name))
    assert rope.width == width and rope.head_dim == 8


def test_layers_with_bases_of_their_own():
    model = families.build(
        "gemma3_text",
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    )
    rotation: Any = RoPE.from_model(model)
    assert isinstance(rotation, PerLayer)
    assert [rotation.at(i).base for i in range(3)] == [1e4, 1e6, 1e4]
    assert [rotation.at(i).rule is None for i in range(3)] == [True, False, True]
    for layer in rotary_layers(model):
        held = getattr(layer.rotary, f"{model.config.layer_types[layer.index]}_inv_freq")
        assert torch.equal(layer.rope.schedule().frequencies, held)


def test_rules():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = families.build(
        "llama", rope_parameters={**llama3, "rope_theta": 5e5, "original_max_position_embeddings": 16}
    )
    assert RoPE.from_model(model) == RoPE(8, 5e5, Llama3(8.0, 16, 1.0, 4.0), rotary_dim=8)
    rope: Any = RoPE.from_model(families.build("gpt_oss"))
    assert isinstance(rope.rule, YaRN) and rope.schedule().attention_scale != 1.0


def test_frequencies_that_no_rule_gives_are_read_as_numbers():
    model: Any = families.build("llama")
    model.model.rotary_emb.inv_freq.mul_(0.5)
    rope: Any = RoPE.from_model(model)
    assert isinstance(rope.rule, Given)
    assert torch.equal(rope.schedule().frequencies, model.model.rotary_emb.inv_freq)
    model.model.rotary_emb.attention_scaling = 1.5
    rope = RoPE.from_model(model)
    assert rope.schedule().attention_scale == 1.5


def test_a_text_model_inside_another_has_its_own_config():
    model: Any = families.build("llama")
    assert model_config(model) is model.config
    with pytest.raises(UnsupportedModelError, match="Linear has no config"):
        model_config(torch.nn.Linear(2, 2))


def test_a_second_rotary_module_is_refused_by_name():
    model: Any = families.build("llama")
    model.model.extra = type(model.model.rotary_emb)(model.config)
    with pytest.raises(UnsupportedModelError, match=r"LlamaAttention .*LlamaRotaryEmbedding, LlamaRotaryEmbedding"):
        RoPE.from_model(model)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_what_a_model_read_last_doesnt_change_what_is_read_off_it(kind: str) -> None:
    """These kinds move their frequencies with the length of what they read."""
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4}
    if kind == "longrope":
        parameters |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    else:
        parameters |= {"factor": 2.0}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "vocab_size": 64}
    config: Any = LlamaConfig(num_hidden_layers=2, max_position_embeddings=32, rope_parameters=parameters, **sizes)
    model = LlamaForCausalLM(config).eval()
    before = RoPE.from_model(model)
    with torch.no_grad():
        model(torch.arange(50)[None])
    assert RoPE.from_model(model) == before
    with installed(model, before):
        pass
