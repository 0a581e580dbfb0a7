"""The seam itself: what it changes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from safetensors.torch import load_file

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.model_rotation import rotary_layers
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, RopewalkError, UnsupportedModelError
from ropewalk.frequencies import NTK, CoPE, DynamicNTK, Linear, Llama3, NTKByParts, Resonance, YaRN
from ropewalk.heads import HeadSelection
from ropewalk.hf import handle_of, install, installed
from tests.hf import families

HEADS = HeadSelection([(0, 0), (2, 2), (2, 3)])
MODES = ("all", "parts", "gaussian")


@pytest.fixture
def model() -> Any:
    return families.build("llama")


def dope(model: Any, mode: str = "all", **options: Any) -> DoPE:
    return DoPE(RoPE.from_model(model), HEADS, mode=mode, original_length=16, **options)


@torch.no_grad()
def test_two_models_of_one_class_side_by_side(model):
    other = families.build("llama")
    x = families.tokens(1, 12)
    plain = model(x).logits
    with installed(model, NoPE()):
        assert torch.equal(other(x).logits, plain)
        changed = model(x).logits
        with installed(other, dope(other)):
            assert torch.equal(model(x).logits, changed)
            assert not torch.equal(other(x).logits, plain)
    assert torch.equal(model(x).logits, plain)


@torch.no_grad()
def test_a_second_encoding_is_refused_and_the_first_stays(model):
    x = families.tokens(1, 12)
    with installed(model, NoPE()):
        changed = model(x).logits
        for whole in (model, model.model):  # its inner part shares the layers
            with pytest.raises(ArgumentError, match=r"remove\(\)"), installed(whole, RoPE(8)):
                pass
        assert torch.equal(model(x).logits, changed)
    with installed(model.model, NoPE()), pytest.raises(ArgumentError, match=r"remove\(\)"):
        install(model, NoPE())


def test_remove_twice_does_nothing_and_does_not_disturb_a_later_one(model):
    first = install(model, NoPE())
    first.remove()
    second = install(model, NoPE())
    first.remove()
    assert handle_of(model) is second
    second.remove()
    assert handle_of(model) is None


def test_the_models_own_rotation_can_be_read_while_another_is_installed(model):
    own = RoPE.from_model(model)
    with installed(model, dope(model)):
        assert RoPE.from_model(model) == own


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt_oss"])
def test_attention_implementations_agree(name):
    model = families.build(name)
    x, mask = families.tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :5] = 0
    encodings = [RoPE.from_model(model), *(dope(model, mode) for mode in MODES)]
    names = {"gpt_oss": ("eager",), "gemma2": ("eager", "sdpa")}.get(name, ("eager", "sdpa", "flex_attention"))
    for encoding in encodings:
        results = []
        for implementation in names:
            model.set_attn_implementation(implementation)
            with installed(model, encoding):
                results.append(model(x, attention_mask=mask).logits[mask.bool()])
        if name == "gemma2":
            continue  # sdpa leaves its cap on scores out, with or without us
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], atol=2e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("mode", ["plain", *MODES])
def test_torch_compile_traces_the_whole_graph(model, mode):
    encoding = RoPE.from_model(model) if mode == "plain" else dope(model, mode)
    x = families.tokens(2, 12)
    torch._dynamo.reset()
    with installed(model, encoding):
        expected = model(x).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x).logits, expected, atol=1e-5, rtol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_every_parameter_with_checkpointing_too(model, mode, reentrant):
    x = families.tokens(2, 12)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(x, labels=x, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    with installed(model.train(), dope(model, mode)):
        expected = gradients()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        seen = gradients()
    assert all(g.abs().max() > 0 for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, atol=1e-5, rtol=1e-4)
    assert model.training


def test_installing_neither_moves_the_random_state_nor_the_mode(model):
    model.train()
    model.model.layers[1].eval()
    state = torch.get_rng_state()
    with installed(model, dope(model)):
        assert model.training and not model.model.layers[1].training
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_bfloat16():
    model = families.build("llama").to(torch.bfloat16)
    x = families.tokens(2, 12)
    rope = RoPE.from_model(model)
    assert rope == RoPE.from_model(families.build("llama"))
    plain = model(x).logits
    with installed(model, rope):
        assert torch.equal(model(x).logits, plain)
    for mode in MODES:
        with installed(model, dope(model, mode)):
            assert model(x).logits.dtype == torch.bfloat16


class _Counting(ModelHook):
    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@torch.no_grad()
def test_device_hooks_survive(model):
    x = families.tokens(1, 12)
    plain, attention = model(x).logits, model.model.layers[0].self_attn
    hook = _Counting()
    add_hook_to_module(attention, hook)
    hooked, held = attention.forward, attention._old_forward
    with installed(model, NoPE()):
        calls = hook.calls
        assert not torch.equal(model(x).logits, plain)
        assert hook.calls == calls + 1 and attention.forward is hooked
    assert attention._old_forward is held and attention.forward is hooked
    assert torch.equal(model(x).logits, plain)


@torch.no_grad()
def test_hooks_that_come_or_go_while_an_encoding_is_installed(model):
    x = families.tokens(1, 12)
    plain, attention = model(x).logits, model.model.layers[0].self_attn
    handle, hook = install(model, NoPE()), _Counting()
    changed = model(x).logits
    add_hook_to_module(attention, hook)
    assert torch.equal(model(x).logits, changed) and hook.calls == 1
    handle.remove()
    assert torch.equal(model(x).logits, plain) and hook.calls == 2
    handle = install(model, NoPE())
    remove_hook_from_module(attention)
    assert torch.equal(model(x).logits, changed)
    handle.remove()
    assert torch.equal(model(x).logits, plain)


@torch.no_grad()
def test_saving_writes_what_it_would_without(model, tmp_path):
    model.save_pretrained(tmp_path / "plain")
    with installed(model, dope(model)):
        assert set(model.state_dict()) == set(load_keys(model))
        model.save_pretrained(tmp_path / "installed")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "installed"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "installed")]
    assert configs[0] == configs[1]


def load_keys(model: Any) -> list[str]:
    return list(families.build("llama").state_dict())


@torch.no_grad()
@pytest.mark.parametrize("when", ["always", "long"])
def test_a_deep_copy_has_the_encoding_and_a_handle_of_its_own(model, when):
    x = families.tokens(1, 12)
    plain = model(x).logits
    handle = install(model, dope(model), when=when, original_length=10)
    changed = model(x).logits
    twin = copy.deepcopy(model)
    handle.remove()
    assert torch.equal(model(x).logits, plain)
    assert torch.equal(twin(x).logits, changed) and not torch.equal(changed, plain)
    if when == "long":
        assert torch.equal(twin(x[:, :10]).logits, model(x[:, :10]).logits)
        tokens = twin.generate(x[:, :4], max_new_tokens=4, do_sample=False)
        assert torch.equal(tokens, model.generate(x[:, :4], max_new_tokens=4, do_sample=False))
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert twin(x).logits.abs().max() == 0 and torch.equal(model(x).logits, plain)
    handle_of(twin).remove()
    assert handle_of(twin) is None
    with pytest.raises(AssertionError), installed(twin, NoPE()):
        raise AssertionError


RULES = [
    Linear(2.0),
    NTK(2.0),
    DynamicNTK(128, 64),
    NTKByParts(2.0, 64),
    YaRN(2.0, 64),
    Llama3(2.0, 64),
    Resonance(),
    CoPE(64),
]


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("mode", MODES)
def test_every_length_rule_goes_with_dope(model, rule, mode):
    x = families.tokens(1, 100)  # beyond the 64 of the config
    rope = RoPE(8, rule=rule)
    with installed(model, rope):
        ruled = model(x).logits
    with installed(model, DoPE(rope, HEADS, mode=mode, original_length=16)):
        full = model(x).logits
        out = model(x[:, :90], use_cache=True)
        rest = model(x[:, 90:], past_key_values=out.past_key_values).logits
    assert (full - ruled).abs().max() > 1e-3
    torch.testing.assert_close(torch.cat([out.logits, rest], 1), full, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
def test_a_model_made_with_a_rule_is_read_as_having_it(kind):
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind in ("yarn", "llama3", "longrope"):
        parameters["original_max_position_embeddings"] = 16
    parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    parameters |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    model: Any = families.build("llama", rope_parameters=parameters)
    x = families.tokens(1, 14)
    plain, rope = model(x).logits, RoPE.from_model(model)
    assert rope.rule is not None and rope.rule.name == {"dynamic": "dynamic_ntk"}.get(kind, kind)
    with installed(model, rope):
        torch.testing.assert_close(model(x).logits, plain, atol=1e-5, rtol=0)


@torch.no_grad()
def test_nope_has_no_order_but_the_causal_mask(model):
    x = families.tokens(1, 12)
    positions = torch.arange(12)[None]
    with installed(model, NoPE()):
        assert torch.equal(model(x, position_ids=positions).logits, model(x, position_ids=3 * positions).logits)
    assert not torch.equal(model(x, position_ids=positions).logits, model(x, position_ids=3 * positions).logits)


@torch.no_grad()
def test_the_same_rope_everywhere_by_layer(model):
    x = families.tokens(1, 12)
    by_layer = PerLayer(tuple((i, RoPE(8) if i else dope(model)) for i in range(3)))
    with installed(model, by_layer):
        seen = model(x).logits
    with installed(model, DoPE(RoPE(8), HeadSelection([(0, 0)]))):
        assert torch.equal(model(x).logits, seen)


BAD = [
    (lambda m: DoPE(RoPE(8), HeadSelection([(3, 0)])), "heads=(3, 0): the model's rotary layers are 0 to 2"),
    (lambda m: DoPE(RoPE(8), HeadSelection([(0, 4)])), "heads=(0, 4): the layer has query heads 0 to 3"),
    (lambda m: RoPE(16), "head_dim=16: layer 0 has heads of 8"),
    (lambda m: RoPE(4), "head_dim=4: layer 0 has heads of 8"),
    (lambda m: DoPE(RoPE(16), HeadSelection([(0, 0)])), "head_dim=16"),
    (lambda m: PerLayer(((0, RoPE(8)),)), "layer=1: no encoding for it"),
    (lambda m: "rope", "encoding='rope'"),
]


@pytest.mark.parametrize(("make", "text"), BAD, ids=[text[:30] for _, text in BAD])
def test_bad_arguments_are_refused_before_anything_is_touched(model, make, text):
    before = {path: dict(vars(m)) for path, m in model.named_modules()}
    with pytest.raises(RopewalkError) as caught:
        install(model, make(model))
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert {path: dict(vars(m)) for path, m in model.named_modules()} == before


def test_a_width_beyond_what_the_layer_hands_over():
    model = families.build("phi")
    own: Any = RoPE.from_model(model)
    with pytest.raises(ArgumentError, match=f"rotary_dim=8: layer 0 hands over {own.width} channels"):
        install(model, RoPE(8))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"when": "allways"}, "did you mean always"),
        ({"when": "long", "original_length": 0}, "original_length=0"),
        ({"when": "long", "original_length": 2.5}, "original_length=2.5"),
    ],
)
def test_bad_options(model, options, text):
    with pytest.raises(ArgumentError, match=text):
        install(model, NoPE(), **options)


def test_what_is_no_hugging_face_model():
    with pytest.raises(UnsupportedModelError, match="Linear"):
        install(torch.nn.Linear(2, 2), NoPE())


def test_a_failing_pass_is_refused_and_leaves_no_trace(model):
    attention = model.model.layers[2].self_attn

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("first line\nsecond line")

    attention.o_proj.forward = broken
    before = {path: dict(vars(m)) for path, m in model.named_modules()}
    with pytest.raises(UnsupportedModelError, match="RuntimeError: first line") as caught:
        install(model, NoPE())
    assert "\n" not in str(caught.value)
    assert {path: dict(vars(m)) for path, m in model.named_modules()} == before


def test_a_model_without_weights_is_served_by_its_config():
    with torch.device("meta"):
        model = families.build("llama")
    # Frequencies, too, are on the meta device: only encodings that need none of the model's numbers can be told.
    with pytest.raises(RopewalkError), installed(model, DoPE(RoPE(8), HeadSelection([(0, 9)]))):
        pass


@torch.no_grad()
def test_the_encoder_follows_its_layer_to_another_device(model):
    with installed(model, dope(model)):
        copy_on_meta = copy.deepcopy(model).to("meta")
        out = copy_on_meta(families.tokens(1, 6).to("meta")).logits
        assert out.device.type == "meta"
        model(families.tokens(1, 6))


def test_layers_say_where_they_are(model):
    layers = rotary_layers(model)
    assert [(item.index, item.path) for item in layers] == [(i, f"model.layers.{i}.self_attn") for i in range(3)]
