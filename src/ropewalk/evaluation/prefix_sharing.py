"""Encodings as a tree of what they do in each layer, and where in it each reading of a prompt starts."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.model_rotation import decoder_blocks, forward_as, model_config, rotary_layers
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.kv_fork import forkable_cache
from ropewalk.patching.input_limits import check_vocabulary


def layer_path(encoding: Encoding, layers: Sequence[int]) -> tuple[Hashable, ...]:
    """For each of the rotary `layers` a value that is equal where two encodings do the same in that layer.

    Only rotations are compared layer by layer; an encoding of another kind is equal to itself alone.
    """
    inner = [entry for _, entry in encoding.layers] if isinstance(encoding, PerLayer) else [encoding]
    if not all(isinstance(entry, RoPE | DoPE) for entry in inner):
        return (("whole", encoding),) * len(layers)
    return tuple(_in_layer(encoding, layer) for layer in layers)


def _in_layer(encoding: Encoding, layer: int) -> Hashable:
    """What an encoding does in a layer: of a plan only what concerns the heads that it selects there."""
    if isinstance(encoding, PerLayer):
        return _in_layer(dict(encoding.layers)[layer], layer)
    if not isinstance(encoding, DoPE) or not encoding.heads.in_layer(layer):
        return encoding.rope.at(layer) if isinstance(encoding, DoPE) else encoding.at(layer)
    noise = (encoding.seed, encoding.sigma) if encoding.mode == "gaussian" else ()
    slow = encoding.original_length if encoding.mode == "parts" else 0
    change = encoding.mode, encoding.reading, encoding.scope, encoding.apply_to, noise, slow
    return "dope", encoding.heads.in_layer(layer), change, encoding.rope.at(layer)


def depth_first(numbers: list[int], paths: Sequence[Sequence[Hashable]], depth: int) -> list[int]:
    """The encodings in an order in which neighbours agree longest; plain rotations first, then as they were given."""
    if len(numbers) == 1 or not numbers or depth == len(paths[numbers[0]]):
        return numbers
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        groups.setdefault(paths[number][depth], []).append(number)
    ordered = sorted(groups.items(), key=lambda group: isinstance(group[0], tuple))
    return [number for _, group in ordered for number in depth_first(group, paths, depth + 1)]


def later_starts(starts: Sequence[int], number: int, layers: int) -> dict[int, int]:
    """The layers at which later readings leave the path of reading `number`, and how many do so there."""
    lowest = layers
    uses: dict[int, int] = {}
    for start in starts[number + 1 :]:
        if start == 0:
            break
        # One that starts above the lowest start so far leaves a later reading's path, not this one's.
        if start <= lowest and start < layers:
            lowest = start
            uses[start] = uses.get(start, 0) + 1
    return uses


def bounded(starts: Sequence[int], layers: int, most: int) -> list[int]:
    """The starts, some of them lowered so that no more than `most` inputs are kept at any time.

    Given up are those that cost the fewest layers: uses x the way down to the next start that is kept.
    """
    bounded = list(starts)
    for number in range(len(bounded)):
        while len(uses := later_starts(bounded, number, layers)) > most:
            kept = [0, *sorted(uses)]
            below = dict(zip(kept[1:], kept, strict=False))
            given_up = min(uses, key=lambda at: uses[at] * (at - below[at]))
            lowest = layers
            for later in range(number + 1, len(bounded)):
                if bounded[later] == 0:
                    break
                if bounded[later] == given_up and given_up <= lowest:
                    bounded[later] = below[given_up]
                lowest = min(lowest, bounded[later])
    return bounded


# Room for the inputs of layers at which later readings start.
KEPT_BYTES = 1 << 30


class _KeysAreIn(Exception):
    """The last layer has put its keys and values into the cache; nobody needs what it would compute next."""


class SharedReading:
    """A model reads one prompt under many encodings, each from the first layer on in which it differs from others.

    The encodings' layers make a tree, read depth first: each reading starts at the layer where it leaves the one
    before it, from that layer's input, which was kept. In a model's last layer only the keys and values are computed,
    as a cache holds no more. Every number is that of a whole pass.

        for index in shared.order:
            with installed(model, encodings[index]):
                cache = shared.read(index)
                with shared.asking():
                    ...  # the same questions each time, continuing from the cache

    Args:
        model: a Hugging Face causal model.
        ids: the prompt's tokens.
        encodings: what it is read under.
        kept_bytes: the most that kept inputs may take (tokens x hidden size each); with less, readings start lower.
    """

    def __init__(
        self, model: nn.Module, ids: Sequence[int], encodings: Sequence[Encoding], kept_bytes: int = KEPT_BYTES
    ):
        check_vocabulary(model, ids)
        self.model = model
        parameter = next(model.parameters())
        self._ids = torch.tensor([list(ids)], device=parameter.device)
        self._blocks = decoder_blocks(model)
        self._gives_tuple: list[bool] = [False] * len(self._blocks)
        # In such models the last layers read the keys of lower ones, which they would miss.
        self._can_share = not getattr(model_config(model), "num_kv_shared_layers", 0)
        # A device hook around a block wants it to run to its end.
        self._can_stop = self._can_share and len(self._blocks) > 1 and "forward" not in self._blocks[-1].__dict__
        layers = [layer.index for layer in rotary_layers(model)]
        paths = [layer_path(encoding, layers) for encoding in encodings]
        self.order = tuple(depth_first(list(range(len(paths))), paths, 0))
        starts = [self._start(paths, layers, number) for number in range(len(paths))]
        each = len(ids) * int(model_config(model).hidden_size) * parameter.element_size()
        self._starts = bounded(starts, len(self._blocks), max(1, kept_bytes // each))
        self._done = 0
        # By layer: the prompt's tokens as they come into it, and those of the first pass over the questions.
        self._inputs: dict[int, Tensor] = {}
        self._asked: dict[int, Tensor] = {}
        self._cache: DynamicCache | None = None

    @property
    def layer_passes(self) -> int:
        """Whole layers that all readings compute together, of len(order) x layers for separate ones.

        Where the last layer ends with its keys and values, it doesn't count.
        """
        whole = len(self._blocks) - 1 if self._can_stop else len(self._blocks)
        return sum(max(0, whole - start) for start in self._starts)

    def read(self, index: int) -> DynamicCache:
        """The cache after reading the prompt under encoding `index`, which must be installed; in `order`, each once."""
        number, start = self._done, self._starts[self._done]
        assert self.order[number] == index, "readings come in the order of `order`"
        shared = self._cache.layers[:start] if self._cache is not None else []
        if start == len(self._blocks):  # no layer differs: the same cache
            assert self._cache is not None
            self._done += 1
            return self._cache
        self._cache = None
        needed = later_starts(self._starts, number, len(self._blocks))
        self._inputs = _still_needed(self._inputs, start, needed)
        with self._from_layer(start, needed, self._inputs):
            cache = self._run()
        # Filled only now: during the pass an empty first layer says that no token is cached yet.
        cache.layers[:start] = shared
        if start not in needed:
            self._inputs.pop(start, None)
        self._done += 1
        self._cache = cache
        return cache

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Within it the model's first pass, over the same tokens after every reading, shares layers as readings do."""
        start = self._starts[self._done - 1]
        needed = later_starts(self._starts, self._done - 1, len(self._blocks))
        self._asked = _still_needed(self._asked, start, needed)
        start = start if start in self._asked else 0
        with ExitStack() as stack:
            stack.enter_context(self._from_layer(start, needed, self._asked))
            # Later passes depend on what the model says.
            first = self.model.register_forward_hook(lambda *_: stack.close(), always_call=True)
            stack.callback(first.remove)
            yield
        if start not in needed:
            self._asked.pop(start, None)

    def _start(self, paths: Sequence[Sequence[Hashable]], layers: Sequence[int], number: int) -> int:
        """The layer at which reading `number` leaves the one before it; the number of layers when it never does."""
        if number == 0 or not self._can_share:
            return 0
        before, mine = paths[self.order[number - 1]], paths[self.order[number]]
        pairs = zip(layers, before, mine, strict=True)
        return next((layer for layer, one, other in pairs if one != other), len(self._blocks))

    @torch.no_grad()
    def _run(self) -> DynamicCache:
        config: Any = self.model.config
        cache = forkable_cache(config)
        with self._stopping(cache):
            self.model(input_ids=self._ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    @contextmanager
    def _from_layer(self, start: int, needed: Collection[int], inputs: dict[int, Tensor]) -> Iterator[None]:
        """Passes within it begin at layer `start`, with its input from `inputs`, and put there those of later ones."""
        with ExitStack() as stack:
            for index, block in enumerate(self._blocks):
                hook = block.register_forward_hook(self._note_form(index))
                stack.callback(hook.remove)
                if index in needed and index > start:
                    before = block.register_forward_pre_hook(_keep_input(inputs, index), with_kwargs=True)
                    stack.callback(before.remove)
                if index < start:
                    output = (inputs[start],) if self._gives_tuple[index] else inputs[start]
                    stack.enter_context(forward_as(block, lambda *_, _output=output, **__: _output))
            yield

    def _note_form(self, index: int) -> Any:
        def note(_block: nn.Module, _args: Any, output: Any) -> None:
            self._gives_tuple[index] = isinstance(output, tuple)

        return note

    @contextmanager
    def _stopping(self, cache: DynamicCache) -> Iterator[None]:
        """The last block ends as soon as its keys and values are in the cache; its output is then no real one.

        One that puts nothing into the cache runs to its end.
        """
        last = self._blocks[-1]
        if not self._can_stop or len(cache.layers) != len(self._blocks):
            yield
            return
        layer: Any = cache.layers[-1]
        forward, update = last.forward, layer.update

        def put_and_stop(*args: Any, **kwargs: Any) -> None:
            update(*args, **kwargs)
            raise _KeysAreIn

        def until_then(*args: Any, **kwargs: Any) -> Any:
            layer.__dict__["update"] = put_and_stop
            try:
                return forward(*args, **kwargs)
            except _KeysAreIn:
                states = _hidden_states(args, kwargs)
                # Blocks of one model have one form, and the one below has shown it in this very pass.
                return (states,) if self._gives_tuple[-2] else states
            finally:
                layer.__dict__.pop("update", None)

        with forward_as(last, until_then):
            yield


def _still_needed(inputs: dict[int, Tensor], start: int, needed: Collection[int]) -> dict[int, Tensor]:
    """The inputs that a reading from `start` on begins with or leaves to later ones."""
    return {at: held for at, held in inputs.items() if at == start or (at < start and at in needed)}


def _keep_input(inputs: dict[int, Tensor], index: int) -> Any:
    def keep(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[index] = _hidden_states(args, kwargs)

    return keep


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of a decoder block."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states
