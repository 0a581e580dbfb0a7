"""What each layer's rotation and attention are given, heard while the model computes as it always does."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.analysis.attention_rows import AttentionRows, Biased, Given, Products, Scores
from ropewalk.encodings.base import BiasModule, Encoding, EncodingModule, RotaryModule, ScoreModule
from ropewalk.encodings.model_rotation import APPLY, RotaryLayer, forward_name, layer_forward, rotary_layers
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.pope import PoPEModule
from ropewalk.encodings.remap import RemapModule
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.patching.activation import Switch
from ropewalk.patching.content_attention import FLEX, layer_module
from ropewalk.patching.handle import Handle, handle_of, has_encoding
from ropewalk.patching.position_channels import channels, without_positions
from ropewalk.patching.rotary_patch import StepTables, follow
from ropewalk.patching.separate_keys import ATTENTION, AttentionFunction, AttentionRegistry
from ropewalk.rebind import innermost_globals, rebind

# Queries whose output is compared with the model's own, and by how much of the largest output it may differ.
CHECKED = 4
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


@dataclass(frozen=True)
class Heard:
    """One layer's part of a pass over N tokens.

    Args:
        index: the model's number of the layer.
        rope: the layer's own rotation, whether in force or not.
        encoding: the one in force; NoPE in a layer that doesn't rotate.
        before: q (H, N, c) and k (G, N, c) as they are handed to the rotation; None where another kind of encoding
            acts at attention.
        after: q (H, N, D) and k (G, N, D) as attention compares them; what the rotation hands back, where there is one.
        rows: the layer's attention weights.
        module: the encoding's module where one is installed, as it has learned.
    """

    index: int
    rope: RoPE
    encoding: Encoding
    before: tuple[Tensor, Tensor] | None
    after: tuple[Tensor, Tensor]
    rows: AttentionRows
    module: EncodingModule | None


@contextmanager
def listening(model: nn.Module, hear: Callable[[Heard], None]) -> Iterator[None]:
    """Call `hear` for each rotary attention layer during one pass, in order; what the model computes doesn't change.

    The pass must be over one text at once, without a cache and without padding. The weights that `hear` gets are those
    that the layer used: a few queries' outputs are worked out from them and compared with the layer's own.

    Raises:
        UnsupportedModelError: no rotary attention, or one whose weights can't be heard; also in the middle of a pass.
    """
    if has_encoding(model) and handle_of(model) is None:
        remedy = "an encoding was installed in a larger model of which this is a part; give that one"
        raise ArgumentError("model", type(model).__name__, remedy)
    handle = Handle(model, None, Switch(model))
    try:
        for layer in rotary_layers(model):
            _put(handle, layer, _Ear(layer, _installed(model, layer), hear))
        yield
    finally:
        handle.remove()


def _installed(model: nn.Module, layer: RotaryLayer) -> tuple[Encoding, EncodingModule] | None:
    """The layer's installed encoding and its module, where it learns the very one that it uses."""
    handle = handle_of(model)
    if handle is None or handle.encoding is None:
        return None
    encoding = handle.encoding.at(layer.index)
    module: Any = encoding.module()
    return encoding, layer_module(layer.module, module)


def _put(handle: Handle, layer: RotaryLayer, ear: _Ear) -> None:
    forward = layer_forward(layer.module)
    name = getattr(getattr(layer.module, "config", None), "_attn_implementation", None)
    if name == FLEX:
        remedy = "its weights can't be heard; model.set_attn_implementation('sdpa') first"
        raise ArgumentError("attn_implementation", name, remedy)
    try:
        inner = {name: innermost_globals(forward, name)[name] for name in (APPLY, ATTENTION)}
    except KeyError:
        raise _unheard(layer, f"it doesn't look up {ATTENTION}") from None
    names = {APPLY: ear.rotation(inner[APPLY]), ATTENTION: _Registry(inner[ATTENTION], ear)}
    handle.add(layer.module, forward_name(layer.module), types.MethodType(rebind(forward, names), layer.module))


class _Registry(AttentionRegistry):
    """Attends as the layer does and lets its ear hear it."""

    def __init__(self, registry: Any, ear: _Ear):
        super().__init__(registry)
        self._ear = ear

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
            found = attention(layer, query, key, value, attention_mask, *args, **kwargs)
            self._ear.attended(_Call(query, key, value, attention_mask, kwargs), found[0])
            return found

        return attend


@dataclass(frozen=True)
class _Call:
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: dict[str, Any]


class _Ear:
    """Listens to one layer."""

    def __init__(
        self,
        layer: RotaryLayer,
        installed: tuple[Encoding, EncodingModule] | None,
        hear: Callable[[Heard], None],
    ):
        self._layer, self._installed, self._hear = layer, installed, hear
        self._before: tuple[Tensor, Tensor] | None = None
        self._after: tuple[Tensor, Tensor] | None = None
        self._is_plain = installed is None
        self._is_done = False

    def rotation(self, inner: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        """What stands for the layer's rotation."""

        def rotate(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            found = inner(q, k, *args, **kwargs)
            self._before, self._after = _heads_first(q, k, kwargs), _heads_first(*found, kwargs)
            steps = [given for given in (*args, *kwargs.values()) if isinstance(given, StepTables)]
            self._is_plain = self._installed is None or any(not step.is_active for step in steps)
            return found

        return rotate

    @torch.no_grad()
    def attended(self, call: _Call, output: Tensor) -> None:
        """The layer's attention has given this output, (1, N, H, E)."""
        if call.query.shape[0] != 1 or call.query.shape[2] != call.key.shape[2]:
            raise ArgumentError("input_ids", tuple(call.query.shape), "give one text, read at once without a cache")
        if self._is_done:
            raise _unheard(self._layer, "it attends more than once a pass")
        self._is_done = True
        before, after = self._before, self._after
        self._before = self._after = None
        encoding: Encoding = self._layer.rope
        module: EncodingModule | None = None
        if self._installed is not None and before is not None and not self._is_plain:
            encoding, module = self._installed
        scores, content, compared = self._scores(call, module, before)
        rows = self._rows(call, scores)
        self._check(rows, call.value, output)
        if before is None or after is None:  # a layer that doesn't rotate
            encoding, before, after = NoPE(), compared, compared
        elif content is not None:  # the rotation handed its arguments on, with their positions
            is_rotation = isinstance(module, RotaryModule) and not isinstance(module, PoPEModule)
            before, after = content if is_rotation else None, compared
        # Without the keys of their own that DoPE adds.
        after = after[0], after[1][: call.value.shape[1]]
        self._hear(Heard(self._layer.index, self._layer.rope, encoding, before, after, rows, module))

    def _scores(
        self, call: _Call, module: EncodingModule | None, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Scores, tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor]]:
        """What makes the layer's scores; content q (H, N, d) and k (G, N, d) where it is encoded at attention; and
        q (H, N, D) and k (K, N, D) as they are compared.
        """
        q, k, positions, content = call.query, call.key, None, None
        handed = q.shape[-1] if before is None else before[0].shape[-1]
        if module is not None and q.shape[-1] == self._layer.rope.head_dim + channels(q.dtype):
            q, positions = without_positions(q, handed)
            k, _ = without_positions(k, handed)
            if isinstance(module, RemapModule) and before is not None:  # which are turned already for a cache
                k = torch.cat((before[1][None], k[..., handed:]), dim=-1)
            content = q[0], k[0]
            follow(module, q.device)
        scale = call.options.get("scaling")
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        if isinstance(module, RotaryModule) and positions is not None:
            tables = module.tables(positions, q.dtype)
            pair = (positions, positions), (tables, tables)
            # Where a layer hands over enough channels, PoPE's magnitudes are made before attention.
            is_stored = isinstance(module, PoPEModule) and handed >= module.encoding.width
            encode = module.encode_stored if isinstance(module, PoPEModule) and is_stored else module.encode
            q, k = encode(q, k, *pair)
        groups, size = call.value.shape[1], q.shape[1] // call.value.shape[1]
        reads = [head // size for head in range(q.shape[1])]
        if k.shape[1] != groups and isinstance(module, RotaryModule):
            for head, own in module.own_keys(q.shape[1], groups):
                reads[head] = groups + own
        q, k = q[0], k[0]
        if isinstance(module, BiasModule) and positions is not None:
            return Biased(module, q, k, reads, scale, positions), content, (q, k)
        if isinstance(module, ScoreModule) and positions is not None:
            return Given(module, q, k, scale, positions), content, (q, k)
        return Products(q, k, reads, scale, call.options.get("softcap")), content, (q, k)

    def _rows(self, call: _Call, scores: Scores) -> AttentionRows:
        if call.mask is not None and not (isinstance(call.mask, Tensor) and call.mask.dim() == 4):
            raise _unheard(self._layer, "its mask isn't a matrix")
        if call.options.get("position_bias") is not None:
            raise _unheard(self._layer, "it adds a bias of its own to the scores")
        mask = None if call.mask is None else call.mask[0]
        return AttentionRows(
            scores,
            call.query.shape[1],
            call.query.shape[2],
            window=call.options.get("sliding_window"),
            mask=mask,
            sinks=call.options.get("s_aux"),
        )

    def _check(self, rows: AttentionRows, value: Tensor, output: Tensor) -> None:
        """Refuse weights that don't give the layer's own output for a few queries, the last among them."""
        queries = torch.linspace(0, rows.num_tokens - 1, CHECKED).long().unique()
        size = rows.num_heads // value.shape[1]
        got = output[0, queries].float()
        worked_out = torch.zeros_like(got)
        for group, heads in enumerate(rows.scores.groups):
            begin, weights = rows.weights(group, queries)
            values = value[0, [head // size for head in heads], begin : begin + weights.shape[-1]].to(weights.dtype)
            worked_out[:, list(heads)] = (weights @ values).transpose(0, 1).to(got.dtype)
        scale = float(got.abs().max()) or 1.0
        difference = float((worked_out - got).abs().max()) / scale
        if not difference <= TOLERANCE.get(output.dtype, 5e-2):
            reason = f"its output differs by {difference:.1e} of the largest from that of the weights heard"
            raise _unheard(self._layer, reason)


def _heads_first(q: Tensor, k: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """q (H, N, c) and k (G, N, c) of a batch of one, as transformers' function is given them."""
    if options.get("unsqueeze_dim", 1) == 2:  # heads after tokens, as a few architectures keep them
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    return q[0], k[0]


def _unheard(layer: RotaryLayer, reason: str) -> UnsupportedModelError:
    kind = type(layer.module).__name__
    return UnsupportedModelError(f"{kind} ({layer.path}): its attention weights can't be heard ({reason})")
