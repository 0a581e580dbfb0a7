"""Tiny random models of many architecture families, built from configs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 64
ORIGINAL_LENGTH = 64
WINDOW = 8

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": ORIGINAL_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
}
_MIXED_LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_WINDOW = {"sliding_window": WINDOW}
_NO_SIZES = {"head_dim": None, "num_key_value_heads": None}  # None: this config has no such field
_SINGLE_KEYS = {"num_key_value_heads": 4}
_HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}

# Model type -> what its config needs beside the sizes. What is special about a family stands behind it.
SERVED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},  # q/k norm before the rotation
    "qwen3_moe": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "mistral": _WINDOW,  # a window in every layer
    "ministral": _WINDOW,
    "mixtral": _EXPERTS,
    "gemma": {},
    "gemma2": _WINDOW,  # capped scores
    "gemma3_text": {**_WINDOW, **_MIXED_LAYERS},  # a base for each layer type, frequencies held by type
    "phi": _SINGLE_KEYS,  # hands over only the channels that rotate
    "phi3": {},  # one projection for q, k and v
    "phimoe": _EXPERTS,
    "olmo": {},
    "olmo2": {},  # q/k norm over all heads together
    "olmo3": {**_WINDOW, **_MIXED_LAYERS},
    "olmoe": _EXPERTS,
    "flex_olmo": _EXPERTS,
    "gpt_neox": {**_SINGLE_KEYS, **_HALF},
    "stablelm": {**_SINGLE_KEYS, **_HALF},
    "persimmon": _SINGLE_KEYS,
    "starcoder2": {},
    "cohere": {},  # interleaved layout
    "cohere2": {**_WINDOW, **_MIXED_LAYERS},  # full layers have no rotation
    "glm": {},  # interleaved layout, half of the channels
    "glm4": {},
    "glm4_moe": _EXPERTS,
    "granite": {},  # its own softmax scale
    "granitemoe": _EXPERTS,
    "helium": {},
    "ernie4_5": {},
    "smollm3": {"no_rope_layers": [1, 0, 1]},  # a layer without rotation
    "exaone4": {**_WINDOW, **_MIXED_LAYERS},
    "seed_oss": {},
    "arcee": {},
    "apertus": {},
    "hunyuan_v1_dense": {},  # q/k norm after the rotation
    "nemotron": {},
    "gpt_oss": {**_EXPERTS, **_WINDOW, **_MIXED_LAYERS},  # attention sinks, YaRN
    "bitnet": {},
    "diffllama": {},  # two attention maps subtracted
    "doge": {},  # a mask for each head, arguments by name
    "afmoe": {**_EXPERTS, **_WINDOW},
    "minimax_m2": _EXPERTS,
    "mimo_v2_flash": {  # a base for each kind of layer, values of another size, sinks
        **_EXPERTS,
        **_WINDOW,
        "v_head_dim": 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    },
    "lfm2": {},  # convolutions between
    "falcon": {**_NO_SIZES, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
}
# Layers that rotate, where not all three do.
ROTATING_LAYERS: dict[str, tuple[int, ...]] = {
    "cohere2": (0, 2),
    "exaone4": (0, 2),
    "smollm3": (0, 2),
}
# Families that hand over only their rotating channels.
PARTIAL = ("phi", "stablelm", "persimmon")


def build(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model in float32, in eval mode, whose attention is far from even, so that what rotates shows."""
    settings = {**_SIZES, **SERVED.get(name, {}), **changes}
    config = AutoConfig.for_model(name, **{key: value for key, value in settings.items() if value is not None})
    config.dtype = torch.float32
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


def tokens(rows: int, count: int, seed: int = 1) -> torch.Tensor:
    """Random tokens (rows, count) that are none of the special ones."""
    return torch.randint(3, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(seed))
