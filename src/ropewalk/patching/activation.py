"""When does a plan apply? Decided once for each generation, so that one generation has one base."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ropewalk.encodings.model_rotation import RotaryLayer
from ropewalk.errors import ArgumentError, unknown_name

WHEN = ("always", "long")
_MARK = "_ropewalk_is_active"


class _Here(threading.local):
    """What the asking thread is doing: two threads may run one model at once.

    generation: the answer of the `generate` call that is running, None outside of one.
    is_active: the answer of the pass that is running.
    """

    generation: bool | None = None
    is_active: bool = True

    def __reduce__(self) -> tuple[type[_Here], tuple[()]]:
        return _Here, ()  # a model's deep copy has run nothing yet


class Switch:
    """Tells each forward pass whether the plan applies to it.

    `always`: it does. `long`: it does when the whole generation, prompt and new tokens, is longer than
    `original_length`. `model.generate` knows that length beforehand; a `generate` inside another, as when a model
    drafts for itself, follows the outer one. A bare forward pass counts its own tokens and those in its cache. The
    answer is kept on the cache, so all later passes with that cache follow it: where a short prefix was cached without
    the plan and the text then grows past the training length, the plan stays off, and a warning says so once.

    Args:
        model: what the encoding is installed in.
        when: `always` or `long`.
        original_length: for `long`, in tokens.
        layers: for `long`, the model's rotary layers, before anything has been put into them.
    """

    def __init__(
        self,
        model: nn.Module,
        when: str = "always",
        original_length: int | None = None,
        layers: tuple[RotaryLayer, ...] = (),
    ):
        if when not in WHEN:
            raise unknown_name("when", when, WHEN)
        if when == "long" and (
            isinstance(original_length, bool) or not isinstance(original_length, int) or original_length < 1
        ):
            raise ArgumentError("original_length", original_length, "give the training length in tokens, 1 or more")
        self._model, self._when, self._original_length = model, when, original_length or 0
        self._path = layers[0].path if layers else ""
        self._rotations = [(layer.rotary, layer.rotary.forward) for layer in layers]
        self._hooks: list[Any] = []
        self._here = _Here()
        self._has_warned = False

    @property
    def is_active(self) -> bool:
        """Whether the plan applies to the pass that this thread is running."""
        return self._when == "always" or self._here.is_active

    def connect(self) -> None:
        """Start listening to the model's calls; needed for `long` only, and once the rotary modules hand on steps."""
        if self._when == "always":
            return
        for rotary, own in self._rotations:
            giver: Any = rotary.forward
            giver.own = own
        decoder = _decoder(self._model, self._path)
        self._hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True),
        ]
        if (generator := _generator(self._model, decoder)) is not None:
            self._hooks.append(_Generate(self, generator))

    def disconnect(self) -> None:
        """Stop listening; the model's own `generate` is back."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def generation(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Decide for all passes of one `generate` call in this thread, unless its cache, not empty, has decided."""
        outer = self._here.generation
        answer = _answer(kwargs.get("past_key_values"), outer)
        if answer is None:
            answer = _generation_length(model, args, kwargs) > self._original_length
        elif outer is None and not answer:
            self._check_prefix(_generation_length(model, args, kwargs))
        self._here.generation = answer
        try:
            yield
        finally:
            self._here.generation = outer

    def _before(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        answer = _answer(cache, self._here.generation)
        if answer is None:
            past = int(cache.get_seq_length()) if cache is not None else 0
            answer = past + _new_tokens(args, kwargs) > self._original_length
        elif cache is not None and self._here.generation is None and not answer and not self._has_warned:
            self._check_prefix(int(cache.get_seq_length()) + _new_tokens(args, kwargs))
        self._here.is_active = answer
        if cache is not None:
            setattr(cache, _MARK, answer)

    def _check_prefix(self, length: int) -> None:
        """Warn, once, that the plan stays off because the cache was begun by a pass within the training length.

        The cached keys were rotated by the model's own frequencies. Queries under the plan's would not fit them, so
        the cache's decision holds; the user learns of it.
        """
        if length <= self._original_length or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"The plan stays off for these {length:,} tokens, although they are more than the training length of "
            f"{self._original_length:,}: their cache was begun by a pass within it, without the plan, and cached keys "
            "can't be rotated again. Install the plan with when='always', or read the whole prompt in one generate "
            "call without past_key_values.",
            stacklevel=4,
        )

    def _after(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        for part in parts:
            if hasattr(part, "get_seq_length"):
                setattr(part, _MARK, self._here.is_active)


class _Generate:
    """Stands for a model's `generate`: tells the switch how long each generation can get."""

    def __init__(self, switch: Switch, model: Any):
        self._switch, self._model = switch, model
        self._before = model.__dict__.get("generate")
        self._own = model.generate
        model.__dict__["generate"] = self

    def remove(self) -> None:
        """Put back what was there."""
        self._model.__dict__.pop("generate", None)
        if self._before is not None:
            self._model.__dict__["generate"] = self._before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` with one base from the first token to the last."""
        with self._switch.generation(self._model, args, kwargs):
            return self._own(*args, **kwargs)


def _decoder(model: nn.Module, path: str) -> nn.Module:
    """The module that holds the list of blocks with the layer at `path`: every pass calls it, whatever is around it."""
    module = model
    for name in path.split("."):
        inner = getattr(module, name)
        if isinstance(inner, nn.ModuleList):
            return module
        module = inner
    return model


def _generator(model: nn.Module, decoder: nn.Module) -> nn.Module | None:
    """The innermost module around the decoder with a `generate`: those of PEFT and torch.compile call that one."""
    around = [part for part in model.modules() if any(inner is decoder for inner in part.modules())]
    return next((part for part in reversed(around) if hasattr(type(part), "generate")), None)


def _new_tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many tokens, or vectors in their place, a pass of the decoder is given."""
    given = kwargs.get("input_ids", args[0] if args else None)
    given = kwargs.get("inputs_embeds") if given is None else given
    return given.shape[1] if isinstance(given, Tensor) else 0


def _answer(cache: Any, generation: bool | None) -> bool | None:
    """What holds for a pass with this cache: the cache's own answer before the running generation's."""
    # Where both say the same the cache isn't asked for its length: a static one would wait for its device.
    if generation is not None and getattr(cache, _MARK, generation) == generation:
        return generation
    kept = _kept_answer(cache)
    return generation if kept is None else kept


def _kept_answer(cache: Any) -> bool | None:
    """What an earlier pass with this cache decided; None for a new cache, or one emptied since."""
    kept: bool | None = getattr(cache, _MARK, None)
    return None if kept is None or int(cache.get_seq_length()) == 0 else kept


def _generation_length(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Tokens at the end of a `generate` call that doesn't stop early."""
    by_name = {n: kwargs[n] for n in ("input_ids", "inputs", "inputs_embeds") if kwargs.get(n) is not None}
    prompt = next(iter(by_name.values()), args[0] if args else None)
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
    # What transformers does when nothing is set: 20 tokens more, where the model has positions. Vectors don't count.
    counted = 0 if list(by_name) == ["inputs_embeds"] else length
    positions = getattr(model.config, "max_position_embeddings", None)
    end = counted + 20 if positions is None else min(counted + 20, int(positions))
    return max(length, length - counted + end)
