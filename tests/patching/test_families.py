"""The seam on many architecture families: what must hold in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.patching import families
from torch import nn

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.model_rotation import rotary_layers
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.heads import HeadSelection
from ropewalk.patching import install, installed

TOKENS = 20  # beyond the sliding windows of 8
MODES = ("all", "parts", "gaussian")


@pytest.fixture(scope="module", params=sorted(families.SERVED))
def family(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    with torch.no_grad():
        yield request.param, families.build(request.param)


def rotating(name: str) -> tuple[int, ...]:
    return families.ROTATING_LAYERS.get(name, (0, 1, 2))


def dope(name: str, model: nn.Module, mode: str = "all", **options: Any) -> DoPE:
    """DoPE on one head of the first rotating layer and two of the last; by-parts for L = 16."""
    layers = rotating(name)
    chosen = HeadSelection([(layers[0], 0), (layers[-1], 3), (layers[-1], 2)])
    return DoPE(RoPE.from_model(model), chosen, mode=mode, original_length=16, **options)


def state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All attributes of all modules, by identity."""
    return {path: {name: id(value) for name, value in vars(m).items()} for path, m in model.named_modules()}


def test_there_are_at_least_thirty_families():
    assert len(families.SERVED) >= 30


@torch.no_grad()
def test_plain_rope_changes_no_bit_and_leaves_no_trace(family):
    _, model = family
    x = families.tokens(2, TOKENS)
    before, attributes = model(x).logits, state(model)
    with installed(model, RoPE.from_model(model)):
        assert state(model) != attributes
        inside = model(x).logits
    assert torch.equal(before, inside)
    assert state(model) == attributes
    with pytest.raises(KeyError), installed(model, dope(*family)):
        model(x)
        raise KeyError("anything")
    assert state(model) == attributes
    assert torch.equal(before, model(x).logits)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_dope_gives_the_same_however_the_text_is_fed(family, mode):
    name, model = family
    x = families.tokens(2, TOKENS)
    plain = model(x).logits
    with installed(model, dope(name, model, mode)):
        full = model(x).logits
        out = model(x[:, :15], use_cache=True)
        parts = [out.logits]
        for at in range(15, TOKENS):
            out = model(x[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, 1), full, atol=2e-5, rtol=0)
        out = model(x[:, :7], use_cache=True)
        chunks = [out.logits]
        for start, end in ((7, 11), (11, TOKENS)):
            out = model(x[:, start:end], past_key_values=out.past_key_values, use_cache=True)
            chunks.append(out.logits)
        if name != "lfm2":  # its convolution keeps no state between chunks of several tokens
            torch.testing.assert_close(torch.cat(chunks, 1), full, atol=2e-5, rtol=0)
    assert (full - plain).abs().max() > 1e-4 * plain.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_dope_on_a_left_padded_batch_gives_what_each_row_gives_alone(family, mode):
    name, model = family
    short, long = families.tokens(1, 13), families.tokens(1, TOKENS, seed=2)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, : TOKENS - 13] = 0
    rows = torch.cat([torch.cat([torch.zeros(1, TOKENS - 13, dtype=torch.long), short], 1), long])
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    with installed(model, dope(name, model, mode)):
        both = model(rows, attention_mask=mask, position_ids=positions).logits
        alone = model(short).logits, model(long).logits
    torch.testing.assert_close(both[:1, TOKENS - 13 :], alone[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(both[1:], alone[1], atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_head_with_a_key_of_its_own_attends_as_if_its_layer_had_no_rotation(family):
    """Attention weights of the first rotating layer: NoPE's for the one head, untouched for others."""
    name, model = family
    layer = rotating(name)[0]
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    x = families.tokens(2, TOKENS)
    one = DoPE(RoPE.from_model(model), HeadSelection([(layer, 1)]))

    def weights() -> torch.Tensor | None:
        kept = []
        attention = next(item.module for item in rotary_layers(model) if item.index == layer)
        hook = attention.register_forward_hook(lambda *call: kept.append(call[-1][1]))
        try:
            model(x)
        finally:
            hook.remove()
        return kept[0]

    try:
        plain = weights()
        if plain is None:
            pytest.skip("this attention gives no weights")
        with installed(model, one):
            changed = weights()
        with installed(model, NoPE()):
            unrotated = weights()
    finally:
        model.set_attn_implementation(implementation)
    others = [head for head in range(plain.shape[1]) if head != 1]
    torch.testing.assert_close(changed[:, others], plain[:, others], atol=1e-6, rtol=0)
    if getattr(model.config, "rope_scaling", None) is None and name != "gpt_oss":  # YaRN's temperature stays
        torch.testing.assert_close(changed[:, 1], unrotated[:, 1], atol=1e-6, rtol=0)
    assert (changed[:, 1] - plain[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_whole_groups_selected_change_the_shared_key_and_add_none(family):
    name, model = family
    x = families.tokens(1, TOKENS)
    layer = rotating(name)[0]
    rope = RoPE.from_model(model)
    with installed(model, DoPE(rope, HeadSelection([(layer, 0)]), scope="kv_group")):
        grouped = model(x).logits
    size = 1 if name == "falcon" else 4 // families.SERVED[name].get("num_key_value_heads", 2)  # falcon repeats first
    with installed(model, DoPE(rope, HeadSelection([(layer, head) for head in range(size)]))):
        torch.testing.assert_close(grouped, model(x).logits, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["phi", "stablelm"])
def test_channels_cut_before_the_rotation(name):
    model = families.build(name)
    chosen = HeadSelection([(0, 0)])
    attributes = state(model)
    for mode, reading in (("all", "zero"), ("gaussian", "replace"), ("gaussian", "multiply")):
        encoding = DoPE(RoPE.from_model(model), chosen, mode=mode, reading=reading)
        with pytest.raises(ArgumentError, match="reading='" + reading):
            install(model, encoding)
    assert state(model) == attributes
    grouped = families.build(name, num_key_value_heads=2)
    with pytest.raises(UnsupportedModelError, match="scope='kv_group'"):
        install(grouped, DoPE(RoPE.from_model(grouped), chosen))
    with installed(grouped, DoPE(RoPE.from_model(grouped), chosen, scope="kv_group")):
        grouped(families.tokens(1, 5))


@pytest.mark.parametrize("name", sorted(families.ROTATING_LAYERS))
def test_a_head_in_a_layer_without_rotation_is_refused(name):
    model = families.build(name)
    with pytest.raises(ArgumentError, match="layer 1 has no rotation"):
        install(model, DoPE(RoPE.from_model(model), HeadSelection([(1, 0)])))


def test_key_heads_dealt_out_in_another_order_are_refused():
    model = families.build("jetmoe", num_local_experts=4, num_experts_per_tok=2, kv_channels=8)
    with installed(model, RoPE.from_model(model)):
        pass
    for scope in ("query_head", "kv_group"):
        with pytest.raises(UnsupportedModelError, match="JetMoeAttention deals its key heads out"):
            install(model, DoPE(RoPE.from_model(model), HeadSelection([(0, 0)]), scope=scope))


_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
REFUSED = {
    "gpt2": ({}, "GPT2LMHeadModel"),
    "opt": ({"word_embed_proj_dim": 32}, "OPTForCausalLM"),
    "bloom": ({}, "BloomForCausalLM"),
    "deepseek_v2": (_MLA, "DeepseekV2Attention"),
    "deepseek_v3": (_MLA, "DeepseekV3Attention"),
    "gptj": ({"rotary_dim": 4, "n_positions": 64}, "GPTJAttention"),
    "codegen": ({"rotary_dim": 4, "n_positions": 64}, "CodeGenAttention"),
    "nanochat": ({}, "NanoChatAttention"),
    "gemma3n_text": ({"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64}, "Gemma3nTextAttention"),
    "llama4_text": ({"intermediate_size_mlp": 48}, "Llama4TextAttention"),
    "roformer": ({"is_decoder": True}, "RoFormer"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_by_name_before_anything_is_touched(name):
    changes, culprit = REFUSED[name]
    model = families.build(name, **changes)
    attributes = state(model)
    with pytest.raises(UnsupportedModelError, match=culprit) as caught:
        install(model, RoPE(8))
    assert "\n" not in str(caught.value)
    assert state(model) == attributes
    with pytest.raises(UnsupportedModelError, match=culprit):
        RoPE.from_model(model)


def test_an_encoder_decoder_is_refused_by_name():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2))
    with pytest.raises(UnsupportedModelError, match="T5ForConditionalGeneration"):
        install(model, RoPE(8))
