"""A model's own rotation, read off the model: which layers rotate, and with which RoPE."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import LAYOUTS, RoPE, rotate
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.rebind import global_names, innermost_globals
from ropewalk.scaling import Given, Rule, rule_from_hf

APPLY = "apply_rotary_pos_emb"
HOOKED = "_old_forward"  # where accelerate's device hooks keep the forward that they wrap


@dataclass(frozen=True)
class RotaryLayer:
    """One attention layer that rotates its queries and keys."""

    index: int
    path: str
    module: nn.Module
    rotary: nn.Module
    rope: RoPE


def rotary_layers(model: nn.Module) -> tuple[RotaryLayer, ...]:
    """The model's rotary attention layers in order, each with the RoPE that it was made with.

    Raises:
        UnsupportedModelError: no rotary attention, or one that can't be served; the text says which class
        and why.
    """
    attentions = _attentions(model)
    layers = []
    for order, (path, module) in enumerate(attentions):
        rotary = _rotary_module(model, path, type(module).__name__)
        index = getattr(module, "layer_idx", None)
        index = order if index is None else index
        layers.append(RotaryLayer(index, path, module, rotary, _read_rope(model, module, rotary, index)))
    return tuple(layers)


def own_rotation(model: nn.Module) -> RoPE | PerLayer:
    """The model's own RoPE, or a PerLayer of them where layers differ."""
    layers = rotary_layers(model)
    if len({layer.rope for layer in layers}) == 1:
        return layers[0].rope
    return PerLayer(tuple((layer.index, layer.rope) for layer in layers))


def is_own_rotation(model: nn.Module, encoding: Encoding) -> bool:
    """Whether an encoding, such as a RoPE that a model was saved with, is the rotation of the model's architecture."""
    return _with_width(encoding) == own_rotation(model)


def _with_width(encoding: Encoding) -> Encoding:
    """A RoPE as a model's own is read, with its width told also where all channels turn; others as they are."""
    if isinstance(encoding, PerLayer):
        return encoding.map(lambda _, one: _with_width(one))
    return dataclasses.replace(encoding, rotary_dim=encoding.width) if isinstance(encoding, RoPE) else encoding


def model_config(model: nn.Module) -> Any:
    """The part of a model's config that describes its text decoder."""
    config = getattr(model, "config", None)
    if config is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no config: not a Hugging Face model")
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers that holds all rotary attention layers of a model."""
    path = rotary_layers(model)[0].path.split(".")
    module: Any = model
    for name in path:
        if isinstance(module, nn.ModuleList):
            return module
        module = getattr(module, name)
    raise UnsupportedModelError(f"{type(model).__name__}: {'.'.join(path)} isn't inside a list of layers")


def layer_forward(module: nn.Module) -> Any:
    """The forward that a module runs, beneath a device hook where there is one."""
    return getattr(module, HOOKED, None) or module.__dict__.get("forward") or type(module).forward


def forward_name(module: nn.Module) -> str:
    """The attribute of a module under which another forward takes its own's place, beneath a device hook."""
    return HOOKED if HOOKED in module.__dict__ else "forward"


@contextmanager
def forward_as(module: nn.Module, forward: Any, name: str = "forward") -> Iterator[None]:
    """Another forward for a module in a with block; what its instance held under `name` before comes back."""
    before = module.__dict__.get(name)
    module.__dict__[name] = forward
    try:
        yield
    finally:
        module.__dict__.pop(name, None)
        if before is not None:
            module.__dict__[name] = before


def _attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    found = []
    for path, module in model.named_modules():
        try:
            names = global_names(layer_forward(module))
        except TypeError:
            continue
        rotating = {name for name in names if name.startswith("apply_rotary")}
        if not rotating or "vision" in type(module).__name__.lower():
            continue
        if rotating != {APPLY}:
            raise UnsupportedModelError(
                f"{type(module).__name__} rotates with {', '.join(sorted(rotating))}, "
                f"not with {APPLY} alone: this kind of attention isn't served"
            )
        found.append((path, module))
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no layer that calls {APPLY}: no rotary attention that can be served"
        )
    return found


def _rotary_module(model: nn.Module, attention_path: str, kind: str) -> nn.Module:
    """The one module with inverse frequencies that sits beside or above an attention layer."""
    found: list[nn.Module] = []
    for path, module in model.named_modules():
        has_frequencies = any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
        home = path.rpartition(".")[0]
        if has_frequencies and (not home or f"{attention_path}.".startswith(f"{home}.")):
            found.append(module)
    if len(found) != 1:
        names = ", ".join(type(module).__name__ for module in found) or "none"
        raise UnsupportedModelError(
            f"{kind} ({attention_path}) needs one module with inv_freq beside or above it; found: {names}"
        )
    return found[0]


def _read_rope(model: nn.Module, attention: nn.Module, rotary: nn.Module, index: int) -> RoPE:
    config = model_config(model)
    kind = _layer_type(attention, config, index, rotary)
    of = f"{kind}_" if kind else ""
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = dict((parameters.get(kind) if kind else parameters) or {})
    # Kinds whose frequencies move with the length that was read last keep those that they began with beside.
    moves = parameters.get("rope_type") in ("dynamic", "longrope") and hasattr(rotary, f"{of}original_inv_freq")
    frequencies = getattr(rotary, f"{of}original_inv_freq" if moves else f"{of}inv_freq").detach()
    frequencies = frequencies if frequencies.is_meta else frequencies.cpu()
    scale = float(getattr(rotary, f"{of}attention_scaling", 1.0))
    base = float(parameters.get("rope_theta") or 10000.0)
    rotary_dim = 2 * frequencies.numel()
    head_dim = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    head_dim = max(int(head_dim or config.hidden_size // config.num_attention_heads), rotary_dim)
    rule = _read_rule(parameters, config, rotary_dim, base, frequencies, scale)
    layout = _read_layout(attention, rotary_dim)
    return RoPE(head_dim, base=base, rule=rule, layout=layout, rotary_dim=rotary_dim)


def _layer_type(attention: nn.Module, config: Any, index: int, rotary: nn.Module) -> str | None:
    """The layer's type where the rotary module holds frequencies per type, else None."""
    if hasattr(rotary, "inv_freq"):
        return None
    kind = getattr(attention, "layer_type", None) or config.layer_types[index]
    if not hasattr(rotary, f"{kind}_inv_freq"):
        raise UnsupportedModelError(f"{type(rotary).__name__} has no frequencies for layer type {kind}")
    return str(kind)


def _read_rule(
    parameters: dict[str, Any], config: Any, rotary_dim: int, base: float, frequencies: Tensor, scale: float
) -> Rule | None:
    """The named rule if it gives the model's own numbers, else those numbers themselves."""
    try:
        rule = rule_from_hf(parameters, config.max_position_embeddings)
        schedule = RoPE(rotary_dim, base=base, rule=rule).schedule()
    except (ArgumentError, AttributeError, KeyError):
        if frequencies.is_meta:
            raise UnsupportedModelError(
                "the model's frequencies follow no known rule and have no numbers on the meta device"
            ) from None
        return Given(tuple(frequencies.tolist()), scale)
    if frequencies.is_meta:
        return rule
    # Buffers cast to half precision (`model.half()`) keep 8 to 11 bits: compare what survived the cast.
    same = torch.equal(schedule.frequencies.to(frequencies.dtype), frequencies)
    if same and abs(schedule.attention_scale - scale) < 1e-9:
        return rule
    return Given(tuple(frequencies.float().tolist()), scale)


def _read_layout(attention: nn.Module, rotary_dim: int) -> str:
    """Try the attention's own function on random vectors and see which pair layout gives its numbers."""
    # The class's own forward: the layer's may be a copy in which the name means an encoder.
    apply = innermost_globals(type(attention).forward, APPLY)[APPLY]
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, 4, rotary_dim, generator=generator)
    for layout in LAYOUTS:
        cos, sin = RoPE(rotary_dim, layout=layout).tables(torch.arange(4)[None])
        for tables in _table_forms(layout, cos, sin):
            try:
                turned = apply(q, q, *tables)
            except Exception:  # a function of another signature or shape: not this layout
                continue
            if (
                isinstance(turned, tuple)
                and len(turned) == 2
                and torch.allclose(turned[0], rotate(q, cos, sin, layout), atol=1e-5)
            ):
                return layout
    raise UnsupportedModelError(
        f"{type(attention).__name__}: its {APPLY} turns no layout of {', '.join(LAYOUTS)} as RoPE does"
    )


def _table_forms(layout: str, cos: Tensor, sin: Tensor) -> list[tuple[Tensor, Tensor]]:
    """How (cos, sin) may be handed on: the bands twice, a number a channel, or the bands once."""
    bands = slice(0, None, 2) if layout == "interleaved" else slice(0, cos.shape[-1] // 2)
    once = cos[..., bands], sin[..., bands]
    twice = torch.cat([once[0], once[0]], dim=-1), torch.cat([once[1], once[1]], dim=-1)
    return [twice, (cos, sin), once]
