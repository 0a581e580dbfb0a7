"""An encoding put into a model, and everything it takes to put the model back as it was."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ropewalk.encodings.base import AbsoluteModule, Encoding, EncodingModule
from ropewalk.encodings.model_rotation import HOOKED, RotaryLayer, forward_name, layer_forward
from ropewalk.errors import UnsupportedModelError
from ropewalk.patching.absolute_patch import add_to_tokens
from ropewalk.patching.activation import Switch
from ropewalk.patching.content_attention import SUBMODULE
from ropewalk.patching.rotary_patch import PositionGiver
from ropewalk.patching.separate_keys import ATTENTION, OwnKeyAttention, OwnKeyForward
from ropewalk.rebind import rebind

_HANDLE = "_ropewalk_handle"
# By what this tells of the config's sizes, `generate` makes a static cache before a prefill in chunks. Without it the
# cache is made by the first keys that come, of which an encoding may hand over more, or wider ones.
_STATIC_SHAPE = "_get_static_cache_init_shape"
_BATCHING = "init_continuous_batching"  # what all of transformers' ways to continuous batching call
CONFIG = "position_encoding"  # the entry of a saved model's config that says which encoding it has
OPTIONS = "installed"  # inside that entry: how it was installed

# For a layer: the global names of its forward that mean something else, and what.
Names = Callable[[RotaryLayer], Mapping[str, Any]]


class Handle:
    """An installed encoding; `remove()` puts back the very function objects that were there.

    `options` are the arguments of `install` that weren't at their defaults. A deep copy of the model carries a copy of
    the handle: `handle_of(copy).remove()` frees the copy alone.
    """

    def __init__(self, model: nn.Module, encoding: Encoding | None, switch: Switch):
        self.encoding = encoding
        self.options: dict[str, Any] = {}
        self._model = model
        self._switch = switch
        self._changes: list[_Change] = []
        self._hooks: list[Any] = []
        self._holders: list[nn.Module] = []

    def remove(self) -> None:
        """Undo the installation; a second call does nothing."""
        for change in reversed(self._changes):
            change.undo()
        for hook in self._hooks:
            hook.remove()
        for layer in self._holders:
            delattr(layer, SUBMODULE)
        self._changes, self._hooks, self._holders = [], [], []
        self._switch.disconnect()
        if self._model.__dict__.get(_HANDLE) is self:
            del self._model.__dict__[_HANDLE]

    def add(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute and remember how it was."""
        self._changes.append(_Change(owner, name, value))

    def hold(self, layer: nn.Module, module: EncodingModule) -> None:
        """Make a module that learns a part of its attention layer."""
        if hasattr(layer, SUBMODULE):
            raise UnsupportedModelError(f"{type(layer).__name__} has a {SUBMODULE!r} of its own")
        layer.add_module(SUBMODULE, module)
        self._holders.append(layer)

    def hook(self, hook: Any) -> None:
        """Keep a hook's handle, to remove it with the rest."""
        self._hooks.append(hook)

    def tell_config(self, options: Mapping[str, Any]) -> None:
        """Let the config that `save_pretrained` writes say which encoding the model has, so that `load` installs it.

        `options` are the arguments of `install` that aren't at their defaults. Each model inside that holds changed
        layers says so too: PEFT and compilation wrap the one that is saved.
        """
        from transformers import PreTrainedModel

        if self.encoding is None:
            return
        self.options = dict(options)
        entry = self.encoding.to_dict() | ({OPTIONS: self.options} if options else {})
        changed = {change.owner for change in self._changes}
        for part in self._model.modules():
            if isinstance(part, PreTrainedModel) and not changed.isdisjoint(part.modules()):
                self.add(part, "save_pretrained", _Saving(part, entry))

    def refuse_continuous_batching(self, reason: str) -> None:
        """Let `generate_batch` and the paged cache be refused by name, before the first token."""
        for part in self._model.modules():
            if hasattr(type(part), _BATCHING):
                self.add(part, _BATCHING, _NoContinuousBatching(reason))

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def handle_of(model: nn.Module) -> Handle | None:
    """The handle of the encoding that is installed in this very model, or None."""
    return model.__dict__.get(_HANDLE)


def has_encoding(model: nn.Module) -> bool:
    """Whether an encoding is installed in the model, or in a part or a whole that shares its layers."""
    return any(
        isinstance(module.__dict__.get(name), PositionGiver)
        for module in model.modules()
        for name in ("forward", HOOKED)
    )


def put(
    model: nn.Module,
    layers: tuple[RotaryLayer, ...],
    names: Names,
    switch: Switch,
    encoding: Encoding | None = None,
    modules: Mapping[int, EncodingModule] | None = None,
) -> Handle:
    """Make the changes; whatever happens midway, none of them stays.

    Of `modules`, by layer, those that learn become submodules of their layers; one that is added to the token vectors
    gets a hook before the first decoder block.
    """
    handle = Handle(model, encoding, switch)
    modules = modules or {}
    try:
        for rotary in {id(layer.rotary): layer.rotary for layer in layers}.values():
            handle.add(rotary, "forward", PositionGiver(switch))
        for layer in layers:
            changed = names(layer)
            copy: Any = types.MethodType(rebind(layer_forward(layer.module), changed), layer.module)
            if isinstance(changed.get(ATTENTION), OwnKeyAttention):
                copy = OwnKeyForward(copy, layer.index)
            handle.add(layer.module, forward_name(layer.module), copy)
        for module in learning(layers, modules):
            handle.hold(*module)
        first = modules.get(layers[0].index)
        if isinstance(first, AbsoluteModule):
            handle.hook(add_to_tokens(model, layers[0].module, first))
        if hasattr(model, _STATIC_SHAPE):
            handle.add(model, _STATIC_SHAPE, _unknown_shape)
        switch.connect()
    except BaseException:
        handle.remove()
        raise
    if encoding is not None:
        model.__dict__[_HANDLE] = handle
    return handle


def _unknown_shape() -> None:
    return None


class _NoContinuousBatching:
    """Stands for `init_continuous_batching` of a model whose encoding can't be served so; calling it says why.

    Otherwise requests would fail in transformers' background thread, or be read under the wrong frequencies.
    """

    def __init__(self, reason: str):
        self._reason = reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise UnsupportedModelError."""
        raise UnsupportedModelError(f"continuous batching (generate_batch, the paged cache): {self._reason}")


def learning(
    layers: tuple[RotaryLayer, ...], modules: Mapping[int, EncodingModule]
) -> list[tuple[nn.Module, EncodingModule]]:
    """(layer, module) for each module with parameters; one for the token vectors belongs to the first layer alone."""
    found = []
    for layer in layers:
        module = modules.get(layer.index)
        if module is None or next(module.parameters(), None) is None:
            continue
        if not isinstance(module, AbsoluteModule) or layer is layers[0]:
            found.append((layer.module, module))
    return found


class _Saving:
    """Stands for a model's `save_pretrained`: the config that is written has one entry more than the model's own.

    The model's own doesn't have it, because models made from one config hold the very same object.
    """

    def __init__(self, model: nn.Module, entry: Mapping[str, Any]):
        self._model, self._entry = model, entry
        self._before = model.__dict__.get("save_pretrained")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`save_pretrained`, with the entry in a copy of the config that is the model's for as long."""
        kind: Any = type(self._model)
        save = self._before or functools.partial(kind.save_pretrained, self._model)
        held = self._model.__dict__
        own = held["config"]
        held["config"] = copy.copy(own)
        setattr(held["config"], CONFIG, self._entry)
        try:
            return save(*args, **kwargs)
        finally:
            held["config"] = own


class _Change:
    """One attribute set on one module, and how it was before."""

    def __init__(self, owner: nn.Module, name: str, value: Any):
        self.owner, self._name, self._value = owner, name, value
        self._had = name in owner.__dict__
        self._before = owner.__dict__.get(name)
        owner.__dict__[name] = value

    def undo(self) -> None:
        held = self.owner.__dict__
        if self._name == "forward" and held.get(HOOKED) is self._value:
            # A hook came since: it stays, over what was there before us.
            own = types.MethodType(type(self.owner).forward, self.owner)
            held[HOOKED] = self._before if self._had else own
        elif self._name == HOOKED and HOOKED not in held:
            # The hook left since, and put our copy in its own place.
            held["forward"] = self._before
        elif self._had:
            held[self._name] = self._before
        else:
            held.pop(self._name, None)
