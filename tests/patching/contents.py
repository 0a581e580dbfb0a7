"""Encodings that act at attention, made for whatever model a test has."""

from __future__ import annotations

from typing import Any

import torch
from tests.patching import families
from torch import nn

from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.fire import FIRE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.model_rotation import rotary_layers
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.t5 import T5Bias
from ropewalk.heads import HeadSelection
from ropewalk.patching.compatibility import observe

KINDS = ("pope", "alibi", "t5", "kerple", "fire", "rope", "dope")
# Exact positions, drawn-out rules: what separates these from noise is 1e-2, what floats leave is 1e-6.
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 0}


def encoding(model: nn.Module, kind: str, **options: Any) -> Encoding:
    """An encoding of this kind with the model's own sizes."""
    layers = rotary_layers(model)
    shapes = observe(model, layers)
    assert shapes is not None
    first = shapes[min(shapes)]
    if kind == "pope":
        groups = {
            index: shape.num_kv_heads if shape.attended_kv_heads is None else shape.attended_kv_heads
            for index, shape in shapes.items()
        }
        own = {
            layer.index: PoPE(layer.rope.head_dim, groups.get(layer.index, first.num_kv_heads), **options)
            for layer in layers
        }
        return own[layers[0].index] if len(set(own.values())) == 1 else PerLayer(tuple(own.items()))
    if kind == "rope":
        return RoPE.from_model(model)
    if kind == "dope":
        return DoPE(RoPE.from_model(model), HeadSelection([(0, 0)]), original_length=16, **options)
    return {"alibi": ALiBi, "t5": T5Bias, "kerple": KERPLE, "fire": FIRE}[kind](first.num_heads, **options)


@torch.no_grad()
def learn(model: nn.Module, seed: int = 5) -> None:
    """Random numbers for everything that the installed encoding learns, each layer its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".position_encoding." in name:
            low, high = (-3.0, 0.0) if name.endswith("delta") else (-1.0, 1.0)
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * (high - low) + low)


def learned(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the installed encoding learns, by name."""
    return {name: value for name, value in model.named_parameters() if ".position_encoding." in name}


def fed(model: Any, x: torch.Tensor, ends: tuple[int, ...], **first: Any) -> torch.Tensor:
    """The logits of x (B, N), read in chunks up to these ends, each on top of one cache."""
    begin, parts, cache = 0, [], first.pop("past_key_values", None)
    for end in (*ends, x.shape[1]):
        out = model(x[:, begin:end], past_key_values=cache, use_cache=True)
        parts, cache, begin = [*parts, out.logits], out.past_key_values, end
    return torch.cat(parts, dim=1)


def ready(name: str, **changes: Any) -> Any:
    """A family's tiny model that generates without stopping early."""
    model: Any = families.build(name, **changes)
    model.generation_config.eos_token_id = None
    return model
