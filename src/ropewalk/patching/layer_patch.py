"""What each layer's copy of its forward finds under the two global names: encoder and attention, for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.encodings.base import AbsoluteModule, Encoding, EncodingModule, RotaryModule
from ropewalk.encodings.model_rotation import APPLY, RotaryLayer
from ropewalk.encodings.nope import NoPEModule
from ropewalk.encodings.pope import PoPEModule
from ropewalk.encodings.remap import RemapModule
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.patching.content_attention import ContentAttention, ContentEncoder
from ropewalk.patching.phase_cache import KeyTables
from ropewalk.patching.probe_modules import LayerShape
from ropewalk.patching.rotary_patch import LayerEncoder
from ropewalk.patching.separate_keys import ATTENTION, OwnKeyAttention

CACHES = ("encoded", "content")


def carrying(encoding: Encoding, made: Mapping[int, EncodingModule], cache: str | None) -> frozenset[int]:
    """The layers whose queries and keys reach attention as content with positions.

    Raises ArgumentError for a cache that the encoding can't have, and for kinds that can't be mixed.
    """
    if cache is not None and cache not in CACHES:
        raise unknown_name("cache", cache, CACHES)
    absolute = [isinstance(module, AbsoluteModule) for module in made.values()]
    if any(absolute) and not all(absolute):
        remedy = "an encoding of the token vectors serves the whole model: give it alone"
        raise ArgumentError("encoding", encoding.kind, remedy)
    found = set()
    for index, module in made.items():
        rotates = isinstance(module, RotaryModule) and not isinstance(module, PoPEModule)
        if not rotates and cache == "encoded" and not isinstance(module, (AbsoluteModule, RemapModule)):
            raise ArgumentError("cache", cache, f"{encoding.kind} acts at attention: give 'content' or None")
        if (cache == "content" and rotates) or not (rotates or isinstance(module, AbsoluteModule)):
            found.add(index)
    return frozenset(found)


class Parts:
    """Makes the names that a layer's copy of its forward looks up.

    Args:
        made: each layer's module.
        plain: each layer's own rotation, for steps to which the plan doesn't apply.
        shapes: what each rotating layer hands over.
        carried: the layers whose content travels with its positions.
        cache: as `install` was told.
    """

    def __init__(
        self,
        made: Mapping[int, EncodingModule],
        plain: Mapping[int, RotaryModule],
        shapes: Mapping[int, LayerShape],
        carried: frozenset[int],
        cache: str | None = None,
    ):
        self._made, self._plain, self._shapes, self._carried = made, plain, shapes, carried
        self._cache = cache
        self._tables: dict[Any, KeyTables] = {}

    @property
    def own_keys(self) -> bool:
        """Whether some layer's heads read keys of their own."""
        return any(self._has_own_keys(index) for index in self._made)

    def _has_own_keys(self, index: int) -> bool:
        module, shape = self._made[index], self._shapes.get(index)
        if shape is None or not isinstance(module, RotaryModule):
            return False
        return bool(module.own_keys(shape.num_heads, shape.num_kv_heads))

    def of(self, layer: RotaryLayer) -> Mapping[str, Any]:
        """{global name: what it means in this layer}."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        module, plain, shape = self._made[layer.index], self._plain[layer.index], self._shapes.get(layer.index)
        if layer.index in self._carried:
            handed = layer.rope.head_dim if shape is None else shape.channels
            attention = ContentAttention(
                ALL_ATTENTION_FUNCTIONS, module, layer.rope.head_dim, handed, self._shared_tables(module), self._cache
            )
            return {APPLY: ContentEncoder(module, plain, self._cache), ATTENTION: attention}
        if isinstance(module, AbsoluteModule):
            return {APPLY: LayerEncoder(NoPEModule(), plain)}
        assert isinstance(module, RotaryModule)
        changed: dict[str, Any] = {APPLY: LayerEncoder(module, plain)}
        if self._has_own_keys(layer.index):
            changed[ATTENTION] = OwnKeyAttention(ALL_ATTENTION_FUNCTIONS, module)
        return changed

    def _shared_tables(self, module: EncodingModule) -> KeyTables | None:
        if not isinstance(module, RotaryModule):
            return None
        return self._tables.setdefault(module.table_key, KeyTables())
