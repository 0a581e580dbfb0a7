"""Plans that agree in their first layers share the work of those layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.model_rotation import decoder_blocks, model_config
from ropewalk.evaluation.forkable import cache_after
from ropewalk.hf import installed


class SharedReading:
    """One pass of a model over a prompt, from whose layers later passes can start.

    Args:
        model: a Hugging Face causal model.
        base: the encoding of the first pass.
        ids: the prompt's tokens.
        starts: decoder layers at which later passes may start; their inputs are kept, N x hidden size each.
    """

    def __init__(self, model: nn.Module, base: Encoding, ids: Sequence[int], starts: Sequence[int]):
        self.model, self.base = model, base
        self._ids = torch.tensor([list(ids)], device=next(model.parameters()).device)
        self._blocks = decoder_blocks(model)
        self._inputs: dict[int, Tensor] = {}
        self._gives_tuple: list[bool] = [False] * len(self._blocks)
        # Layers that read the keys of layers below them would miss those.
        if getattr(model_config(model), "num_kv_shared_layers", 0):
            starts = ()
        with installed(model, base), self._listening(starts):
            self.cache = self._run()

    def read(self, encoding: Encoding, first_layer: int) -> DynamicCache:
        """The cache after reading the prompt under `encoding`, which equals `base` below `first_layer`.

        `encoding` must be installed already. Layers below the nearest kept start aren't computed again.
        """
        start = max((at for at in self._inputs if at <= first_layer), default=0)
        with self._starting_at(start):
            cache = self._run()
        # Filled only now: during the pass an empty first layer says that no token is cached yet.
        cache.layers[:start] = self.cache.layers[:start]
        return cache

    def _run(self) -> DynamicCache:
        return cache_after(self.model, self._ids)

    @contextmanager
    def _listening(self, starts: Sequence[int]) -> Iterator[None]:
        with ExitStack() as stack:
            for index, block in enumerate(self._blocks):
                hook = block.register_forward_hook(self._note_form(index))
                stack.callback(hook.remove)
                if index in starts and index > 0:
                    before = block.register_forward_pre_hook(self._keep_input(index), with_kwargs=True)
                    stack.callback(before.remove)
            yield

    def _note_form(self, index: int) -> Any:
        def note(_block: nn.Module, _args: Any, output: Any) -> None:
            self._gives_tuple[index] = isinstance(output, tuple)

        return note

    def _keep_input(self, index: int) -> Any:
        def keep(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._inputs[index] = args[0] if args else kwargs["hidden_states"]

        return keep

    @contextmanager
    def _starting_at(self, start: int) -> Iterator[None]:
        """Blocks below `start` hand their input on; block `start` gets the input that was kept."""
        skipped = self._blocks[:start]
        before = [block.__dict__.get("forward") for block in skipped]
        try:
            for index, block in enumerate(skipped):
                kept = self._inputs[start]
                output = (kept,) if self._gives_tuple[index] else kept
                block.__dict__["forward"] = lambda *_, _output=output, **__: _output
            yield
        finally:
            for block, held in zip(skipped, before, strict=True):
                block.__dict__.pop("forward", None)
                if held is not None:  # a device hook's
                    block.__dict__["forward"] = held


def first_difference(encoding: Encoding, base: Encoding, layers: Sequence[int]) -> int:
    """The first of the rotary `layers` (ascending) in which two encodings differ; one past the last when none does."""
    for layer in layers:
        if encoding.at(layer) != base.at(layer):
            return layer
    return layers[-1] + 1
