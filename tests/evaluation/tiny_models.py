"""Tiny random models of several architecture families, for prompts longer than their windows."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = 32
# Sliding and full layers by turns.
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 16},
    "Gemma3": {"sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 16},
    "GPTNeoX": {},
    "StableLm": {},
    "SmolLM3": {"no_rope_layers": [1, 0, 1, 1], "use_sliding_window": False},
}


def tiny(family: str, **changed: Any) -> PreTrainedModel:
    """A float32 model in eval mode with large enough weights that its answers depend on positions."""
    sizes = SIZES | FAMILIES[family] | changed
    if family == "GPTNeoX":
        sizes.pop("num_key_value_heads")
        sizes.pop("head_dim")
    name = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.float32).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith(("q_proj.weight", "k_proj.weight", "query_key_value.weight")):
                parameter.mul_(10.0)
    return model  # type: ignore[no-any-return]
