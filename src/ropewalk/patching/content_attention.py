"""Encodings that act where attention happens: queries and keys reach it as content, with their positions beside.

A cache then holds content: keys that no rotation has touched, or PoPE's magnitudes. A changed length rule is exact for
keys already cached, and PoPE keeps d numbers a key. Under a remap of positions it holds keys as they are read from
afar, unless content is asked for: a decoding step then turns the few near ones only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ropewalk.attention.blockwise import attend_biased, attend_scored
from ropewalk.attention.mask import Visible, hiding
from ropewalk.attention.pope_decode import MOST_QUERIES, attend_folded
from ropewalk.attention.remapped import attend_remapped
from ropewalk.attention.sdpa import attend_vectors
from ropewalk.encodings.base import BiasModule, EncodingModule, RotaryModule, ScoreModule, Tables, is_run
from ropewalk.encodings.pope import PoPEModule
from ropewalk.encodings.remap import RemapModule
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.patching.phase_cache import KeyTables
from ropewalk.patching.position_channels import channels, with_positions, without_positions
from ropewalk.patching.rotary_patch import LayerEncoder, StepTables, follow
from ropewalk.patching.separate_keys import AttentionFunction, AttentionRegistry, OwnKeyAttention

# The name under which a layer holds a module that learns.
SUBMODULE = "position_encoding"
EAGER, SDPA, FLEX = "eager", "sdpa", "flex_attention"
# Whose masks say which tokens are padding, (B, M), where others say which pairs are seen.
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


def is_own(name: str) -> bool:
    """Whether a parameter of this name belongs to an installed encoding."""
    return SUBMODULE in name.split(".")


def layer_module(layer: nn.Module, module: EncodingModule) -> EncodingModule:
    """The encoding that a layer uses: the one it holds, where it learns, else `module`.

    PEFT's `modules_to_save` puts a wrapper in its place, with a trained copy for each adapter.
    """
    found: Any = getattr(layer, SUBMODULE, module)
    if not isinstance(found, EncodingModule):
        adapter = next(iter(found.active_adapters), None)
        is_off = found.disable_adapters or adapter not in found.modules_to_save
        found = found.original_module if is_off else found.modules_to_save[adapter]
        assert isinstance(found, EncodingModule)
    return found


def check_implementation(module: EncodingModule, name: str | None) -> None:
    """Refuse an attention implementation through which this kind of encoding can't go; rotations can through any."""
    if isinstance(module, RemapModule):
        served: tuple[str, ...] = (SDPA, EAGER, *FLASH)
    elif isinstance(module, PoPEModule):
        served = (SDPA, EAGER, FLEX)
    elif isinstance(module, (BiasModule, ScoreModule)):
        served = (SDPA, EAGER)
    else:
        return
    if (name or EAGER) not in served:
        kind = type(module).__name__.removesuffix("Module")
        remedy = (
            f"{kind} can't go through it; model.set_attn_implementation({SDPA!r}) first (served: {', '.join(served)})"
        )
        raise ArgumentError("attn_implementation", name, remedy)


class ContentEncoder(LayerEncoder):
    """In place of `apply_rotary_pos_emb`: leaves content as it is and lets positions travel with it."""

    def __init__(self, module: EncodingModule, plain: RotaryModule, cache: str | None = None):
        super().__init__(plain, plain)
        self._encoding, self._cache = module, cache

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor,
        step: StepTables,
        *args: Any,
        unsqueeze_dim: int = 1,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys with their positions as further channels; in a plain step rotated as the model does."""
        if not isinstance(step, StepTables) or not step.is_active:
            return super().__call__(q, k, positions, step, *args, unsqueeze_dim=unsqueeze_dim, **kwargs)
        if unsqueeze_dim == 2:  # heads after tokens, as a few architectures keep them
            q, k = self(q.transpose(1, 2), k.transpose(1, 2), positions, step)
            return q.transpose(1, 2), k.transpose(1, 2)
        positions = positions.to(q.device)
        if torch.compiler.is_compiling():
            k = k.contiguous()  # torch 2.13 traces softplus' gradient with other strides than it has
        stored = k
        if _stores_early(self._encoding, k.shape[-1]):
            stored = self._encoding.stored(k)
        elif _stores_turned(self._encoding, self._cache):
            stored = self._encoding.stored(k, positions if positions.dim() > 1 else positions[None])
        return with_positions(q, positions), with_positions(stored, positions)


class ContentAttention(AttentionRegistry):
    """Attention in a layer whose queries and keys come as content with their positions.

    Args:
        registry: transformers' attention functions.
        module: the layer's encoding; one that learns is looked up in the layer itself, where copies of a model have
            their own.
        head_dim: channels a head at attention.
        handed: how many of them the layer hands its rotation; the positions come after those.
        tables: shared by all layers with the same schedule; None for kinds that have no tables.
        cache: as `install` was told.
    """

    def __init__(
        self,
        registry: Any,
        module: EncodingModule,
        head_dim: int,
        handed: int,
        tables: KeyTables | None,
        cache: str | None = None,
    ):
        super().__init__(registry)
        self._module, self._head_dim, self._handed, self._tables = module, head_dim, handed, tables
        self._cache = cache

    def wrapped(self, attention: AttentionFunction, name: str) -> AttentionFunction:
        def attend(
            layer: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> tuple[Tensor, Tensor | None]:
            if query.shape[-1] != self._head_dim + channels(query.dtype):  # a plain step
                return attention(layer, query, key, value, attention_mask, *args, **kwargs)
            module = layer_module(layer, self._module)
            check_implementation(module, name)
            if name == SDPA and attention_mask is None and 1 < query.shape[2] < key.shape[2]:
                # Here no mask means that query n sees keys 0 to n: the rest is free room of a preallocated cache. Flash
                # attention means by it that the queries are the last of the keys.
                key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            q, of_queries = without_positions(query, self._handed)
            k, of_keys = without_positions(key, self._handed)
            if isinstance(module, PoPEModule) and not _stores_early(module, self._handed):
                k = module.stored(k)
            follow(module, q.device)
            if self._tables is not None:
                assert isinstance(module, RotaryModule)
                of_key = self._tables.of(module, of_keys, k.dtype)
                of_query = functools.partial(self._tables.of, module, of_queries, q.dtype)
                if not isinstance(module, PoPEModule):
                    q, k = module.encode(q, k, (of_queries, of_keys), (of_query(), of_key))
                    inner = OwnKeyAttention(None, module).wrapped(attention, name)
                    return inner(layer, q, k, value, attention_mask, *args, **kwargs)
            call = Call(layer, name or EAGER, attention, attention_mask, kwargs, q, k, value)
            if isinstance(module, PoPEModule):
                return call.polar(module, (of_queries, of_keys), of_query, of_key)
            if isinstance(module, BiasModule):
                return call.biased(module, (of_queries, of_keys))
            if isinstance(module, RemapModule):
                return call.remapped(module, (of_queries, of_keys), _stores_turned(module, self._cache))
            assert isinstance(module, ScoreModule)
            return call.scored(module, (of_queries, of_keys))

        return attend


class Call:
    """One call of a layer's attention: content, and what the model says of mask, scale and dropout."""

    def __init__(
        self,
        layer: nn.Module,
        name: str,
        attention: AttentionFunction,
        mask: Any,
        options: dict[str, Any],
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ):
        self._layer, self._name, self._attention, self._mask, self._options = layer, name, attention, mask, options
        self._q, self._k, self._v = q, k, v
        scale = options.get("scaling")
        self.scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        self.dropout = float(options.get("dropout") or 0.0)

    def polar(
        self,
        module: PoPEModule,
        positions: tuple[Tensor, Tensor],
        of_query: Callable[[], Tables],
        of_key: Tables,
    ) -> tuple[Tensor, Tensor | None]:
        """PoPE: a few queries folded over cached magnitudes, more with all phases put in for the moment."""
        q, k, v = self._q, self._k, self._v
        if self._name == SDPA and q.shape[2] <= MOST_QUERIES < k.shape[2] and not self.dropout:
            return _output(attend_folded(module, q, k, v, positions[0], of_key, self._visible("PoPE"), self.scale))
        encoded_q, encoded_k = module.encode_stored(q, k, positions, (of_query(), of_key))
        if self._name in (EAGER, FLEX):
            options = {**self._options, "scaling": self.scale}
            return self._attention(self._layer, encoded_q, encoded_k, v, self._mask, **options)
        return _output(attend_vectors(encoded_q, encoded_k, v, self._visible("PoPE"), self.scale, self.dropout))

    def biased(self, module: BiasModule, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """A bias on the scores, beside the model's mask."""
        of_queries, of_keys = positions
        if module.num_heads != self._q.shape[1]:
            raise ArgumentError("num_heads", module.num_heads, f"the layer has {self._q.shape[1]} query heads")
        if self._name == EAGER:
            bias = module.bias(of_queries, of_keys).to(self._q.dtype)
            mask = bias if self._mask is None else bias + self._mask
            return self._attention(self._layer, self._q, self._k, self._v, mask, **self._options)
        visible = self._visible("a bias on the scores")
        counts_up = is_run(of_queries, of_keys)
        q, k, v = self._q, self._k, self._v
        return _output(attend_biased(module, q, k, v, positions, visible, self.scale, self.dropout, counts_up))

    def scored(self, module: ScoreModule, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Scores of the encoding's own; no weights are handed back, as no matrix of them is made."""
        visible = self._visible("scores of its own")
        return _output(attend_scored(module, self._q, self._k, self._v, positions, visible, self.scale, self.dropout))

    def remapped(
        self, module: RemapModule, positions: tuple[Tensor, Tensor], is_stored: bool
    ) -> tuple[Tensor, Tensor | None]:
        """A remap of positions: torch's kernels for each piece; no weights are handed back."""
        what = "a remap of positions"
        self._check_options(what)
        queries, keys, mask = self._q.shape[2], self._k.shape[2], self._mask
        if self._name in FLASH:
            # Flash attention takes order and window as options; its mask says which tokens aren't padding.
            mask = _documents(positions) if mask is None else mask[:, None, None, -keys:].bool()
            visible = Visible(queries, keys, causal=True, window=self._options.get("sliding_window"), mask=mask)
        elif mask is not None:
            # As it is: what is found of a mask is kept for the layers to come.
            visible = Visible(queries, keys, causal=False, mask=mask)
        else:
            visible = self._visible(what)
        held = self._q, self._k, self._v, positions, visible, self.scale, self.dropout
        return _output(attend_remapped(module, *held, is_stored=is_stored))

    def _check_options(self, what: str) -> None:
        for option in ("softcap", "s_aux"):
            if self._options.get(option) is not None:
                raise UnsupportedModelError(f"{type(self._layer).__name__} uses {option}, not served with {what}")

    def _visible(self, what: str) -> Visible:
        """The model's mask as our kernels take it; refuses what they can't serve."""
        self._check_options(what)
        queries, keys = self._q.shape[2], self._k.shape[2]
        if self._mask is not None:
            return Visible(queries, keys, causal=False, mask=hiding(self._mask))
        is_causal = self._options.get("is_causal")
        causal = getattr(self._layer, "is_causal", True) if is_causal is None else is_causal
        return Visible(queries, keys, causal=bool(causal) and queries > 1)


def _documents(positions: tuple[Tensor, Tensor]) -> Tensor | None:
    """Which pairs are of one document where several are packed into one row, (1, 1, N, N); None where that isn't so.

    Without a mask transformers' flash attention tells them apart by positions that begin again at 0.
    """
    of_queries, of_keys = positions
    if len(of_queries) > 1 or of_queries.shape != of_keys.shape or bool((of_queries[0].diff() == 1).all()):
        return None
    document = (of_keys[0] == 0).cumsum(0)
    return (document[:, None] == document)[None, None]


def _output(out: Tensor) -> tuple[Tensor, None]:
    """(B, H, N, E) as transformers' attention functions give it, (B, N, H, E)."""
    return out.transpose(1, 2).contiguous(), None


def _stores_turned(module: EncodingModule, cache: str | None) -> TypeGuard[RemapModule]:
    """Whether a cache holds keys turned to where most of them are read: all but those near the query."""
    return isinstance(module, RemapModule) and module.cached_key is not None and cache != "content"


def _stores_early(module: EncodingModule, handed: int) -> TypeGuard[PoPEModule]:
    """Whether a layer hands over enough channels to make magnitudes before the cache."""
    return isinstance(module, PoPEModule) and handed >= module.encoding.width
