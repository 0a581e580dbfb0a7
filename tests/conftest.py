"""What all tests share: no network, fixed seeds and threads, hypothesis profiles, a tiny Llama."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it then

import pytest
import torch
from hypothesis import settings
from transformers import LlamaConfig, LlamaForCausalLM

settings.register_profile("local", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _same_start_for_every_test(request: pytest.FixtureRequest) -> None:
    """Seed torch; one thread for small tensors, where more only wait, all cores for slow tests."""
    torch.manual_seed(0)
    slow = request.node.get_closest_marker("slow") is not None
    torch.set_num_threads((os.cpu_count() or 1) if slow else 1)


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A random Llama of 4 layers, 6 query and 2 key/value heads of 16 channels, 128 positions, float32."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(torch.float32).eval()
