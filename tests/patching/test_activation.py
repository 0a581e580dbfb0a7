"""`when="long"`: one answer for a generation, whoever asks at the same time and whatever is around the model."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.patching import families
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.patching import install, installed
from ropewalk.patching.activation import _generation_length
from ropewalk.scaling import NTK

LIMIT = 40
PATIENCE = 30.0  # seconds after which a test that hangs fails


def llama(**changes: Any) -> Any:
    """A tiny Llama whose tokens vary, so that another rotation shows in them."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"vocab_size": families.VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    settings = {"num_hidden_layers": 2, "max_position_embeddings": LIMIT, "initializer_range": 0.4, **changes}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, **ends, **settings)).eval()


@pytest.fixture
def model() -> Any:
    return llama()


def generate(model: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(input_ids=x, **{"do_sample": False, **options})


class Meanwhile:
    """Stands in the middle of one thread's work, once: another thread does its own from start to end."""

    def __init__(self, work: Callable[[], Any]):
        self._work, self._is_done, self.found = work, False, None

    def __call__(self, *given: Any) -> Any:
        if not self._is_done:
            self._is_done = True
            other = threading.Thread(target=self._run)
            other.start()
            other.join(PATIENCE)
        return given[-1]

    @torch.no_grad()
    def _run(self) -> None:
        self.found = self._work()


@torch.no_grad()
@pytest.mark.parametrize("is_long", [True, False])
def test_two_threads_pass_at_once(model, is_long):
    """One thread has decided and hasn't come to the rotation yet when another passes through."""
    x, y = (families.tokens(1, 50), families.tokens(1, 20))[:: 1 if is_long else -1]
    plain, changed = {}, {}
    for one in (x, y):
        plain[one.shape] = model(one).logits
        with installed(model, NoPE()):
            changed[one.shape] = model(one).logits
    with installed(model, NoPE(), when="long"):
        meanwhile = Meanwhile(lambda: model(y).logits)
        hook = model.model.embed_tokens.register_forward_hook(meanwhile)
        found = model(x).logits
        hook.remove()
    for one, logits in ((x, found), (y, meanwhile.found)):
        assert torch.equal(logits, (changed if one.shape[1] > LIMIT else plain)[one.shape])


@pytest.mark.parametrize("use_cache", [True, False])
def test_two_threads_generate_at_once(model, use_cache):
    """Each generation keeps its base although another starts and ends between two of its tokens."""
    x, y = families.tokens(1, 30), families.tokens(1, 8, seed=2)
    options = {"use_cache": use_cache}
    short = generate(model, y, max_new_tokens=20, **options)
    with installed(model, NoPE()):
        long = generate(model, x, max_new_tokens=20, **options)
        assert not torch.equal(generate(model, y, max_new_tokens=20, **options), short)
    assert not torch.equal(generate(model, x, max_new_tokens=20, **options), long)
    with installed(model, NoPE(), when="long"):
        meanwhile = Meanwhile(lambda: generate(model, y, max_new_tokens=20, **options))
        found = generate(model, x, max_new_tokens=20, logits_processor=[meanwhile], **options)
        assert torch.equal(found, long) and torch.equal(meanwhile.found, short)
        meanwhile = Meanwhile(lambda: generate(model, x, max_new_tokens=20, **options))
        found = generate(model, y, max_new_tokens=20, logits_processor=[meanwhile], **options)
        assert torch.equal(found, short) and torch.equal(meanwhile.found, long)


@torch.no_grad()
def test_inside_a_generation_another_cache_keeps_its_own_answer(model):
    x, y = families.tokens(1, 30), families.tokens(1, 20)
    plain, found = model(y).logits, []
    with installed(model, NoPE(), when="long"):
        kept = model(y[:, :15], use_cache=True).past_key_values

        def go_on(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            found.append(model(y[:, 15:], past_key_values=kept).logits)
            return scores

        generate(model, x, max_new_tokens=11, logits_processor=[go_on], stopping_criteria=[lambda *_: True])
    torch.testing.assert_close(found[0], plain[:, 15:], atol=2e-5, rtol=0)


def test_a_model_that_drafts_for_itself(model):
    """Each draft is a short `generate` inside the long one: neither decides anew nor ends the outer decision."""
    model, x = llama(num_hidden_layers=3), families.tokens(1, 30)
    with installed(model, RoPE(8, rule=NTK(4.0))):
        changed = generate(model, x, max_new_tokens=30)
    assert not torch.equal(generate(model, x, max_new_tokens=30), changed)
    with installed(model, RoPE(8, rule=NTK(4.0)), when="long") as long:
        for options in ({}, {"assistant_early_exit": 1}, {"assistant_early_exit": 1, "use_cache": True}):
            assert torch.equal(generate(long, x, max_new_tokens=30, **options), changed)
        short = generate(long, x, max_new_tokens=10, assistant_early_exit=1)
    assert torch.equal(short, generate(model, x, max_new_tokens=10))


def test_an_inner_generate_follows_the_outer_one(model):
    x, y, found = families.tokens(1, 30), families.tokens(1, 8), []
    with installed(model, NoPE()):
        changed = generate(model, y, max_new_tokens=4)
    plain = generate(model, y, max_new_tokens=4)

    def inner(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found.append(generate(model, y, max_new_tokens=4))
        return scores

    with installed(model, NoPE(), when="long"):
        generate(model, x, max_new_tokens=11, logits_processor=[inner])
        with pytest.raises(ZeroDivisionError):
            generate(model, x, max_new_tokens=11, logits_processor=[lambda *_: 1 / 0])
        after = generate(model, y, max_new_tokens=4)
    assert not torch.equal(changed, plain)
    assert len(found) == 11 and all(torch.equal(one, changed) for one in found)
    assert torch.equal(after, plain)


@torch.no_grad()
def test_a_model_inside_peft(model):
    peft: Any = pytest.importorskip("peft")
    x, y = families.tokens(1, 20), families.tokens(1, 50)
    plain, tokens = model(x).logits, generate(model, x, max_new_tokens=4)
    with installed(model, NoPE()):
        changed, far = model(y).logits, generate(model, x, max_new_tokens=30)
    whole: Any = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2)).eval()
    handle = install(whole, NoPE(), when="long")
    assert torch.equal(whole(x).logits, plain) and torch.equal(whole(input_ids=x).logits, plain)
    assert torch.equal(whole(y).logits, changed)
    assert torch.equal(generate(whole, x, max_new_tokens=4), tokens)
    assert torch.equal(generate(whole, x, max_new_tokens=30), far)
    handle.remove()
    assert "generate" not in vars(model) and "generate" not in vars(whole)
    assert torch.equal(whole(y).logits, model(y).logits)


@torch.no_grad()
@pytest.mark.parametrize("is_first", [True, False])
def test_a_compiled_model_generates(model, is_first):
    """Compiled before or after the installation; its `generate` is that of the model inside."""
    x = families.tokens(1, 20)
    plain = generate(model, x, max_new_tokens=4)
    with installed(model, NoPE()):
        changed = generate(model, x, max_new_tokens=30)
    if is_first:
        compiled: Any = torch.compile(model, backend="eager")
        handle = install(compiled, NoPE(), when="long")
    else:
        handle = install(model, NoPE(), when="long")
        compiled = torch.compile(model, backend="eager")
    assert torch.equal(generate(compiled, x, max_new_tokens=4), plain)
    assert torch.equal(generate(compiled, x, max_new_tokens=30), changed)
    assert torch.equal(generate(model, x, max_new_tokens=30), changed)
    handle.remove()
    assert "generate" not in vars(model) and "generate" not in vars(compiled)


@torch.no_grad()
def test_torch_compile_traces_the_whole_graph_either_way(model):
    x, y = families.tokens(1, 20), families.tokens(1, 50)
    torch._dynamo.reset()
    with installed(model, NoPE(), when="long"):
        expected = [model(one).logits for one in (x, y, x)]
        compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
        for one, logits in zip((x, y, x), expected, strict=True):
            torch.testing.assert_close(compiled(one).logits, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompt", [15, 30])
def test_without_a_length_a_generation_ends_with_the_positions(model, prompt):
    """transformers adds 20 tokens, as far as `max_position_embeddings` goes; a generation that fits runs plain."""
    x = families.tokens(1, prompt)
    plain = generate(model, x)
    assert plain.shape[1] == min(prompt + 20, LIMIT) == _generation_length(model, (x,), {})
    with installed(model, NoPE(), when="long"):
        assert torch.equal(generate(model, x), plain)


def test_without_a_length_vectors_get_their_own_twenty(model):
    """transformers doesn't count given vectors as tokens: 20 come after them, however many they are."""
    vectors = model.get_input_embeddings()(families.tokens(1, 30))
    new = model.generate(inputs_embeds=vectors, do_sample=False).shape[1]
    assert _generation_length(model, (), {"inputs_embeds": vectors}) == 30 + new == 50


# What a rotary module does depends on the length: a plain step is its own.
BY_LENGTH: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        "factor": 2.0,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
}


def by_length(kind: str) -> Any:
    return llama(rope_parameters=BY_LENGTH[kind], max_position_embeddings=64 if kind == "longrope" else LIMIT)


@torch.no_grad()
@pytest.mark.parametrize("encoding", [NoPE(), PoPE(8, 2)], ids=["nope", "pope"])
@pytest.mark.parametrize("kind", list(BY_LENGTH))
def test_a_plain_step_is_the_models_own_at_every_length(kind, encoding):
    model, untouched = by_length(kind), by_length(kind)
    with installed(model, encoding, when="long", original_length=60):
        for length in (20, 50, 20):  # there and back: these modules keep what they did last
            x = families.tokens(2, length)
            assert torch.equal(model(x).logits, untouched(x).logits)
        x = families.tokens(1, 61)
        assert not torch.allclose(model(x).logits, untouched(x).logits, atol=1e-2)


@pytest.mark.parametrize("kind", list(BY_LENGTH))
def test_a_generation_that_fits_passes_the_length_where_the_rotation_changes(kind):
    model, untouched, x = by_length(kind), by_length(kind), families.tokens(1, 20)
    with installed(model, NoPE(), when="long", original_length=60):
        assert torch.equal(generate(model, x, max_new_tokens=30), generate(untouched, x, max_new_tokens=30))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "cohere", "glm", "phi", "doge", "mimo_v2_flash", "lfm2"])
def test_a_plain_step_is_bit_equal_in_families_of_many_kinds(family):
    model, x = families.build(family), families.tokens(2, 14)
    plain = model(x).logits
    with installed(model, NoPE(), when="long", original_length=14):
        assert torch.equal(model(x).logits, plain)


@torch.no_grad()
def test_a_deep_copy_asks_its_own_rotary_module():
    model, untouched, x = by_length("longrope"), by_length("longrope"), families.tokens(1, 50)
    with installed(model, NoPE(), when="long", original_length=60):
        twin = copy.deepcopy(model)
        before = model.model.rotary_emb.inv_freq.clone()
        assert torch.equal(twin(x).logits, untouched(x).logits)
    assert not torch.equal(twin.model.rotary_emb.inv_freq, before)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


class TestACachedPrefix:
    """A prefix within the training length is cached without the plan, and the text then grows past it."""

    def prefix(self, model: Any, x: torch.Tensor, count: int = 20) -> DynamicCache:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(x[:, :count], past_key_values=cache)
        return cache

    def test_is_told_once_where_generate_goes_past_the_training_length(self, model: Any) -> None:
        x = families.tokens(1, LIMIT)
        with installed(model, RoPE(8, rule=NTK(4.0)), when="long"):
            with pytest.warns(UserWarning, match=f"The plan stays off for these {LIMIT + 5} tokens.*when='always'"):
                generate(model, x, max_new_tokens=5, past_key_values=self.prefix(model, x))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                generate(model, x, max_new_tokens=5, past_key_values=self.prefix(model, x))

    def test_is_told_where_bare_passes_go_past_it(self, model: Any) -> None:
        x = families.tokens(1, LIMIT + 1)
        with installed(model, RoPE(8, rule=NTK(4.0)), when="long"), torch.no_grad():
            cache = self.prefix(model, x, LIMIT - 1)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model(x[:, LIMIT - 1 : LIMIT], past_key_values=cache)
            with pytest.warns(UserWarning, match="The plan stays off"):
                model(x[:, LIMIT:], past_key_values=cache)

    def test_that_stays_within_the_training_length_says_nothing(self, model: Any) -> None:
        x = families.tokens(1, LIMIT - 5)
        with installed(model, RoPE(8, rule=NTK(4.0)), when="long"), warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(model, x, max_new_tokens=5, past_key_values=self.prefix(model, x))
