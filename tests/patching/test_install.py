"""The seam itself: what it changes, what it leaves alone, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.patching import families

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.model_rotation import rotary_layers
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.heads import HeadSelection
from ropewalk.patching import handle_of, install, installed
from ropewalk.scaling import NTK, CoPE, DynamicNTK, Linear, Llama3, NTKByParts, Resonance, YaRN

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


@torch.no_grad()
def test_a_model_that_has_the_encoding_keeps_it_with_what_it_learned(model):
    x, encoding = families.tokens(1, 12), PoPE(8, 2)
    handle = install(model, encoding)
    for path, parameter in model.named_parameters():
        if "position_encoding" in path:
            parameter.fill_(-1.0)
    learned = model(x).logits
    with installed(model, PoPE(8, 2)):
        assert torch.equal(model(x).logits, learned)
    assert handle_of(model) is handle and torch.equal(model(x).logits, learned)
    for other, options in ((PoPE(8, 2, delta="none"), {}), (encoding, {"when": "long"}), (encoding, {"cache": "x"})):
        with pytest.raises(ArgumentError, match=r"remove\(\)"), installed(model, other, **options):
            pass
    handle.remove()
    install(model, encoding, when="long", original_length=8)
    with pytest.raises(ArgumentError, match=r"remove\(\)"), installed(model, encoding):
        pass


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


def attend_alike(model: Any, names: tuple[str, ...], modes: tuple[str, ...]) -> None:
    x, mask = families.tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :5] = 0
    for encoding in (RoPE.from_model(model), *(dope(model, mode) for mode in modes)):
        results = []
        for name in names:
            model.set_attn_implementation(name)
            with installed(model, encoding):
                results.append(model(x, attention_mask=mask).logits[mask.bool()])
        torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3_text", "olmo2", "diffllama"])
def test_eager_and_sdpa_agree(name):
    attend_alike(families.build(name), ("eager", "sdpa"), MODES)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_eager_and_flex_attention_agree(name):
    """Compiling flex attention takes a minute on a CPU; 16 is the smallest head that it takes there."""
    model: Any = families.build(name, head_dim=16, hidden_size=64)
    x = families.tokens(2, 20)
    for encoding in (RoPE(16), DoPE(RoPE(16), HEADS)):
        results = []
        for implementation in ("eager", "flex_attention"):
            model.set_attn_implementation(implementation)
            with installed(model, encoding):
                results.append(model(x).logits)
        torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=0)


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
    """As from_pretrained loads it: half-precision weights, float32 frequencies."""
    model, wide = families.build("llama"), families.build("llama")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    x = families.tokens(2, 12)
    plain = model(x).logits
    with installed(model, RoPE.from_model(model)):
        assert torch.equal(model(x).logits, plain)
    for mode in MODES:
        with installed(model, dope(model, mode)), installed(wide, dope(wide, mode)):
            seen = model(x).logits
            assert seen.dtype == torch.bfloat16
            torch.testing.assert_close(seen.float(), wide(x).logits, atol=0.1, rtol=0.1)


@torch.no_grad()
def test_frequencies_that_a_cast_has_rounded_are_read_as_what_they_were():
    """`model.to(bfloat16)` rounds the model's own frequencies; the seam rotates by the true ones."""
    model = families.build("llama").to(torch.bfloat16)
    assert RoPE.from_model(model) == RoPE.from_model(families.build("llama"))
    with installed(model, RoPE.from_model(model)):
        model(families.tokens(1, 12))


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


def test_layers_say_where_they_are(model):
    layers = rotary_layers(model)
    assert [(item.index, item.path) for item in layers] == [(i, f"model.layers.{i}.self_attn") for i in range(3)]
