"""Encodings that are added to the token vectors, before the first decoder block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ropewalk.encodings.base import AbsoluteModule
from ropewalk.encodings.model_rotation import decoder_blocks
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.patching.content_attention import layer_module
from ropewalk.patching.rotary_patch import Step, follow


def add_to_tokens(model: nn.Module, attention: nn.Module, module: AbsoluteModule) -> Any:
    """A hook before the first decoder block that adds `module.embed(positions)`; its handle.

    `attention`, the first layer's, holds the module when it learns: copies of a model have their own.
    """
    return decoder_blocks(model)[0].register_forward_pre_hook(TokenHook(attention, module), with_kwargs=True)


class TokenHook:
    """Adds positions to what the first decoder block gets, unless a plain step is asked for."""

    def __init__(self, attention: nn.Module, module: AbsoluteModule):
        self._attention, self._module = attention, module

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block's arguments with changed hidden states."""
        step = next((value for value in (*args, *kwargs.values()) if isinstance(value, Step)), None)
        if step is None:
            raise UnsupportedModelError(f"{type(block).__name__} gets no positions: nothing can be added to its tokens")
        if not step.tables.is_active:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        module = layer_module(self._attention, self._module)
        assert isinstance(module, AbsoluteModule)
        follow(module, hidden.device)
        added = module.embed(step.positions.to(hidden.device))
        if added.shape[-1] != hidden.shape[-1]:
            raise ArgumentError("width", added.shape[-1], f"the model's token vectors have {hidden.shape[-1]} channels")
        hidden = hidden + added.to(hidden.dtype)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}
