"""Encodings that act at attention, on many architecture families: served, or refused before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.patching import contents, families
from tests.patching.contents import CLOSE, KINDS

from ropewalk.attention.attend import attend
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.patching import handle_of, install, installed
from ropewalk.patching.phase_cache import KeyTables

TOKENS = 14  # beyond the sliding windows of 8
# Why a family can have rotations only, and what of that its error says.
REFUSED = {
    "falcon": "FalconForCausalLM computes otherwise",  # calls torch's attention itself, not one that can be replaced
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM fails",  # normalises after the rotation, over what it gave
}
SERVED = sorted(set(families.SERVED) - set(REFUSED))


@pytest.fixture(scope="module", params=SERVED)
def family(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    with torch.no_grad():
        yield request.param, families.build(request.param)


def attributes(model: Any) -> dict[str, dict[str, int]]:
    """All attributes of all modules and of the config, by identity."""
    found = {path: {name: id(value) for name, value in vars(m).items()} for path, m in model.named_modules()}
    found |= {f"{path} has": {name: id(part) for name, part in m._modules.items()} for path, m in model.named_modules()}
    return found | {"config": {name: id(value) for name, value in vars(model.config).items()}}


def test_nearly_all_families_are_served():
    assert len(SERVED) >= 44 and REFUSED.keys() <= families.SERVED.keys()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pope", "alibi", "rope"])
def test_the_same_however_the_text_is_fed_and_nothing_stays(family, kind):
    name, model = family
    x = families.tokens(2, TOKENS)
    plain, before = model(x).logits, attributes(model)
    with installed(model, contents.encoding(model, kind), cache="content"):
        contents.learn(model)
        full = model(x).logits
        torch.testing.assert_close(contents.fed(model, x, (11, 12, 13)), full, **CLOSE)
        if name != "lfm2":  # its convolution keeps no state between chunks of several tokens
            torch.testing.assert_close(contents.fed(model, x, (4, 9)), full, **CLOSE)
    assert attributes(model) == before
    assert torch.equal(model(x).logits, plain)
    if kind == "rope":
        torch.testing.assert_close(full, plain, **CLOSE)
    else:
        assert (full - plain).abs().max() > 1e-2 * plain.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_neox", "gpt_oss", "doge", "phi", "cohere2"])
@pytest.mark.parametrize("kind", ["pope", "alibi"])
def test_left_padding_shifts_nothing(name, kind):
    """Positions count from each row's first token, in the cache as well."""
    model = families.build(name)
    short, long = families.tokens(1, 9), families.tokens(1, TOKENS, seed=2)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, : TOKENS - 9] = 0
    rows = torch.cat([torch.cat([torch.zeros(1, TOKENS - 9, dtype=torch.long), short], 1), long])
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    with installed(model, contents.encoding(model, kind)):
        contents.learn(model)
        out = model(rows[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], use_cache=True)
        last = model(
            rows[:, -1:], attention_mask=mask, position_ids=positions[:, -1:], past_key_values=out.past_key_values
        )
        both = torch.cat([out.logits, last.logits], dim=1)
        alone = model(short).logits, model(long).logits
    torch.testing.assert_close(both[:1, TOKENS - 9 :], alone[0], **CLOSE)
    torch.testing.assert_close(both[1:], alone[1], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["diffllama", "gemma3_text", "olmo2", "cohere", "glm", "phi", "afmoe", "doge"])
@pytest.mark.parametrize("kind", ["pope", "fire"])
def test_eager_equals_sdpa(name, kind):
    model: Any = families.build(name)
    x, mask = families.tokens(2, TOKENS), torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, :5] = 0
    for parameter, value in model.named_parameters():
        if parameter.endswith(".A"):  # doge's, by which its mask adds to scores; it starts at none
            value.normal_()
    found = []
    with installed(model, contents.encoding(model, kind)):
        contents.learn(model)
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            found.append(model(x, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(*found, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(families.ROTATING_LAYERS))
def test_layers_without_a_rotation_stay_without_positions(name):
    """Twice the same model, once with an encoding named for the rotating layers alone."""
    model, x = families.build(name), families.tokens(1, TOKENS)
    ropes = RoPE.from_model(model)
    layers = families.ROTATING_LAYERS[name]
    only = PerLayer(tuple((i, ALiBi(4)) if i in layers else (i, ropes.at(i)) for i in range(3)))
    with installed(model, ALiBi(4)):
        everywhere = model(x).logits
    with installed(model, only):
        assert torch.equal(model(x).logits, everywhere)


@torch.no_grad()
@pytest.mark.parametrize("name", ["phi", "stablelm", "persimmon", "gpt_neox", "glm"])
@pytest.mark.parametrize("width", [None, 4, 2])
def test_pope_where_a_layer_rotates_part_of_its_channels(name, width):
    """Some hand over only those: with more channels encoded, magnitudes are made at attention instead."""
    model, x = families.build(name), families.tokens(1, TOKENS)
    kv_heads = families.SERVED[name].get("num_key_value_heads", 2)
    with installed(model, PoPE(8, kv_heads, rotary_dim=width)):
        contents.learn(model)
        full = model(x).logits
        torch.testing.assert_close(contents.fed(model, x, (5, 10, 11, 12)), full, **CLOSE)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(x).logits, full, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "phi", "stablelm"])
@pytest.mark.parametrize("kind", ["pope", "alibi", "t5", "kerple", "fire"])
def test_a_layer_attends_as_attend_does_on_its_content(name, kind):
    model, seen = families.build(name), {}
    layer: Any = model.model.layers[0].self_attn
    hook = layer.register_forward_hook(
        lambda _, args, kwargs, output: seen.update(x=kwargs.get("hidden_states", *args), out=output[0]),
        with_kwargs=True,
    )
    with installed(model, contents.encoding(model, kind)):
        contents.learn(model)
        model(families.tokens(2, TOKENS))
        q, k, v = (
            project(seen["x"]).unflatten(-1, (-1, 8)).transpose(1, 2)
            for project in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        module = getattr(layer, "position_encoding", None) or ALiBi(4)
        expected = attend(q, k, v, module).transpose(1, 2).flatten(2)
    hook.remove()
    out = layer.dense if name == "phi" else layer.o_proj
    torch.testing.assert_close(out(expected), seen["out"], **CLOSE)


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("kind", ["pope", "kerple", "rope"])
def test_refused_by_name_before_anything_is_touched(name, kind):
    model: Any = families.build(name)
    made, before = contents.encoding(model, kind), attributes(model)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]) as caught:
        install(model, made, cache="content")
    assert "\n" not in str(caught.value) and "rotations only" in str(caught.value)
    assert attributes(model) == before and handle_of(model) is None
    with installed(model, RoPE.from_model(model)):
        pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["flash_attention_2", "mine"])
def test_implementations_that_cannot_serve_are_refused_before_anything_is_touched(kind, implementation, monkeypatch):
    """A rotation goes through any; magnitudes and biases need functions that are known to take them."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own: Any = ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(own._global_mapping, implementation, own["sdpa"])  # flash_attn itself needs a GPU
    model: Any = families.build("llama")
    made = contents.encoding(model, kind)
    model.config._attn_implementation = implementation
    before = attributes(model)
    if kind in ("rope", "dope"):
        with installed(model, made, cache="content"):
            model(families.tokens(1, 5))
        return
    refused = f"attn_implementation='{implementation}'.*set_attn_implementation"
    with pytest.raises(ArgumentError, match=refused) as caught:
        install(model, made)
    assert "\n" not in str(caught.value) and attributes(model) == before
    model.config._attn_implementation = "sdpa"
    with installed(model, made):  # and where it is chosen afterwards
        model.config._attn_implementation = implementation
        with pytest.raises(ArgumentError, match=refused):
            model(families.tokens(1, 5))


WRONG: dict[str, tuple[Encoding, dict[str, Any], str]] = {
    "key heads": (PoPE(8, 4), {}, "num_kv_heads=4: layer 0 has 2 key heads"),
    "head size": (PoPE(16, 2), {}, "head_dim=16: layer 0 has heads of 8 channels"),
    "query heads": (ALiBi(2), {}, "num_heads=2: layer 0 has 4 query heads"),
    "cache of keys": (PoPE(8, 2), {"cache": "encoded"}, "cache='encoded': pope acts at attention"),
    "cache of biases": (ALiBi(4), {"cache": "encoded"}, "cache='encoded': alibi acts at attention"),
    "cache name": (RoPE(8), {"cache": "contents"}, "cache='contents': did you mean content"),
    "rotation": (RoPE(16), {"cache": "content"}, "head_dim=16"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_an_encoding_that_does_not_fit_is_one_line(case):
    made, options, text = WRONG[case]
    model: Any = families.build("llama")
    before = attributes(model)
    with pytest.raises(ArgumentError, match=text) as caught:
        install(model, made, **options)
    assert "\n" not in str(caught.value) and attributes(model) == before


@torch.no_grad()
def test_layers_of_different_kinds_side_by_side():
    model, x = families.build("qwen3"), families.tokens(2, TOKENS)
    mixed = PerLayer(((0, PoPE(8, 2)), (1, ALiBi(4)), (2, RoPE(8, base=500.0))))
    with installed(model, mixed):
        full = model(x).logits
        torch.testing.assert_close(contents.fed(model, x, (5, 12, 13)), full, **CLOSE)
    with installed(model, mixed, cache=None):
        assert torch.equal(model(x).logits, full)


@torch.no_grad()
def test_keys_of_all_layers_share_one_table(monkeypatch):
    model, x = families.build("llama"), families.tokens(2, TOKENS)
    made: list[KeyTables] = []
    of = KeyTables.of

    def watched(self: KeyTables, *args: Any) -> Any:
        made.append(self)
        return of(self, *args)

    monkeypatch.setattr(KeyTables, "of", watched)
    with installed(model, PoPE(8, 2)):
        made.clear()  # what installing tried
        model(x)
    assert len(made) == 6 and len(set(map(id, made))) == 1
