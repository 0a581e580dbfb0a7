"""DoPE on a remap of positions: selected heads lose their rotation for near keys, for far keys, or for both."""

from __future__ import annotations

from torch import Tensor

from ropewalk.encodings.dope import DoPE, DoPEModule
from ropewalk.encodings.remap import Remap, RemapModule, Turn, WrappedRemapModule


class DoPERemapModule(WrappedRemapModule):
    """A remap in one layer, in whose views selected heads are changed as `DoPEModule` changes them.

    The remap's first piece is its near view, all others are far. A changed head is not rotated at whatever position
    the remap puts it; noise is drawn for that position. Keys of a view with own keys come a head each.
    """

    def __init__(self, dope: DoPE, layer: int, remap: Remap):
        inner = remap.module()
        assert isinstance(inner, RemapModule)
        super().__init__(inner)
        self.dope = dope
        self.heads = DoPEModule(dope, layer, remap.single_rope())
        pieces = range(len(inner.key_of_piece))
        self._is_changed = [dope.view == "both" or (dope.view == "near") == (piece == 0) for piece in pieces]
        # Pieces share keys that stand alike and are changed alike.
        needed = list(zip(inner.key_of_piece, self._is_changed, strict=True))
        self._keys = list(dict.fromkeys(needed))
        self.key_of_piece = tuple(self._keys.index(one) for one in needed)

    def key_positions(self, of_keys: Tensor) -> tuple[Tensor, ...]:
        found = super().key_positions(of_keys)
        return tuple(found[number] for number, _ in self._keys)

    def turned_query(self, q: Tensor, piece: int, turn: Turn, num_kv_heads: int) -> Tensor:
        if not self._is_changed[piece]:
            return super().turned_query(q, piece, turn, num_kv_heads)
        return self.heads.encode_queries(q, num_kv_heads, *turn)

    def turned_key(self, k: Tensor, index: int, turn: Turn, num_heads: int) -> Tensor:
        if not self._keys[index][1]:
            return super().turned_key(k, index, turn, num_heads)
        groups, encoded = k.shape[1], self.heads.encode_keys(k, num_heads, *turn)
        if encoded.shape[1] == groups:
            return encoded
        readers, size = dict(self.heads.own_keys(num_heads, groups)), num_heads // groups
        own = [groups + readers[head] if head in readers else head // size for head in range(num_heads)]
        return encoded[:, own]
