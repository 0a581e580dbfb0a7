"""Generation with encodings that act at attention: whatever is done to the cache, positions stay with their keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.patching import contents, families
from tests.patching.contents import CLOSE
from transformers import AttentionInterface, DynamicCache, StaticCache
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.heads import HeadSelection
from ropewalk.patching import installed
from ropewalk.scaling import NTK, Linear, YaRN

# q/k norm, partial rotation, windows of 8 in every layer and in some.
MODELS = ("llama", "qwen3", "gpt_neox", "mistral", "gemma3_text")
CASES = [(name, "pope") for name in MODELS] + [("mistral", kind) for kind in contents.KINDS if kind != "pope"]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A model with an encoding that has learned something."""
    name, kind = request.param
    made = contents.ready(name)
    with installed(made, contents.encoding(made, kind), cache="content"):
        contents.learn(made)
        yield made


def generate(model: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(x, **{"max_new_tokens": 8, "do_sample": False, **options})


def test_a_cache_of_any_kind_changes_no_token(model):
    x = families.tokens(2, 11)
    bare = generate(model, x, use_cache=False)
    assert torch.equal(generate(model, x), bare)
    assert torch.equal(generate(model, x, cache_implementation="static", disable_compile=True), bare)
    assert bare.shape == (2, 19)


def test_a_prompt_in_chunks_into_a_static_cache_changes_no_token(model):
    x = families.tokens(2, 11)
    chunked = {"cache_implementation": "static", "prefill_chunk_size": 4, "disable_compile": True}
    assert torch.equal(generate(model, x, **chunked), generate(model, x, use_cache=False))


def test_beam_search_equals_beam_search_without_a_cache(model):
    """Beams reorder rows of the cache, padded ones among them."""
    x, mask = families.tokens(2, 11), torch.ones(2, 11, dtype=torch.long)
    mask[0, :4], x[0, :4] = 0, 0
    options: dict[str, Any] = {"num_beams": 3, "attention_mask": mask, "max_new_tokens": 6}
    assert torch.equal(*(generate(model, x, use_cache=use, **options) for use in (True, False)))


def test_left_padded_prompts_go_on_as_each_does_alone(model):
    x = families.tokens(1, 11)
    rows = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), x[:, :6]], 1), x])
    mask = (torch.arange(11) >= torch.tensor([[5], [0]])).long()
    for options in ({}, {"cache_implementation": "static", "disable_compile": True}):
        both = generate(model, rows, attention_mask=mask, **options)
        assert torch.equal(both[0, 11:], generate(model, x[:, :6])[0, 6:])
        assert torch.equal(both[1:], generate(model, x))


def test_candidates_that_are_cropped_again_change_no_token(model):
    x = families.tokens(1, 4).repeat(1, 3)  # repetition gives prompt lookup something to propose
    plain = generate(model, x)
    assert torch.equal(generate(model, x, prompt_lookup_num_tokens=3), plain)
    assert torch.equal(generate(model, x, assistant_model=contents.ready("llama", seed=3)), plain)


@torch.no_grad()
def test_a_static_cache_gives_the_logits_of_a_full_pass(model):
    x = families.tokens(2, 16)
    full, cache = model(x).logits, StaticCache(config=model.config, max_cache_len=20)
    parts = contents.fed(model, x, (12, 13, 14), past_key_values=cache)
    torch.testing.assert_close(parts, full, **CLOSE)
    cache.reset()
    torch.testing.assert_close(model(x[:, :12], past_key_values=cache).logits, full[:, :12], **CLOSE)


@torch.no_grad()
def test_an_assistant_with_an_encoding_of_its_own(model):
    x, twin = families.tokens(1, 11), contents.ready("llama", seed=3)
    plain = generate(model, x)
    with installed(twin, PoPE(8, 2)):
        assert torch.equal(generate(model, x, assistant_model=twin), plain)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["all", "parts", "gaussian"])
@pytest.mark.parametrize("scope", ["query_head", "kv_group"])
def test_dope_on_cached_content_equals_dope_on_cached_encoded_keys(mode, scope):
    model, x = contents.ready("llama"), families.tokens(2, 14)
    heads = HeadSelection([(0, 0), (2, 2), (2, 1)])
    encoding = DoPE(RoPE(8), heads, mode=mode, scope=scope, original_length=16)
    with installed(model, encoding):
        full, kept = model(x).logits, generate(model, x)
    with installed(model, encoding, cache="content"):
        torch.testing.assert_close(model(x).logits, full, **CLOSE)
        torch.testing.assert_close(contents.fed(model, x, (7, 11, 12)), full, **CLOSE)
        assert torch.equal(generate(model, x), kept)


@torch.no_grad()
@pytest.mark.parametrize("before", [None, YaRN(4.0, 16)])
@pytest.mark.parametrize("after", [Linear(3.0), NTK(4.0)])
def test_a_changed_length_rule_is_exact_for_keys_already_cached(before, after):
    """In a model of one layer, whose keys depend on no attention before them: as if read under the new rule."""
    model, x = contents.ready("llama", num_hidden_layers=1), families.tokens(2, 16)
    old, new = RoPE(8, rule=before), RoPE(8, rule=after)
    with installed(model, new):
        expected = model(x).logits[:, 10:]
    rest: dict[str, torch.Tensor] = {}
    for kind in ("content", "encoded"):
        cache = DynamicCache(config=model.config)
        with installed(model, old, cache=kind):
            model(x[:, :10], past_key_values=cache)
        with installed(model, new, cache=kind):
            rest[kind] = contents.fed(model, x[:, 10:], (1, 4), past_key_values=cache)
    torch.testing.assert_close(rest["content"], expected, **CLOSE)
    assert (rest["encoded"] - expected).abs().max() > 1e-2  # keys turned under the old rule


@torch.no_grad()
def test_with_more_layers_the_first_ones_keys_are_those_of_the_new_rule():
    """Later layers read what attention under the old rule wrote: only the first layer's cache is the same."""
    model, x = contents.ready("llama"), families.tokens(2, 12)
    caches = []
    for rule in (None, Linear(3.0)):
        with installed(model, RoPE(8, rule=rule), cache="content"):
            caches.append(model(x, use_cache=True).past_key_values)
    first, last = (tuple(cache.layers[i].keys for cache in caches) for i in (0, 2))
    assert torch.equal(*first) and not torch.allclose(*last, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pope", "kerple", "rope"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_far_positions_in_half_precision(kind, dtype):
    """Near 100,000 half precision can't tell neighbours apart, carried positions can."""
    model, x = contents.ready("llama").to(dtype), families.tokens(1, 12)
    far = torch.arange(99_988, 100_000)[None]
    with installed(model, contents.encoding(model, kind), cache="content"):
        contents.learn(model)
        full = model(x, position_ids=far).logits.float()
        cache = model(x[:, :9], position_ids=far[:, :9]).past_key_values
        rest = model(x[:, 9:], position_ids=far[:, 9:], past_key_values=cache).logits.float()
        shifted = model(x[:, 9:], position_ids=far[:, 9:] + 1, past_key_values=cache).logits.float()
    scale = full.abs().max()
    assert (rest - full[:, 9:]).abs().max() < 0.03 * scale
    if kind == "kerple":  # distances alone: the same as at the start
        near = families.tokens(1, 12)
        with installed(model, contents.encoding(model, kind)):
            contents.learn(model)
            torch.testing.assert_close(model(near).logits.float(), full, atol=0.03 * float(scale), rtol=0)
    assert not torch.equal(shifted, rest)


@torch.no_grad()
def test_a_plain_step_with_when_long():
    """Generations that fit keep the model's own rotation, and their caches hold what the model's do."""
    model, x = contents.ready("llama"), families.tokens(1, 12)
    short = generate(model, x[:, :6], max_new_tokens=6)
    with installed(model, PoPE(8, 2)):
        long = generate(model, x, max_new_tokens=6)
    with installed(model, PoPE(8, 2), when="long", original_length=12):
        assert torch.equal(generate(model, x[:, :6], max_new_tokens=6), short)
        assert model(x[:, :6], use_cache=True).past_key_values.layers[0].keys.shape[-1] == 8
        assert torch.equal(generate(model, x, max_new_tokens=6), long)


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_agrees_with_eager():
    """Compiling flex attention takes a minute on a CPU; 16 is the smallest head that it takes there."""
    model: Any = families.build("llama", head_dim=16, hidden_size=64)
    x, found = families.tokens(2, 20), []
    with installed(model, PoPE(16, 2)):
        contents.learn(model)
        for implementation in ("eager", "flex_attention"):
            model.set_attn_implementation(implementation)
            found.append(model(x).logits)
    torch.testing.assert_close(*found, **CLOSE)


def test_positions_that_are_nowhere_go_through_a_padded_batch():
    model, x = contents.ready("llama"), families.tokens(1, 11)
    rows = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), x[:, :6]], 1), x])
    mask = (torch.arange(11) >= torch.tensor([[5], [0]])).long()
    with installed(model, NoPE(), cache="content"):
        both = generate(model, rows, attention_mask=mask)
        assert torch.equal(both[0, 11:], generate(model, x[:, :6])[0, 6:])
        assert torch.equal(both[1:], generate(model, x))


def bottom_right(
    layer: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """As flash attention has it: without a mask the queries are the last of the keys."""
    assert mask is None
    queries, keys, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).mT * scaling
    hidden = torch.arange(keys)[None] > torch.arange(queries)[:, None] + keys - queries
    out = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.repeat_interleave(group, 1)
    return out.transpose(1, 2).contiguous(), None


@torch.no_grad()
@pytest.mark.parametrize("is_dope", [False, True])
def test_a_later_chunk_without_a_mask_sees_all_keys_before_it(is_dope: bool) -> None:
    AttentionInterface.register("bottom_right", bottom_right)
    AttentionMaskInterface.register("bottom_right", flash_attention_mask)
    model, x = contents.ready("llama"), families.tokens(1, 14)
    model.set_attn_implementation("bottom_right")
    rope = RoPE(8, rule=NTK(2.0))
    encoding = DoPE(rope, HeadSelection([(0, 0), (2, 2)]), original_length=16) if is_dope else rope
    with installed(model, encoding, cache="content"):
        parts = contents.fed(model, x, (6, 13), past_key_values=DynamicCache(config=model.config))
        torch.testing.assert_close(parts, model(x).logits, **CLOSE)
