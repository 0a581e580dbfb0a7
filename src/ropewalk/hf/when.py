"""When does a plan apply? Decided once for each generation, so that one generation has one base."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ropewalk.errors import ArgumentError, unknown_name

WHEN = ("always", "long")
_MARK = "_ropewalk_is_active"


class Switch:
    """Tells each forward pass whether the plan applies to it.

    `always`: it does. `long`: it does when the whole generation, prompt and new tokens, is longer than
    `original_length`. `model.generate` knows that length beforehand. A bare forward pass counts its own tokens and
    those in its cache; the answer is kept on the cache, so all later passes with that cache follow it.
    """

    def __init__(self, model: nn.Module, when: str, original_length: int):
        if when not in WHEN:
            raise unknown_name("when", when, WHEN)
        if original_length < 1:
            raise ArgumentError("original_length", original_length, "give the training length in tokens, above 0")
        self._model, self._when, self._original_length = model, when, original_length
        self._generation: bool | None = None
        self._hooks: list[Any] = []
        self.is_active = True

    def connect(self) -> None:
        """Start listening to the model's calls; needed for `long` only."""
        if self._when == "always":
            return
        self._hooks = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after, with_kwargs=True),
        ]
        generate = getattr(self._model, "generate", None)
        if generate is not None:
            self._model.__dict__["generate"] = types.MethodType(self._generating(generate), self._model)

    def disconnect(self) -> None:
        """Stop listening; the model's own `generate` is back."""
        if self._when == "always":
            return
        for hook in self._hooks:
            hook.remove()
        self._model.__dict__.pop("generate", None)

    def _generating(self, generate: Any) -> Any:
        def generate_with_one_base(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._generation = _generation_length(model, args, kwargs) > self._original_length
            try:
                return generate(*args, **kwargs)
            finally:
                self._generation = None

        return generate_with_one_base

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._generation is not None:
            self.is_active = self._generation
            return
        cache = kwargs.get("past_key_values")
        remembered = getattr(cache, _MARK, None)
        if remembered is None:
            given = kwargs.get("input_ids", args[0] if args else None)
            given = kwargs.get("inputs_embeds") if given is None else given
            past = cache.get_seq_length() if cache is not None else 0
            remembered = past + (given.shape[1] if isinstance(given, Tensor) else 0) > self._original_length
        self.is_active = remembered

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            setattr(cache, _MARK, self.is_active)


def _generation_length(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Tokens at the end of a `generate` call that doesn't stop early."""
    prompt = next((kwargs[n] for n in ("input_ids", "inputs", "inputs_embeds") if kwargs.get(n) is not None), None)
    prompt = args[0] if prompt is None and args else prompt
    length = prompt.shape[1] if isinstance(prompt, Tensor) else 1
    config: Any = kwargs.get("generation_config") or model.generation_config
    default: Any = model.generation_config

    def setting(name: str) -> int | None:
        found = kwargs.get(name)
        found = getattr(config, name, None) if found is None else found
        return getattr(default, name, None) if found is None else found

    if (new := setting("max_new_tokens")) is not None:
        return length + int(new)
    if (most := setting("max_length")) is not None:
        return max(int(most), length)
    return length + 20  # what transformers generates when nothing is set
