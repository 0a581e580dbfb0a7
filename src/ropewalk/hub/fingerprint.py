"""Which model is this? Its shape and a hash of its weights, to tell whether a plan was made for it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.encodings.model_rotation import model_config
from ropewalk.errors import ArgumentError
from ropewalk.patching.content_attention import is_own

# What `describe` tells, with the type of each value; every value but the model type may be None.
FIELDS: dict[str, type] = {
    "name": str,
    "revision": str,
    "model_type": str,
    "num_layers": int,
    "num_heads": int,
    "num_kv_heads": int,
    "head_dim": int,
    "base": float,
    "original_length": int,
    "fingerprint": str,
}
# A plan names layers and heads, so it can't be used where one of these differs.
ARCHITECTURE = ("model_type", "num_layers", "num_heads", "num_kv_heads", "head_dim")

_SAMPLES = 16
_OURS = ("ropewalk.encodings", "ropewalk.patching")


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hex, of the names and shapes of all parameters and of 16 evenly spaced values of each.

    The values are rounded to bfloat16, so that a float32 and a bfloat16 load of the same weights agree; a
    float16 load agrees unless a value was rounded twice. Modules that ropewalk put into the model don't
    count. Only the sampled values are copied, from whatever device they are on.

    Raises:
        ArgumentError: a parameter has no values (device meta).
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(_own_parameters(model)):
        if parameter.device.type == "meta":
            raise ArgumentError(
                "model", type(model).__name__, f"{name} has no values yet (device meta); load the model"
            )
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(_sample(parameter).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def learned_fingerprint(model: nn.Module) -> str:
    """SHA-256, in hex, of all that an installed encoding learned; empty for nothing."""
    own = sorted((name, parameter) for name, parameter in model.named_parameters() if is_own(name))
    digest = hashlib.sha256()
    for name, parameter in own:
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest() if own else ""


def describe(model: nn.Module) -> dict[str, Any]:
    """Name, revision, shape, base, training length and fingerprint of a model: JSON-ready, keys as `FIELDS`.

    What the config doesn't say is None, as is the fingerprint of a model whose weights are elsewhere (device
    meta).

    Raises:
        UnsupportedModelError: no config: not a Hugging Face model.
    """
    config = model_config(model)
    outer: Any = model.config
    heads = _integer(config, "num_attention_heads")
    return {
        "name": _text(outer, "_name_or_path"),
        "revision": _text(outer, "_commit_hash"),
        "model_type": _text(config, "model_type"),
        "num_layers": _integer(config, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": _integer(config, "num_key_value_heads") or heads,
        "head_dim": _head_dim(config, heads),
        "base": _base(config),
        "original_length": _integer(config, "max_position_embeddings"),
        "fingerprint": _fingerprint_or_none(model),
    }


def checked_description(model: Any) -> dict[str, Any]:
    """A copy of what `describe` gave; anything else is refused with an ArgumentError."""
    if not isinstance(model, dict):
        raise ArgumentError("model", model, "should be what describe(model) gives")
    for name in [*FIELDS.keys() - model.keys(), *model.keys() - FIELDS.keys()]:
        what = "is missing" if name in FIELDS else "is unknown"
        raise ArgumentError("model", name, f"{what}; it should be what describe(model) gives")
    for name, kind in FIELDS.items():
        value = model[name]
        if value is not None and type(value) is not kind:
            raise ArgumentError(f"model[{name!r}]", value, f"should be {kind.__name__} or None")
    return dict(model)


def _own_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    ours = [path for path, module in model.named_modules() if type(module).__module__.startswith(_OURS)]
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if not any(name.startswith(f"{path}.") for path in ours if path)
    ]


def _sample(parameter: Tensor) -> Tensor:
    """Evenly spaced values of a parameter, first and last included: up to (16,) bfloat16, on the CPU."""
    values = parameter.detach()
    count = min(_SAMPLES, values.numel())
    flat = torch.arange(count, device=values.device) * (values.numel() - 1) // max(count - 1, 1)
    # By coordinates: a flat view of a parameter that isn't contiguous would copy all of it.
    picked = values[torch.unravel_index(flat, values.shape)] if values.dim() else values.reshape(1)
    return picked.to(torch.bfloat16).cpu().contiguous()


def _fingerprint_or_none(model: nn.Module) -> str | None:
    if any(parameter.device.type == "meta" for _, parameter in _own_parameters(model)):
        return None
    return fingerprint(model)


def _text(config: Any, name: str) -> str | None:
    value = getattr(config, name, None)
    return value if isinstance(value, str) and value else None


def _integer(config: Any, name: str) -> int | None:
    """An integer of the config; None when it has none or, as in models whose layers differ, several."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _head_dim(config: Any, heads: int | None) -> int | None:
    width = _integer(config, "hidden_size")
    return _integer(config, "head_dim") or (width // heads if width and heads else None)


def _base(config: Any) -> float | None:
    """The rotation's base; None when the config has none or, for several kinds of layers, several."""
    parameters = getattr(config, "rope_parameters", None)
    parameters = parameters if isinstance(parameters, dict) else {}
    kinds = [held for held in parameters.values() if isinstance(held, dict)] or [parameters]
    bases = {held.get("rope_theta") for held in kinds}
    base = bases.pop() if len(bases) == 1 else None
    return float(base) if isinstance(base, int | float) else None
