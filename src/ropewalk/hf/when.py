"""When does a plan apply? Decided once for each generation, so that one generation has one base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ropewalk.errors import ArgumentError, unknown_name

WHEN = ("always", "long")
_MARK = "_ropewalk_is_active"


class Switch:
    """Tells each forward pass whether the plan applies to it.

    `always`: it does. `long`: it does when the whole generation, prompt and new tokens, is longer than
    `original_length`. `model.generate` knows that length beforehand. A bare forward pass counts its own
    tokens and those in its cache; the answer is kept on the cache, so all later passes with that cache
    follow it.
    """

    def __init__(self, model: nn.Module, when: str = "always", original_length: int | None = None):
        if when not in WHEN:
            raise unknown_name("when", when, WHEN)
        if when == "long" and (
            isinstance(original_length, bool) or not isinstance(original_length, int) or original_length < 1
        ):
            raise ArgumentError("original_length", original_length, "give the training length in tokens, 1 or more")
        self._model, self._when, self._original_length = model, when, original_length or 0
        self._generation: bool | None = None
        self._hooks: list[Any] = []
        self.is_active = True

    def connect(self) -> None:
        """Start listening to the model's calls; needed for `long` only."""
        if self._when == "always":
            return
        # The decoder inside the model, so that a call of that part alone is heard too.
        decoder = getattr(self._model, "base_model", self._model)
        self._hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True),
        ]
        if hasattr(self._model, "generate"):
            self._hooks.append(_Generate(self, self._model))

    def disconnect(self) -> None:
        """Stop listening; the model's own `generate` is back."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def start_generation(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Decide for all passes of one `generate` call, unless its cache holds keys and so has decided."""
        kept = _kept_answer(kwargs.get("past_key_values"))
        self._generation = _generation_length(model, args, kwargs) > self._original_length if kept is None else kept

    def end_generation(self) -> None:
        """Passes decide for themselves again."""
        self._generation = None

    def _before(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        answer = _kept_answer(cache) if self._generation is None else self._generation
        if answer is None:
            given = kwargs.get("input_ids", args[0] if args else None)
            given = kwargs.get("inputs_embeds") if given is None else given
            past = int(cache.get_seq_length()) if cache is not None else 0
            answer = past + (given.shape[1] if isinstance(given, Tensor) else 0) > self._original_length
        self.is_active = answer
        if cache is not None:
            setattr(cache, _MARK, answer)

    def _after(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        for part in parts:
            if hasattr(part, "get_seq_length"):
                setattr(part, _MARK, self.is_active)


class _Generate:
    """Stands for a model's `generate`: tells the switch how long each generation can get."""

    def __init__(self, switch: Switch, model: nn.Module):
        self._switch, self._model = switch, model
        self._before = model.__dict__.get("generate")
        model.__dict__["generate"] = self

    def remove(self) -> None:
        """Put back what was there."""
        self._model.__dict__.pop("generate", None)
        if self._before is not None:
            self._model.__dict__["generate"] = self._before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` with one base from the first token to the last."""
        model: Any = self._model
        self._switch.start_generation(model, args, kwargs)
        try:
            if self._before is not None:
                return self._before(*args, **kwargs)
            return type(model).generate(model, *args, **kwargs)
        finally:
            self._switch.end_generation()


def _kept_answer(cache: Any) -> bool | None:
    """What an earlier pass with this cache decided; None for a new cache, or one emptied since."""
    kept: bool | None = getattr(cache, _MARK, None)
    return None if kept is None or int(cache.get_seq_length()) == 0 else kept


def _generation_length(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Tokens at the end of a `generate` call that doesn't stop early."""
    prompt = next((kwargs[n] for n in ("input_ids", "inputs", "inputs_embeds") if kwargs.get(n) is not None), None)
    prompt = args[0] if prompt is None and args else prompt
    length = prompt.shape[1] if isinstance(prompt, Tensor) else 1
    given: Any = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
    default: Any = model.generation_config

    def setting(name: str) -> int | None:
        sources = (kwargs.get(name), getattr(given, name, None), getattr(default, name, None))
        return next((value for value in sources if value is not None), None)

    if (new := setting("max_new_tokens")) is not None:
        return length + int(new)
    if (most := setting("max_length")) is not None:
        return max(int(most), length)
    return length + 20  # what transformers generates when nothing is set
