"""What a GGUF file says of positions is what the model turns by, or is refused by key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.hub.test_loading import write_gguf
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.errors import ArgumentError
from ropewalk.hub import gguf_metadata
from ropewalk.hub.loading import load_model

BASE, CHANNELS = 5000.0, 8
PLAIN = BASE ** (-torch.arange(0, CHANNELS, 2) / CHANNELS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))


def scaled(kind: gguf.RopeScalingType | None, factor: float, original: int = 0, **fields: float) -> Any:
    def add(writer: gguf.GGUFWriter) -> None:
        if kind is not None:
            writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(factor)
        if original:
            writer.add_rope_scaling_orig_ctx_len(original)
        for name, value in fields.items():
            writer.add_float32(f"llama.rope.scaling.{name}", value)

    return add


def rotary(path: Path) -> Any:
    model: Any = load_model(path)[0]
    return model.model.rotary_emb


def yarn(factor: float, original: int, fast: float = 32.0, slow: float = 1.0) -> torch.Tensor:
    """YaRN (arXiv 2309.00071, section 3.2), its ramp between the channels of `fast` and `slow` turns."""

    def channel(turns: float) -> float:
        return CHANNELS * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    low, high = max(math.floor(channel(fast)), 0), min(math.ceil(channel(slow)), CHANNELS - 1)
    ramp = ((torch.arange(CHANNELS // 2) - low) / (max(high - low, 0.001))).clamp(0, 1)
    return PLAIN / factor * ramp + PLAIN * (1 - ramp)


@pytest.mark.parametrize("kind", [gguf.RopeScalingType.LINEAR, None])  # llama.cpp takes a bare factor as linear
@pytest.mark.parametrize("copy", ["first", "kept"])
def test_linear(tmp_path: Path, kind: Any, copy: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", scaled(kind, 4.0))
    if copy == "kept":
        load_model(path)
    torch.testing.assert_close(rotary(path).inv_freq, PLAIN / 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_yarn_with_its_temperature_in_every_dtype(tmp_path: Path, dtype: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", scaled(gguf.RopeScalingType.YARN, 4.0, 640, attn_factor=0.5))
    model: Any = load_model(path, dtype=dtype)[0]
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, yarn(4.0, 640))
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.5 * (0.1 * math.log(4.0) + 1))


def test_yarn_with_its_own_turns(tmp_path: Path) -> None:
    fields = {"yarn_beta_fast": 16.0, "yarn_beta_slow": 4.0}
    path = write_gguf(tmp_path / "m.gguf", scaled(gguf.RopeScalingType.YARN, 2.0, 6400, **fields))
    torch.testing.assert_close(rotary(path).inv_freq, yarn(2.0, 6400, 16.0, 4.0))
    assert not torch.allclose(yarn(2.0, 6400, 16.0, 4.0), yarn(2.0, 6400))


def test_divisors_hold_at_every_length(tmp_path: Path) -> None:
    divisors = np.array([1, 2, 4, 8], np.float32)
    path = write_gguf(tmp_path / "m.gguf", lambda writer: writer.add_tensor("rope_freqs.weight", divisors))
    module = rotary(path)
    for length in (8, 64, 200):
        module(torch.zeros(1, 1, 1), torch.arange(length)[None])
        torch.testing.assert_close(module.inv_freq, PLAIN / torch.from_numpy(divisors))
    assert module.attention_scaling == 1.0


@pytest.mark.parametrize(
    "add",
    [
        lambda writer: None,
        lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
        scaled(gguf.RopeScalingType.NONE, 4.0),
        scaled(gguf.RopeScalingType.LINEAR, 1.0),
    ],
)
def test_plain_ones_stay_plain(tmp_path: Path, add: Any) -> None:
    path = write_gguf(tmp_path / "m.gguf", add)
    torch.testing.assert_close(rotary(path).inv_freq, PLAIN)
    assert load_model(path)[0].config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("factor", [0.0, 2.0])  # the new name counts even where it says that nothing is scaled
def test_the_old_name_of_a_factor(tmp_path: Path, factor: float) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("llama.rope.scale_linear", 4.0)
        if factor == 0:
            writer.add_rope_scaling_factor(factor)

    torch.testing.assert_close(rotary(write_gguf(tmp_path / "m.gguf", add)).inv_freq, PLAIN / (4 if factor else 1))


def test_yarn_without_its_own_length_takes_the_context(tmp_path: Path) -> None:
    module = rotary(write_gguf(tmp_path / "m.gguf", scaled(gguf.RopeScalingType.YARN, 4.0)))
    torch.testing.assert_close(module.inv_freq, yarn(4.0, 64))
    assert module.attention_scaling == pytest.approx(0.1 * math.log(4.0) + 1)


@pytest.mark.parametrize("loads", [1, 2])
def test_a_factor_and_an_attention_factor_beside_divisors(tmp_path: Path, loads: int) -> None:
    divisors = np.array([1, 2, 4, 8], np.float32)

    def add(writer: gguf.GGUFWriter) -> None:
        scaled(gguf.RopeScalingType.LINEAR, 2.0, attn_factor=0.5)(writer)
        writer.add_tensor("rope_freqs.weight", divisors)

    path = write_gguf(tmp_path / "m.gguf", add)
    module = [rotary(path) for _ in range(loads)][-1]
    torch.testing.assert_close(module.inv_freq, PLAIN / torch.from_numpy(divisors) / 2)
    assert module.attention_scaling == 0.5


def longrope(writer: gguf.GGUFWriter, kind: bool = True, names: tuple[str, ...] = ("short", "long")) -> None:
    if kind:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_rope_scaling_attn_factors(1.25)
    for name in names:
        values = np.array([1, 1, 2, 2] if name == "short" else [1, 2, 8, 16], np.float32)
        writer.add_tensor(f"rope_factors_{name}.weight", values)


def test_longrope_by_length(tmp_path: Path) -> None:
    module = rotary(write_gguf(tmp_path / "m.gguf", longrope))
    for length, divisors in ((16, [1, 1, 2, 2]), (17, [1, 2, 8, 16]), (8, [1, 1, 2, 2])):
        module(torch.zeros(1, 1, 1), torch.arange(length)[None])
        torch.testing.assert_close(module.inv_freq, PLAIN / torch.tensor(divisors))
    assert module.attention_scaling == 1.25


def both(writer: gguf.GGUFWriter) -> None:
    scaled(gguf.RopeScalingType.YARN, 4.0, 64)(writer)
    writer.add_tensor("rope_freqs.weight", np.full(4, 2, np.float32))


@pytest.mark.parametrize(
    ("add", "key"),
    [
        (scaled(gguf.RopeScalingType.LONGROPE, 4.0, 64), "llama.rope.scaling.type='longrope'"),
        (lambda writer: longrope(writer, names=("long",)), "type='longrope'.*rope_factors_short.weight is missing"),
        (lambda writer: longrope(writer, kind=False), "rope_factors_"),
        (lambda writer: writer.add_string("llama.rope.scaling.type", "su"), "llama.rope.scaling.type='su'"),
        (scaled(gguf.RopeScalingType.LINEAR, -2.0), "llama.rope.scaling.factor=-2.0"),
        (scaled(gguf.RopeScalingType.LINEAR, 2.0, attn_factor=0.5), "llama.rope.scaling.attn_factor=0.5"),
        (scaled(gguf.RopeScalingType.YARN, 2.0, 32, yarn_log_multiplier=0.1), "yarn_log_multiplier=0.1"),
        (scaled(gguf.RopeScalingType.YARN, 2.0, 32, yarn_ext_factor=0.5), "llama.rope.scaling.yarn_ext_factor=0.5"),
        (scaled(gguf.RopeScalingType.LINEAR, 2.0, alpha=1000.0), "llama.rope.scaling.alpha=1000.0"),
        (lambda writer: writer.add_float32("llama.rope.unheard_of", 1.5), "llama.rope.unheard_of=1.5"),
        (
            lambda writer: writer.add_rope_dimension_sections([1, 1, 2, 0]),
            r"llama.rope.dimension_sections=\[1, 1, 2, 0\]",
        ),
        (lambda writer: writer.add_float32("llama.rope.freq_base_swa", 1e4), "llama.rope.freq_base_swa=10000.0"),
        (lambda writer: writer.add_tensor("rope_factors_long.weight", np.full(4, 2, np.float32)), "rope_factors_long"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.full(3, 2, np.float32)), "3 divisors for 8 channels"),
        (both, r"rope_freqs\.weight"),
        (lambda writer: writer.add_uint16("split.count", 3), r"one part of 3.*llama-gguf-split --merge"),
    ],
)
def test_what_can_not_be_had_exactly_is_refused_by_key(tmp_path: Path, add: Any, key: str) -> None:
    with pytest.raises(ArgumentError, match=key) as caught:
        load_model(write_gguf(tmp_path / "m.gguf", add))
    assert "\n" not in str(caught.value)


def test_a_part_is_known_by_its_name_where_its_fields_do_not_say(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"one part of 2.*llama-gguf-split --merge"):
        load_model(write_gguf(tmp_path / "m-00001-of-00002.gguf"))
    load_model(write_gguf(tmp_path / "n-00001-of-00002.gguf", lambda writer: writer.add_uint16("split.count", 0)))
    load_model(write_gguf(tmp_path / "m-00001-of-00001.gguf"))


# Architectures whose base or share of channels transformers' reader leaves out, or that turn layers by their kind.


def of(tmp_path: Path, architecture: str, *tensors: tuple[str, list[float]], **fields: Any) -> Any:
    """The config of a file that says no more than its sizes and the given fields under `rope.`."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(6)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(50)
    if architecture == "gemma3":
        writer.add_key_length(16)
    for name, value in fields.items():
        key = f"{architecture}.rope.{name.replace('__', '.')}"
        add: Any = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    for name, values in [("token_embd", [0.0]), *tensors]:
        writer.add_tensor(f"{name}.weight", np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = AutoConfig.from_pretrained(str(tmp_path), gguf_file=path.name)
    gguf_metadata.read_rotation(path).into(config)
    return config


def turned(config: Any) -> torch.Tensor:
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    models: Any = AutoModelForCausalLM
    found: torch.Tensor = models.from_config(type(config).from_dict(config.to_dict())).model.rotary_emb.inv_freq
    return found


def plain(base: float, channels: int) -> torch.Tensor:
    return base ** (-torch.arange(0, channels, 2) / channels)


@pytest.mark.parametrize(
    ("architecture", "fields", "wanted"),
    [
        ("stablelm", {"freq_base": 5000.0, "dimension_count": 8}, plain(5000.0, 8)),
        ("stablelm", {}, plain(10000.0, 16)),
        ("nemotron", {"freq_base": 5000.0, "dimension_count": 4}, plain(5000.0, 4)),
        ("phi3", {"dimension_count": 12}, plain(10000.0, 12)),
        ("starcoder2", {"freq_base": 5000.0, "dimension_count": 16}, plain(5000.0, 16)),
        ("starcoder2", {"freq_base": 5000.0, "scaling__factor": 2.0}, plain(5000.0, 16) / 2),
    ],
)
def test_base_and_channels(tmp_path: Path, architecture: str, fields: Any, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(turned(of(tmp_path, architecture, **fields)), wanted)


def test_the_two_lists_of_phi3(tmp_path: Path) -> None:
    lists = [("rope_factors_long", [2.0] * 6), ("rope_factors_short", [1.0] * 5 + [3.0])]
    fields = {"dimension_count": 12, "scaling__original_context_length": 32, "scaling__attn_factor": 1.5}
    config = of(tmp_path, "phi3", *lists, **fields)
    torch.testing.assert_close(turned(config), plain(10000.0, 12) / torch.tensor(lists[1][1]))
    assert config.original_max_position_embeddings == 32 and config.rope_parameters["attention_factor"] == 1.5


def test_a_rotation_for_each_kind_of_layer(tmp_path: Path) -> None:
    config = of(tmp_path, "gemma3", freq_base=5000.0, freq_base_swa=700.0)
    bases = {kind: of_kind["rope_theta"] for kind, of_kind in config.rope_parameters.items()}
    assert bases == {"full_attention": 5000.0, "sliding_attention": 700.0}


def test_gemma_3_scales_its_layers_without_a_window(tmp_path: Path) -> None:
    config = of(tmp_path, "gemma3", freq_base=5000.0, scaling__factor=8.0)
    models: Any = AutoModelForCausalLM
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    module = models.from_config(type(config).from_dict(config.to_dict())).model.rotary_emb
    torch.testing.assert_close(module.full_attention_inv_freq, plain(5000.0, 16) / 8)
    torch.testing.assert_close(module.sliding_attention_inv_freq, plain(10000.0, 16))


@pytest.mark.parametrize(
    ("architecture", "fields", "key"),
    [
        (
            "gemma3",
            {"scaling__type": "yarn"},
            "gemma3.rope.scaling.type='yarn': this architecture has a rotation for each",
        ),
        ("gemma3", {"dimension_count": 8}, "gemma3.rope.dimension_count=8"),
        ("starcoder2", {"dimension_count": 8}, "starcoder2.rope.dimension_count=8"),
        ("stablelm", {"dimension_count": 32}, "stablelm.rope.dimension_count=32"),
        ("phi3", {"scaling__factor": 2.0}, "phi3.rope.scaling.factor=2.0: this architecture has no such rotation"),
        ("gpt2", {"scaling__factor": 2.0}, "gpt2.rope.scaling.factor=2.0: this architecture doesn't turn"),
    ],
)
def test_what_an_architecture_lacks_is_refused(tmp_path: Path, architecture: str, fields: Any, key: str) -> None:
    with pytest.raises(ArgumentError, match=key):
        of(tmp_path, architecture, **fields)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", [None, {"rope_type": "linear", "factor": 4.0}])
def test_a_folder_in_half_precision_turns_by_exact_frequencies(
    tmp_path: Path, tiny_llama: Any, dtype: str, rule: dict[str, Any] | None
) -> None:
    _, tokenizer = load_model(write_gguf(tmp_path / "m.gguf"))
    if rule is not None:
        tiny_llama.config.rope_parameters |= rule
    tiny_llama.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    full, half = (load_model(tmp_path / "tiny", dtype=of)[0].model for of in ("float32", dtype))
    assert half.embed_tokens.weight.dtype == getattr(torch, dtype)
    for name in ("inv_freq", "original_inv_freq"):
        assert torch.equal(getattr(half.rotary_emb, name), getattr(full.rotary_emb, name))
        assert getattr(half.rotary_emb, name).dtype == torch.float32
