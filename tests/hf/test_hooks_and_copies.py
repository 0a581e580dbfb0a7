"""Other things that hold a model's forward or copy the model: device hooks, saving, deep copies."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from safetensors.torch import load_file
from tests.hf import families

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.heads import HeadSelection
from ropewalk.hf import handle_of, install, installed


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
