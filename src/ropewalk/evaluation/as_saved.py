"""A model as it was saved: the rotation that rules and plans act on, or an encoding that can only stay as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.model_rotation import is_own_rotation, own_rotation
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.candidates import is_rope, rotation_to_stretch
from ropewalk.hub.fingerprint import describe, learned_fingerprint
from ropewalk.patching.handle import handle_of


@dataclass(frozen=True)
class AsSaved:
    """What is known of a model that was loaded.

    Args:
        about: what `describe` tells, its fingerprint being also of the encoding that the model was saved with.
        encoding: what the model has without any plan.
        rotation: that encoding where it is a RoPE, which plans can change; None where it is another.
    """

    about: dict[str, Any]
    encoding: Encoding
    rotation: RoPE | PerLayer | None

    def to_stretch(self, model: nn.Module, original_length: int) -> tuple[RoPE | PerLayer, Callable[[int], bool]]:
        """The rotation, and which layers a length rule changes, as `rotation_to_stretch` tells for the model."""
        assert self.rotation is not None
        return rotation_to_stretch(model, original_length, self.rotation)


def as_saved(model: nn.Module, name: str) -> AsSaved:
    """Look at a model just loaded, and take a RoPE that it was saved with off it, so that plans can be installed.

    An encoding of another kind stays installed, as nothing else holds what it learned.

    Args:
        model: the model; a RoPE that is taken off learned nothing, so `AsSaved` has all of it.
        name: what the user called it.

    Raises:
        ArgumentError: the encoding is for long inputs alone, so what the model does has no one encoding.
        UnsupportedModelError: no rotary attention that can be served.
    """
    handle, own = handle_of(model), own_rotation(model)
    about = describe(model)
    if handle is None or handle.encoding is None:
        return AsSaved(about, own, own)
    if handle.options.get("when") == "long":
        remedy = "its encoding is for long inputs alone, so no one encoding is the model's; save it with when='always'"
        raise ArgumentError("model", name, remedy)
    encoding = own if is_own_rotation(model, handle.encoding) else handle.encoding
    if encoding != own and about["fingerprint"] is not None:
        held = [about["fingerprint"], learned_fingerprint(model), encoding.to_dict()]
        about["fingerprint"] = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()
    if not is_rope(encoding):
        return AsSaved(about, encoding, None)
    handle.remove()
    return AsSaved(about, encoding, encoding)
