"""Remaps of positions in whole models: any implementation, cache, padding and way to feed a text gives one answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.patching import contents, families
from torch import nn
from transformers import StaticCache

from ropewalk.attention import remapped
from ropewalk.attention.mask import Visible
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.remap import RemapModule
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError
from ropewalk.patching import handle_of, install, installed
from ropewalk.patching.content_attention import FLASH, Call, check_implementation

KINDS = ("self_extend", "rerope", "leaky", "dual_chunk")
# Grouped heads in all; windows of 8 in every layer, and in some with another base; q/k norm.
CASES = [("llama", kind) for kind in KINDS] + [
    ("mistral", "self_extend"),
    ("mistral", "dual_chunk"),
    ("gemma3_text", "self_extend"),
    ("gemma3_text", "leaky"),
    ("qwen3", "rerope"),
]
TOKENS = 21
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 0}


def remap(model: Any, kind: str) -> Encoding:
    """A remap of the model's own rotation whose far positions begin in the first few tokens."""
    rope: Any = RoPE.from_model(model)
    made: dict[str, Encoding] = {
        "self_extend": SelfExtend(rope, 4, 3),
        "rerope": ReRoPE(rope, 5),
        "leaky": ReRoPE(rope, 4, 0.25),
        "dual_chunk": DualChunk(rope, 6, 2),
    }
    return made[kind]


@pytest.fixture
def llama() -> Any:
    return contents.ready("llama")


each = pytest.mark.parametrize("kind", KINDS)
cases = pytest.mark.parametrize(("name", "kind"), CASES)
any_cache = pytest.mark.parametrize("cache", [None, "content"])  # None is "encoded" for remaps


def generate(model: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(x, **{"max_new_tokens": 8, "do_sample": False, **options})
    return found


def padded(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of tokens, of which the first begins after padding, their mask, and their positions."""
    x, mask = families.tokens(2, count), torch.ones(2, count, dtype=torch.long)
    mask[0, :first], x[0, :first] = 0, 0
    return x, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def block_by_block(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(remapped, "runs", lambda *_: None)
    patch.setattr(remapped, "shared_prefix", lambda *_: None)


@torch.no_grad()
@cases
@any_cache
def test_implementations_agree_with_each_other_and_with_blocks(name: str, kind: str, cache: str | None) -> None:
    model = contents.ready(name)
    x, mask, positions = padded(5, TOKENS)
    plain = model(x, attention_mask=mask, position_ids=positions).logits
    with installed(model, remap(model, kind), cache=cache):
        found = []
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(remapped, "attend_scored", None)  # not called: all are runs
                found.append(model(x, attention_mask=mask, position_ids=positions).logits[mask.bool()])
            with pytest.MonkeyPatch.context() as patch:
                block_by_block(patch)
                found.append(model(x, attention_mask=mask, position_ids=positions).logits[mask.bool()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **CLOSE)
    assert (found[0] - plain[mask.bool()]).abs().max() > 1e-2


@torch.no_grad()
@cases
@any_cache
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_same_however_the_text_is_fed(name: str, kind: str, cache: str | None, implementation: str) -> None:
    model = contents.ready(name)
    x = families.tokens(2, TOKENS)
    model.set_attn_implementation(implementation)
    with installed(model, remap(model, kind), cache=cache):
        full = model(x).logits
        torch.testing.assert_close(contents.fed(model, x, (6, 7, 13, 19, 20)), full, **CLOSE)
        static = StaticCache(config=model.config, max_cache_len=TOKENS + 4)
        torch.testing.assert_close(contents.fed(model, x, (6, 13, 14), past_key_values=static), full, **CLOSE)


@torch.no_grad()
@each
def test_what_a_cache_holds(llama: Any, kind: str) -> None:
    """Content, or keys turned to where most of them are read; the logits are the same."""
    x, made, logits, keys = families.tokens(2, TOKENS), remap(llama, kind), [], []
    for cache in ("content", "encoded", None):
        with installed(llama, made, cache=cache):
            out = llama(x, use_cache=True)
        logits.append(out.logits)
        keys.append(out.past_key_values.layers[0].keys[..., :8])
    module: Any = made.module()
    torch.testing.assert_close(keys[1], module.stored(keys[0], torch.arange(TOKENS)[None]), **CLOSE)
    assert torch.equal(keys[2], keys[1])
    # ReRoPE's far keys all stand at position 0, where nothing turns.
    assert torch.allclose(keys[1], keys[0], atol=1e-2) == (kind == "rerope")
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], **CLOSE)


@torch.no_grad()
@cases
@any_cache
def test_left_padded_rows_equal_each_alone(name: str, kind: str, cache: str | None) -> None:
    model = contents.ready(name)
    x, mask, positions = padded(5, TOKENS)
    with installed(model, remap(model, kind), cache=cache):
        out = model(x[:, :15], attention_mask=mask[:, :15], position_ids=positions[:, :15], use_cache=True)
        logits = [out.logits]
        for end in (18, 19, 20, 21):  # a chunk, then steps
            begin = 15 if end == 18 else end - 1
            given = {"attention_mask": mask[:, :end], "position_ids": positions[:, begin:end]}
            logits.append(model(x[:, begin:end], past_key_values=out.past_key_values, **given).logits)
        found = torch.cat(logits, dim=1)
        torch.testing.assert_close(found[:1, 5:], model(x[:1, 5:]).logits, **CLOSE)
        torch.testing.assert_close(found[1:], model(x[1:]).logits, **CLOSE)


@pytest.mark.parametrize(("name", "kind"), [CASES[0], CASES[3], CASES[4], CASES[7]])
def test_beams_and_static_caches_give_the_same_tokens_with_stored_keys_as_with_content(name: str, kind: str) -> None:
    model = contents.ready(name)
    x, mask, _ = padded(4, 13)
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"num_beams": 3},
        {"cache_implementation": "static", "disable_compile": True},
    )
    found: dict[str | None, list[torch.Tensor]] = {}
    for cache in (None, "content"):
        with installed(model, remap(model, kind), cache=cache):
            found[cache] = [generate(model, x, attention_mask=mask, **way) for way in ways]
            bare = [generate(model, x, attention_mask=mask, use_cache=False, **way) for way in ways[:2]]
        assert torch.equal(found[cache][0], bare[0]) and torch.equal(found[cache][1], bare[1])
        assert torch.equal(found[cache][2], bare[0])
    assert all(torch.equal(*pair) for pair in zip(found[None], found["content"], strict=True))


@torch.no_grad()
@each
def test_when_long(llama: Any, kind: str) -> None:
    """A generation that fits is the model's own, bit for bit; a longer one has the remap from its first token on."""
    x = families.tokens(1, 12)

    def logits(new: int) -> torch.Tensor:
        told = {"max_new_tokens": new, "output_logits": True, "return_dict_in_generate": True}
        return torch.cat(llama.generate(x, do_sample=False, **told).logits)

    plain, plain_long, plain_logits = logits(8), logits(9), llama(x).logits
    with installed(llama, remap(llama, kind)):
        long = logits(9)
    assert not torch.allclose(plain_long[0], long[0], atol=1e-2)
    with installed(llama, remap(llama, kind), when="long", original_length=20):
        assert torch.equal(logits(8), plain)
        assert torch.equal(llama(x).logits, plain_logits)
        assert llama(x, use_cache=True).past_key_values.layers[0].keys.shape[-1] == 8  # as the model's own
        assert torch.equal(logits(9), long)
        assert torch.equal(logits(8), plain)


def objects(model: nn.Module) -> dict[str, Any]:
    """The very objects that a model's parts hold; their hooks as pairs."""
    held = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            held[f"{name}.{key}"] = dict(value) if isinstance(value, dict) else value
    return held


@torch.no_grad()
@cases
@any_cache
def test_remove_brings_back_the_very_objects(name: str, kind: str, cache: str | None) -> None:
    model = contents.ready(name)
    x = families.tokens(1, TOKENS)
    plain, before = model(x).logits, objects(model)
    attention = [layer.self_attn for layer in model.model.layers]
    forwards = [type(one).forward for one in attention]
    handle = install(model, remap(model, kind), cache=cache)
    changed = model(x).logits
    handle.remove()
    after = objects(model)
    assert before.keys() == after.keys()
    assert all(after[name] is value or after[name] == value for name, value in before.items())
    assert [one.forward.__func__ for one in attention] == forwards
    assert torch.equal(model(x).logits, plain) and not torch.allclose(changed, plain, atol=1e-3)


@torch.no_grad()
@each
def test_a_deep_copy_goes_on_alone(llama: Any, kind: str) -> None:
    x = families.tokens(1, TOKENS)
    plain = llama(x).logits
    with installed(llama, remap(llama, kind)):
        changed = llama(x).logits
        twin = copy.deepcopy(llama)
        assert torch.equal(twin(x).logits, changed)
        handle = handle_of(twin)
        assert handle is not None
        handle.remove()
        assert torch.equal(twin(x).logits, plain) and torch.equal(llama(x).logits, changed)
        second = copy.deepcopy(llama)
    assert torch.equal(llama(x).logits, plain)
    assert torch.equal(contents.fed(second, x, (9, 20)).argmax(-1), changed.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@any_cache
def test_far_positions_in_half_precision(llama: Any, dtype: torch.dtype, cache: str | None) -> None:
    """Near 100,000 half precision can't tell neighbours apart; self-extend's distances are the same there."""
    model, x, far = llama.to(dtype), families.tokens(1, 12), torch.arange(99_990, 100_002)[None]
    with installed(model, SelfExtend(RoPE.from_model(model), 4, 3), cache=cache):
        near = model(x).logits.float()  # 99,990 is a multiple of the group
        found = model(x, position_ids=far).logits.float()
        kept = model(x[:, :9], position_ids=far[:, :9], use_cache=True).past_key_values
        rest = model(x[:, 9:], position_ids=far[:, 9:], past_key_values=kept).logits.float()
    for ours, theirs in ((found, near), (rest, found[:, 9:])):
        assert (ours - theirs).abs().max() < 0.05 * near.abs().max()


class TestFlashAttention:
    """Its masks say which tokens are padding; order and windows come as options."""

    @staticmethod
    def called(name: str, mask: Any, options: dict[str, Any], kind: str, stored: bool, queries: int) -> torch.Tensor:
        """A layer's call of 11 tokens in 2 rows, of which the first has 3 of padding: (B, N, H, E)."""
        generator = torch.Generator().manual_seed(4)
        q, k, v = (torch.randn(2, heads, 11, 8, generator=generator) for heads in (4, 2, 2))
        module: Any = remap(families.build("llama"), kind).module()
        positions = (torch.arange(11) - torch.tensor([[3], [0]])).clamp(min=0)
        k = module.stored(k, positions) if stored else k
        options = {"scaling": 0.4, **options}
        call = Call(
            nn.Identity(), name, lambda *_: pytest.fail("the model's own"), mask, options, q[:, :, -queries:], k, v
        )
        return call.remapped(module, (positions[:, -queries:], positions), stored)[0]

    @each
    @pytest.mark.parametrize("stored", [False, True])
    @pytest.mark.parametrize("window", [None, 4])
    @pytest.mark.parametrize("queries", [11, 2, 1])
    def test_equals_sdpa(self, kind: str, stored: bool, window: int | None, queries: int) -> None:
        of_rows = torch.arange(11) >= torch.tensor([[3], [0]])
        hidden = Visible(queries, 11, window=window).hidden(0, queries, 0, 11, torch.device("cpu"))
        assert hidden is not None
        pairs = ~hidden & of_rows[:, None, None]
        expected = self.called("sdpa", pairs, {}, kind, stored, queries)
        longer = torch.cat([torch.zeros(2, 3), of_rows], dim=1)  # a window's cache has dropped the first tokens
        for mask in (of_rows, of_rows.long(), longer):
            found = self.called("flash_attention_2", mask, {"sliding_window": window}, kind, stored, queries)
            torch.testing.assert_close(found, expected, **CLOSE)
        no_padding = self.called("flash_attention_2", None, {"sliding_window": window}, kind, stored, queries)
        everyone = self.called("sdpa", ~hidden[None, None].expand(2, 1, -1, -1), {}, kind, stored, queries)
        torch.testing.assert_close(no_padding, everyone, **CLOSE)

    @each
    def test_served_and_refused(self, llama: Any, kind: str) -> None:
        module: Any = remap(llama, kind).module()
        assert isinstance(module, RemapModule)
        for name in ("sdpa", "eager", None, *FLASH):
            check_implementation(module, name)
        for name in ("flex_attention", "paged|sdpa", "mine"):
            with pytest.raises(ArgumentError, match=r"attn_implementation=.*set_attn_implementation"):
                check_implementation(module, name)
