"""Generation through the seam: caches, beams, candidates, and one base from the first token to the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.patching import families
from transformers import DynamicCache, StaticCache

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.heads import HeadSelection
from ropewalk.patching import install, installed

HEADS = HeadSelection([(0, 0), (2, 2), (2, 1)])
MODES = ("all", "parts", "gaussian")


@pytest.fixture(params=["llama", "gemma3_text"])
def model(request: pytest.FixtureRequest) -> Any:
    made: Any = families.build(request.param)
    made.generation_config.eos_token_id = None
    return made


def dope(model: Any, mode: str = "all") -> DoPE:
    return DoPE(RoPE.from_model(model), HEADS, mode=mode, original_length=16)


def generate(model: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(x, **{"max_new_tokens": 12, "do_sample": False, **options})


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_of_any_kind_changes_no_token(model, mode):
    x = families.tokens(2, 14)
    with installed(model, dope(model, mode)):
        bare = generate(model, x, use_cache=False)
        assert torch.equal(generate(model, x), bare)
        assert torch.equal(generate(model, x, cache_implementation="static", disable_compile=True), bare)
        assert torch.equal(generate(model, x, cache_implementation="dynamic"), bare)
    assert bare.shape == (2, 26)


@pytest.mark.parametrize("mode", MODES)
def test_beam_search_equals_beam_search_without_a_cache(model, mode):
    x = families.tokens(2, 14)
    with installed(model, dope(model, mode)):
        beams = [generate(model, x, num_beams=3, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)


@pytest.mark.parametrize("mode", MODES)
def test_candidates_that_are_cropped_again_change_no_token(model, mode):
    x = families.tokens(1, 5).repeat(1, 3)  # repetition gives prompt lookup something to propose
    twin = families.build("llama", seed=3)
    twin.generation_config.eos_token_id = None
    with installed(model, dope(model, mode)):
        plain = generate(model, x)
        assert torch.equal(generate(model, x, prompt_lookup_num_tokens=3), plain)
        assert torch.equal(generate(model, x, assistant_model=twin), plain)


def test_left_padded_prompts_go_on_as_each_does_alone(model):
    x = families.tokens(1, 14)
    rows = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), x[:, :9]], 1), x])
    mask = (torch.arange(14) >= torch.tensor([[5], [0]])).long()
    with installed(model, dope(model)):
        both = generate(model, rows, attention_mask=mask)
        assert torch.equal(both[0, 14:], generate(model, x[:, :9])[0, 9:])
        assert torch.equal(both[1:], generate(model, x))


@torch.no_grad()
def test_a_static_cache_gives_the_logits_of_a_full_pass(model):
    """Own keys: more key heads than value heads, which such a cache wasn't made for."""
    x = families.tokens(2, 20)
    with installed(model, dope(model)):
        full = model(x).logits
        cache = StaticCache(config=model.config, max_cache_len=24)
        parts = [model(x[:, :12], past_key_values=cache).logits]
        parts += [model(x[:, t : t + 1], past_key_values=cache).logits for t in range(12, 20)]
        torch.testing.assert_close(torch.cat(parts, 1), full, atol=2e-5, rtol=0)
        cache.reset()
        again = model(x[:, :12], past_key_values=cache).logits
        torch.testing.assert_close(again, parts[0], atol=2e-5, rtol=0)


# when="long": the plan only where the whole generation is longer than the limit.

LIMIT = 16


def own_logits(model: Any, x: torch.Tensor) -> torch.Tensor:
    """The model's own logits, from a model made again."""
    return families.build(model.config.model_type)(x).logits


@torch.no_grad()
@pytest.mark.parametrize(("prompt", "new"), [(4, 12), (15, 1), (4, 13), (15, 2), (16, 1), (20, 4)])
@pytest.mark.parametrize("use_cache", [True, False])
def test_one_generation_has_one_base(model, prompt, new, use_cache):
    x = families.tokens(1, prompt)
    options = {
        "max_new_tokens": new,
        "use_cache": use_cache,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    if prompt + new > LIMIT:
        with installed(model, NoPE()):
            expected = generate(model, x, **options)
    else:
        expected = generate(model, x, **options)
    with installed(model, NoPE(), when="long", original_length=LIMIT):
        seen = generate(model, x, **options)
        assert torch.equal(model(x[:, :4]).logits, own_logits(model, x[:, :4]))
    assert torch.equal(seen.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(seen.logits, expected.logits, strict=True))


@torch.no_grad()
def test_bare_passes_with_one_cache_keep_the_first_answer(model):
    x = families.tokens(1, 24)
    plain = model(x).logits
    with installed(model, NoPE()):
        changed = model(x).logits
    with installed(model, NoPE(), when="long", original_length=LIMIT):
        short = model(x[:, :10], use_cache=True)
        rest = model(x[:, 10:], past_key_values=short.past_key_values)
        torch.testing.assert_close(torch.cat([short.logits, rest.logits], 1), plain, atol=2e-5, rtol=0)
        long = model(x[:, :20], use_cache=True)
        torch.testing.assert_close(model(x[:, :4]).logits, plain[:, :4], atol=2e-5, rtol=0)
        rest = model(x[:, 20:], past_key_values=long.past_key_values)
        torch.testing.assert_close(torch.cat([long.logits, rest.logits], 1), changed, atol=2e-5, rtol=0)
        inner = model.model(x[:, :20], use_cache=True)  # the decoder alone is heard too
        torch.testing.assert_close(model.lm_head(inner[0]), changed[:, :20], atol=2e-5, rtol=0)
        by_tuple = model(x[:, :20], use_cache=True, return_dict=False)
        rest = model(x[:, 20:], past_key_values=by_tuple[1])
        torch.testing.assert_close(rest.logits, changed[:, 20:], atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_cache_emptied_or_handed_to_generate(model):
    x = families.tokens(1, 24)
    plain = model(x[:, :10]).logits
    with installed(model, NoPE(), when="long", original_length=LIMIT):
        cache = StaticCache(config=model.config, max_cache_len=40)
        model(x[:, :20], past_key_values=cache)
        cache.reset()
        torch.testing.assert_close(model(x[:, :10], past_key_values=cache).logits, plain, atol=2e-5, rtol=0)
        # Keys made plain stay with plain queries, although this generation passes the limit.
        kept = DynamicCache(config=model.config)
        model(x[:, :10], past_key_values=kept)
        seen = generate(model, x[:, :12], past_key_values=kept)
    assert torch.equal(seen, generate(model, x[:, :12]))


@pytest.mark.parametrize("options", [{}, {"max_length": 30}, {"max_new_tokens": 7}, {"max_length": 14}])
def test_the_length_that_generate_will_reach(model, options):
    """Told before the first token, whatever says it; compared with where transformers does stop."""
    from ropewalk.patching.activation import _generation_length

    x = families.tokens(1, 9)
    length = model.generate(x, do_sample=False, **options).shape[1]
    assert _generation_length(model, (x,), options) == length
    assert _generation_length(model, (), {"input_ids": x, **options}) == length
    if options:
        config = type(model.generation_config)(**options, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert model.generate(x, config).shape[1] == length
        assert _generation_length(model, (x, config), {}) == length
        assert _generation_length(model, (x,), {"generation_config": config}) == length


def test_generate_is_the_models_own_again(model):
    handle = install(model, NoPE(), when="long")
    assert "generate" in vars(model)
    handle.remove()
    assert "generate" not in vars(model)
    assert not model.model._forward_pre_hooks and not model.model._forward_hooks
