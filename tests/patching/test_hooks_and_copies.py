"""Other things that hold a model's forward or copy the model: device hooks, saving, deep copies."""

from __future__ import annotations

import copy
import json
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from safetensors.torch import load_file
from tests.patching import contents, families

import ropewalk
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.heads import HeadSelection
from ropewalk.patching import handle_of, install, installed


@pytest.fixture
def model() -> Any:
    return families.build("llama")


def dope(model: Any, mode: str = "all") -> DoPE:
    return DoPE(RoPE.from_model(model), HeadSelection([(0, 0), (2, 2), (2, 3)]), mode, original_length=16)


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
    assert configs[1].pop("position_encoding") == dope(model).to_dict()
    assert configs[0] == configs[1]
    assert not hasattr(model.config, "position_encoding")


@torch.no_grad()
def test_models_made_from_one_config_are_saved_each_with_its_own_encoding(model, tmp_path):
    """transformers keeps a config by reference: what is said of one model mustn't hold for the other."""
    x = families.tokens(1, 12)
    install(model, ALiBi(4))
    other = type(model)(model.config).eval()
    other.save_pretrained(tmp_path / "other")
    loaded = ropewalk.load(tmp_path / "other")
    assert handle_of(loaded) is None and torch.equal(loaded(x).logits, other(x).logits)
    handle = install(other, NoPE())
    handle.remove()
    model.save_pretrained(tmp_path / "model")
    loaded = ropewalk.load(tmp_path / "model")
    assert handle_of(loaded).encoding == ALiBi(4) and torch.equal(loaded(x).logits, model(x).logits)


@torch.no_grad()
def test_saving_leaves_the_model_its_config_and_removing_its_method(model, tmp_path):
    config, before = model.config, {path: set(vars(m)) for path, m in model.named_modules()}
    handle = install(model, ALiBi(4))
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "part")
    for name in ("whole", "part"):
        entry = json.loads((tmp_path / name / "config.json").read_text())["position_encoding"]
        assert entry == ALiBi(4).to_dict()
    with pytest.raises(RuntimeError, match="full"):
        model.save_pretrained(tmp_path / "failed", state_dict=_Full())
    assert model.config is config and model.model.config is config and not hasattr(config, "position_encoding")
    twin = copy.deepcopy(model)
    handle.remove()
    assert {path: set(vars(m)) for path, m in model.named_modules()} == before
    model.save_pretrained(tmp_path / "plain")
    assert "position_encoding" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    twin.lm_head.weight.zero_()
    twin.save_pretrained(tmp_path / "twin")
    loaded = ropewalk.load(tmp_path / "twin")
    assert handle_of(loaded).encoding == ALiBi(4) and loaded.lm_head.weight.abs().max() == 0


class _Full(dict[str, torch.Tensor]):
    def __iter__(self) -> Any:
        raise RuntimeError("the disk is full")

    items = keys = values = copy = __iter__


@torch.no_grad()
@pytest.mark.parametrize("encoding", [PoPE(8, 2, delta="uniform"), KERPLE(4)], ids=lambda encoding: encoding.kind)
def test_what_learns_is_where_an_offloaded_layer_computes(model, encoding):
    """accelerate keeps offloaded weights on the meta device between passes."""
    x = families.tokens(1, 12)
    with installed(model, encoding):
        contents.learn(model)
        expected = model(x).logits
    offloaded = accelerate.cpu_offload(families.build("llama"), execution_device=torch.device("cpu"))
    assert offloaded.model.layers[0].self_attn.q_proj.weight.is_meta
    with installed(offloaded, encoding):
        assert {p.device.type for p in contents.learned(offloaded).values()} == {"cpu"}
        contents.learn(offloaded)
        assert torch.equal(offloaded(x).logits, expected)


def test_what_learns_stays_where_it_was_made_without_weights_to_follow():
    with torch.device("meta"):
        model = families.build("llama")
    with installed(model, KERPLE(4)):
        assert {p.device.type for p in contents.learned(model).values()} == {"cpu"}


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
