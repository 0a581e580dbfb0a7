"""Encodings that learn, as parts of a model: trained, saved, loaded, copied, compiled."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.patching import contents, families
from tests.patching.contents import CLOSE, learned
from transformers import Trainer, TrainingArguments

import ropewalk
from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import DamagedFileError
from ropewalk.heads import HeadSelection
from ropewalk.patching import handle_of, install, installed
from ropewalk.scaling import YaRN

LEARNING = ("pope", "t5", "kerple", "fire")
SAVED: dict[str, tuple[Encoding, dict[str, Any]]] = {
    "pope": (PoPE(8, 2, delta="uniform"), {}),
    "kerple": (KERPLE(4, form="power"), {}),
    "yarn": (RoPE(8, rule=YaRN(4.0, 16)), {}),
    "yarn on content": (RoPE(8, rule=YaRN(4.0, 16)), {"cache": "content"}),
    "dope when long": (DoPE(RoPE(8), HeadSelection([(0, 1)])), {"when": "long", "original_length": 10}),
    "pope when long": (PoPE(8, 2), {"when": "long", "original_length": 10}),
}


@pytest.fixture
def model() -> Any:
    return families.build("llama", num_hidden_layers=2)


def gradients(model: Any, x: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x, labels=x, use_cache=False, **options).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", LEARNING)
def test_what_it_learns_is_part_of_each_attention_layer(model, kind):
    before, x = set(model.state_dict()), families.tokens(2, 12)
    with installed(model, contents.encoding(model, kind)) as changed:
        names = {name for name in learned(changed)}
        assert set(model.state_dict()) == before | names
        assert all(any(f"layers.{i}.self_attn.position_encoding." in name for name in names) for i in range(2))
        contents.learn(model)
        found, start = gradients(model, x), model(x).logits.detach()
        # FIRE's last bias moves all scores of a query alike, which a softmax doesn't feel.
        assert all(found[name].abs().max() > 1e-6 for name in names if not name.endswith("second.bias"))
        optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if name in names], lr=0.1)
        optimizer.step()
        assert not torch.equal(model(x).logits, start)
    assert set(model.state_dict()) == before


@pytest.mark.parametrize("kind", LEARNING)
def test_layers_that_never_rotate_learn_nothing(kind, tmp_path):
    """A module there would never be asked, and its parameters would get no gradient."""
    model, x = families.build("smollm3"), families.tokens(2, 12)
    install(model, contents.encoding(model, kind))
    contents.learn(model)
    assert {name.split(".")[2] for name in learned(model)} == {"0", "2"}
    found = gradients(model, x)  # of every parameter
    assert found.keys() > learned(model).keys()
    model.save_pretrained(tmp_path)
    loaded = ropewalk.load(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(loaded(x).logits, model(x).logits)
    handle_of(model).remove()
    assert not learned(model)


def test_a_table_for_the_tokens_is_held_where_the_first_layer_never_rotates():
    model, x = families.build("smollm3", no_rope_layers=[0, 1, 1]), families.tokens(2, 12)
    with installed(model, Learned(32, 64)):
        assert list(learned(model)) == ["model.layers.0.self_attn.position_encoding.table"]
        assert all(gradient.abs().max() > 0 for name, gradient in gradients(model, x).items() if "table" in name)


@torch.no_grad()
@pytest.mark.parametrize("case", sorted(SAVED))
@pytest.mark.parametrize("shards", ["1GB", "50KB"])
def test_loading_brings_back_model_and_encoding(model, case, shards, tmp_path):
    encoding, options = SAVED[case]
    x = families.tokens(1, 12)
    install(model, encoding, **options)
    contents.learn(model)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shards == "50KB")
    loaded = ropewalk.load(tmp_path)
    assert handle_of(loaded).encoding == encoding
    assert learned(loaded).keys() == learned(model).keys()
    for tokens in (x, x[:, :9]):  # beyond and within the limit of 10
        ours, theirs = (m(tokens, use_cache=True) for m in (loaded, model))
        assert torch.equal(ours.logits, theirs.logits)
        caches = [out.past_key_values.layers[0].keys for out in (ours, theirs)]
        assert torch.equal(*caches)
    # What was loaded can be saved again, and taken out again.
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(ropewalk.load(tmp_path / "again")(x).logits, model(x).logits)
    handle_of(loaded).remove()
    handle_of(model).remove()
    assert torch.equal(loaded(x).logits, model(x).logits)
    assert not hasattr(loaded.config, "position_encoding")


@torch.no_grad()
def test_loaded_in_half_precision(model, tmp_path):
    x = families.tokens(1, 12)
    with installed(model, PoPE(8, 2)):
        contents.learn(model)
        model.save_pretrained(tmp_path)
        expected = model(x).logits
    half = ropewalk.load(tmp_path, dtype="bfloat16")
    found = half(x).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


DAMAGES: dict[str, Any] = {
    "a word": "pope",
    "no kind": {"head_dim": 8},
    "unknown kind": {"kind": "pop", "head_dim": 8},
    "a field too many": {"kind": "pope", "head_dim": 8, "num_kv_heads": 2, "layers": 3},
    "a field too few": {"kind": "pope", "head_dim": 8},
    "another size": {"kind": "pope", "head_dim": 8, "num_kv_heads": 4},
    "a wrong type": {"kind": "pope", "head_dim": "8", "num_kv_heads": 2},
    "a wrong rule": {"kind": "rope", "head_dim": 8, "rule": {"name": "yearn"}},
    "layers that are none": {"kind": "per_layer", "layers": [1, 2]},
    "other options": {"kind": "rope", "head_dim": 8, "installed": {"where": "here"}},
    "options that are none": {"kind": "rope", "head_dim": 8, "installed": "long"},
    "an option's value": {"kind": "rope", "head_dim": 8, "installed": {"when": "soon"}},
    "an option's type": {"kind": "rope", "head_dim": 8, "installed": {"cache": ["content"]}},
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_entry_is_one_line(model, damage, tmp_path):
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"position_encoding": DAMAGES[damage]}))
    refused(tmp_path, "position_encoding can't be installed")


@pytest.mark.parametrize("damage", ["missing", "another shape", "cut short"])
def test_damaged_weights_are_one_line(model, damage, tmp_path):
    with installed(model, PoPE(8, 2)):
        model.save_pretrained(tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.1.self_attn.position_encoding.delta"
    weights = load_file(file)
    if damage == "missing":
        del weights[name]
    if damage == "another shape":
        weights[name] = weights[name][:1].clone()
    save_file(weights, file, metadata={"format": "pt"})
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-40])
    refused(tmp_path, "can't be loaded" if damage == "cut short" else f"{name} is missing or of another shape")


def refused(folder: Path, text: str) -> None:
    with pytest.raises(DamagedFileError, match=text) as caught:
        ropewalk.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


class Texts(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Eight rows of tokens, each its own label."""

    def __init__(self) -> None:
        self._rows = families.tokens(8, 12)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._rows[index], "labels": self._rows[index]}


def trainer(model: Any, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=2,
        save_strategy="steps",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=Texts())


def losses(run: Trainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in run.state.log_history if "loss" in entry}


def test_the_trainer_trains_saves_and_resumes(tmp_path):
    def fresh() -> Any:
        made = families.build("llama", num_hidden_layers=2, seed=1)
        install(made, PoPE(8, 2))
        contents.learn(made)
        return made

    whole = trainer(fresh(), tmp_path)
    start = {name: value.detach().clone() for name, value in learned(whole.model).items()}
    whole.train()
    trained = learned(whole.model)
    assert all((trained[name] - start[name]).abs().max() > 1e-3 for name in start)
    resumed = trainer(fresh(), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(whole).keys() == {1, 2, 3, 4}
    assert {step: losses(resumed)[step] for step in (3, 4)} == {step: losses(whole)[step] for step in (3, 4)}
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    loaded, x = ropewalk.load(tmp_path / "checkpoint-4"), families.tokens(1, 12)
    assert torch.equal(loaded(x).logits, whole.model.eval()(x).logits)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", contents.KINDS)
def test_gradient_checkpointing_changes_no_gradient(model, kind, reentrant):
    x = families.tokens(2, 12)
    with installed(model.train(), contents.encoding(model, kind), cache="content"):
        contents.learn(model)
        expected = gradients(model, x)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        seen = gradients(model, x)
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", LEARNING)
@pytest.mark.parametrize("name", ["llama", "qwen3"])  # the second one's q/k norm hands over float32 under autocast
def test_autocast_runs_close_to_float32(name, kind):
    model, x = families.build(name), families.tokens(2, 12)
    with installed(model, contents.encoding(model, kind)):
        contents.learn(model)
        expected, logits = gradients(model, x), model(x).logits
        with torch.autocast("cpu", torch.bfloat16):
            seen, rough = gradients(model, x), model(x).logits
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - logits).abs().max() < 0.05 * logits.abs().max()
        size = max(float(expected[parameter].abs().max()) for parameter in learned(model))
        for parameter in learned(model):
            assert (seen[parameter] - expected[parameter]).abs().max() < 0.1 * size, parameter


def test_reading_in_inference_mode_before_training(model):
    x, mask = families.tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    with installed(model, PoPE(8, 2)):
        with torch.inference_mode():
            model(x, attention_mask=mask)
        assert all(g.isfinite().all() for g in gradients(model, x, attention_mask=mask).values())


@torch.no_grad()
@pytest.mark.parametrize("kind", LEARNING)
def test_a_deep_copy_has_parameters_of_its_own(model, kind):
    x = families.tokens(1, 12)
    plain = model(x).logits
    handle = install(model, contents.encoding(model, kind))
    contents.learn(model)
    expected, twin = model(x).logits, copy.deepcopy(model)
    assert learned(twin).keys() == learned(model).keys()
    assert not {id(p) for p in learned(twin).values()} & {id(p) for p in learned(model).values()}
    contents.learn(twin, seed=6)
    assert torch.equal(model(x).logits, expected) and not torch.equal(twin(x).logits, expected)
    handle.remove()
    assert torch.equal(model(x).logits, plain) and not learned(model)
    contents.learn(twin)
    assert torch.equal(twin(x).logits, expected)
    handle_of(twin).remove()
    assert torch.equal(twin(x).logits, plain) and not learned(twin)


@pytest.mark.slow
@pytest.mark.parametrize("kind", contents.KINDS)
def test_torch_compile_traces_the_whole_graph(kind):
    model, x = families.build("llama", num_hidden_layers=1), families.tokens(2, 12)
    torch._dynamo.reset()
    with installed(model, contents.encoding(model, kind), cache="content"):
        contents.learn(model)
        expected, logits = gradients(model, x), model(x).logits
        compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x).logits, logits, **CLOSE)
        model.zero_grad()
        compiled(x, labels=x, use_cache=False).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()
