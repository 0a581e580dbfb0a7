"""LoRA by PEFT around a model with an encoding that learns: `modules_to_save` trains and keeps it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.patching import contents, families
from tests.patching.contents import CLOSE

import ropewalk
from ropewalk.patching import handle_of, install

peft: Any = pytest.importorskip("peft")


@pytest.fixture
def model() -> Any:
    return families.build("llama", num_hidden_layers=2)


def adapted(model: Any, **options: Any) -> Any:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(model, config)


def train(model: Any, steps: int = 3) -> None:
    x = families.tokens(2, 12)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["pope", "t5", "kerple", "fire"])
def test_trained_merged_and_saved(model, kind, tmp_path):
    x = families.tokens(1, 12)
    install(model, contents.encoding(model, kind))
    contents.learn(model)
    plain, start = model(x).logits.detach(), {n: p.detach().clone() for n, p in contents.learned(model).items()}
    whole = adapted(model, modules_to_save=["position_encoding"])
    assert torch.equal(whole(input_ids=x).logits, plain)
    trainable = {name for name, p in whole.named_parameters() if p.requires_grad}
    assert len([n for n in trainable if "position_encoding.modules_to_save" in n]) == len(start)
    train(whole)
    trained = whole(input_ids=x).logits.detach()
    assert not torch.allclose(trained, plain, **CLOSE)
    with whole.disable_adapter():  # what was before, delta included
        torch.testing.assert_close(whole(input_ids=x).logits, plain, **CLOSE)
    whole.save_pretrained(tmp_path / "adapter")
    merged = whole.merge_and_unload()
    assert merged is model and contents.learned(merged).keys() == start.keys()
    changed = {name: not torch.equal(p, start[name]) for name, p in contents.learned(merged).items()}
    assert all(moved for name, moved in changed.items() if not name.endswith("second.bias"))  # no score feels that one
    torch.testing.assert_close(merged(x).logits, trained, **CLOSE)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(ropewalk.load(tmp_path / "merged")(x).logits, trained, **CLOSE)
    handle_of(merged).remove()
    assert not contents.learned(merged)


def test_an_adapter_comes_back_onto_a_model_with_the_encoding(model, tmp_path):
    x, twin = families.tokens(1, 12), families.build("llama", num_hidden_layers=2)
    for one in (model, twin):
        install(one, contents.encoding(one, "pope"))
        contents.learn(one)
    whole = adapted(model, modules_to_save=["position_encoding"])
    train(whole)
    whole.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = whole.eval()(input_ids=x).logits
        again = peft.PeftModel.from_pretrained(twin, tmp_path).eval()
        torch.testing.assert_close(again(input_ids=x).logits, expected, **CLOSE)
        tokens = again.generate(input_ids=x, max_new_tokens=4, do_sample=False)
        assert torch.equal(tokens, whole.generate(input_ids=x, max_new_tokens=4, do_sample=False, use_cache=False))


def test_without_modules_to_save_the_encoding_stays_as_it_is(model):
    install(model, contents.encoding(model, "pope"))
    contents.learn(model)
    before = {name: p.detach().clone() for name, p in contents.learned(model).items()}
    whole = adapted(model)
    train(whole)
    after = contents.learned(whole.merge_and_unload())
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_installing_after_peft(model):
    """The model inside is what gets the encoding; the adapter goes on as it was."""
    whole, x = adapted(model), families.tokens(1, 12)
    handle = install(whole, contents.encoding(whole, "pope"))
    contents.learn(whole)
    for p in contents.learned(whole).values():
        assert p.requires_grad
    train(whole)
    changed = whole(input_ids=x).logits.detach()
    handle.remove()
    assert not torch.allclose(whole(input_ids=x).logits, changed, **CLOSE)


def test_installed_after_peft_merged_and_saved(model, tmp_path):
    """What is saved then is the model inside: it says which encoding it has, though the wrapper got it."""
    whole, x = adapted(model), families.tokens(1, 12)
    install(whole, contents.encoding(whole, "pope"))
    contents.learn(whole)
    expected = whole(input_ids=x).logits.detach()
    whole.merge_and_unload().save_pretrained(tmp_path)
    torch.testing.assert_close(ropewalk.load(tmp_path)(x).logits, expected, **CLOSE)
