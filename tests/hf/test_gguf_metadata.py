"""What a GGUF file says of positions is what the model turns by, or is refused by key."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.hf.test_loading import write_gguf

from ropewalk.errors import ArgumentError
from ropewalk.hf.gguf_metadata import with_rotation
from ropewalk.hf.loading import load_model

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


def both(writer: gguf.GGUFWriter) -> None:
    scaled(gguf.RopeScalingType.YARN, 4.0, 64)(writer)
    writer.add_tensor("rope_freqs.weight", np.full(4, 2, np.float32))


@pytest.mark.parametrize(
    ("add", "key"),
    [
        (scaled(gguf.RopeScalingType.LONGROPE, 4.0, 64), "llama.rope.scaling.type='longrope'"),
        (scaled(gguf.RopeScalingType.YARN, 4.0), "llama.rope.scaling.original_context_length=None"),
        (lambda writer: writer.add_tensor("rope_factors_long.weight", np.full(4, 2, np.float32)), "rope_factors_long"),
        (both, r"rope_freqs\.weight"),
        (lambda writer: writer.add_uint16("split.count", 3), r"one part of 3.*llama-gguf-split --merge"),
    ],
)
def test_what_can_not_be_had_exactly_is_refused_by_key(tmp_path: Path, add: Any, key: str) -> None:
    with pytest.raises(ArgumentError, match=key):
        load_model(write_gguf(tmp_path / "m.gguf", add))


def test_a_rotation_for_each_kind_of_layer_is_refused() -> None:
    config = SimpleNamespace(rope_parameters={"full_attention": {"rope_type": "default"}})
    with pytest.raises(ArgumentError, match="each kind of layer"):
        with_rotation(config, {"rope_type": "linear", "factor": 8.0})
