"""What a GGUF file says of positions beyond base and size: transformers' reader leaves it out, so it is read here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError

_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ORIGINAL = "load the model from its folder or hub id, whose config.json says the same to transformers"


def with_rotation(config: Any, rotation: dict[str, Any]) -> Any:
    """A config that turns by the rotation; what that doesn't say, such as a share of the channels, stays.

    Raises:
        ArgumentError: the architecture has a rotation for each kind of layer, and the file doesn't say which it means.
    """
    held = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in held.values()):
        has = f"this architecture has a rotation for each kind of layer; {_ORIGINAL}"
        raise ArgumentError("rope.scaling", rotation["rope_type"], has)
    config.rope_parameters = {**held, **rotation}
    return config


def rope_parameters(file: Path) -> dict[str, Any] | None:
    """The rotation that a GGUF file asks for, as transformers' config takes it; None for plain RoPE.

    As llama.cpp reads it: `rope.scaling.type` (linear where only a factor is given) with its factor, original length
    and attention factor, and the tensor `rope_freqs.weight`, which divides each frequency.

    Raises:
        ArgumentError: one part of a split model; a scaling that can't be said exactly in transformers' terms.
    """
    from gguf import GGUFReader

    reader: Any = GGUFReader(str(file))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if int(fields.get("split.count", 1)) > 1:
        remedy = f"is one part of {fields['split.count']}; join them first: llama-gguf-split --merge FIRST_PART WHOLE"
        raise ArgumentError("model", str(file), remedy)
    held = _Rotation(fields)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name in _FACTORS}
    divisors = [name for name, values in tensors.items() if (values != 1).any()]
    if not divisors:
        return held.scaled()
    if divisors != ["rope_freqs.weight"] or held.kind != "none":
        raise ArgumentError(divisors[0], "other than 1", f"{file}: can't be read exactly from a GGUF file; {_ORIGINAL}")
    each = [float(value) for value in tensors["rope_freqs.weight"]]
    # The same list at every length: the divisors are part of how the model was trained, not of a stretch.
    return held.base | {
        "rope_type": "longrope",
        "short_factor": each,
        "long_factor": each,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": held.length,
    }


class _Rotation:
    """The fields of a file under its architecture's `rope.`."""

    def __init__(self, fields: dict[str, Any]):
        self._fields, self._architecture = fields, fields.get("general.architecture", "llama")
        self.factor = float(self._get("scaling.factor") or self._get("scale_linear") or 1.0)
        self.kind: str = self._get("scaling.type") or "linear"
        if self.kind == "linear" and self.factor == 1.0:
            self.kind = "none"
        self.length = int(fields.get(f"{self._architecture}.context_length", 0))
        base = self._get("freq_base")
        self.base: dict[str, Any] = {} if base is None else {"rope_theta": float(base)}

    def _get(self, name: str) -> Any:
        return self._fields.get(f"{self._architecture}.rope.{name}")

    def scaled(self) -> dict[str, Any] | None:
        """The rotation with its length rule; None where it has none."""
        if self.kind == "none":
            return None
        if self.kind == "linear":
            return self.base | {"rope_type": "linear", "factor": self.factor}
        original = self._get("scaling.original_context_length")
        if self.kind != "yarn" or original is None:
            field, value = ("type", self.kind) if self.kind != "yarn" else ("original_context_length", original)
            name = f"{self._architecture}.rope.scaling.{field}"
            raise ArgumentError(name, value, f"can't be read exactly from a GGUF file; {_ORIGINAL}")
        found: dict[str, Any] = {
            "rope_type": "yarn",
            "factor": self.factor,
            "original_max_position_embeddings": int(original),
        }
        if (attention := self._get("scaling.attn_factor")) is not None:
            # llama.cpp multiplies YaRN's own temperature by it.
            found["attention_factor"] = float(attention) * (0.1 * math.log(self.factor) + 1.0)
        for name, ours in (("scaling.yarn_beta_fast", "beta_fast"), ("scaling.yarn_beta_slow", "beta_slow")):
            if (value := self._get(name)) is not None:
                found[ours] = float(value)
        return self.base | found
