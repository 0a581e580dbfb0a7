from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.evaluation.tiny_models import tiny
from torch import nn

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import UnsupportedModelError
from ropewalk.evaluation.forkable import fork
from ropewalk.evaluation.read import Reader
from ropewalk.evaluation.shared import SharedReading, decoder_blocks, first_difference
from ropewalk.heads import HeadSelection
from ropewalk.hf import installed

IDS = tuple((torch.arange(90) * 37 % 590 + 3).tolist())


def plan(model: nn.Module, layer: int, mode: str = "all") -> DoPE:
    rope = RoPE.from_model(model)
    assert isinstance(rope, RoPE | PerLayer)
    return DoPE(rope, HeadSelection([(layer, 1), (3, 2)]), mode=mode, original_length=64)


def assert_same_cache(one: Any, other: Any) -> None:
    for mine, wanted in zip(one.layers, other.layers, strict=True):
        assert torch.equal(mine.keys, wanted.keys) and torch.equal(mine.values, wanted.values)
        assert mine.get_seq_length() == wanted.get_seq_length()


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral", "Gemma2", "Gemma3", "GPTNeoX", "SmolLM3"])
def test_a_shared_reading_equals_a_whole_one_and_skips_the_layers_below(family: str) -> None:
    model = tiny(family)
    rope = RoPE.from_model(model)
    blocks = decoder_blocks(model)
    before = [dict(block.__dict__) for block in blocks]
    shared = SharedReading(model, rope, IDS, [2, 3])
    with installed(model, rope):
        assert_same_cache(shared.cache, Reader(model, None).read(IDS))  # type: ignore[arg-type]
    ran: list[int] = []
    for index, block in enumerate(blocks):
        block.mlp.register_forward_hook(lambda *_, i=index: ran.append(i))
    # Asking questions in between, from caches that share layers, must not disturb what comes after.
    for layer, mode, start in ((3, "parts", 3), (2, "gaussian", 2), (2, "all", 2)):
        with installed(model, plan(model, layer, mode)):
            ran.clear()
            cache = shared.read(plan(model, layer, mode), layer)
            assert ran == list(range(start, 4))
            whole = Reader(model, None).read(IDS)  # type: ignore[arg-type]
            assert_same_cache(cache, whole)
            with torch.no_grad(), fork(cache):
                model(input_ids=torch.tensor([IDS[:40]]), past_key_values=cache)
            assert_same_cache(cache, whole)
    assert [block.__dict__.keys() for block in blocks] == [held.keys() for held in before]


def test_without_a_kept_start_below_everything_is_read_again() -> None:
    model = tiny("Llama")
    shared = SharedReading(model, RoPE.from_model(model), IDS, [2])
    with installed(model, plan(model, 1)):
        assert_same_cache(shared.read(plan(model, 1), 1), Reader(model, None).read(IDS))  # type: ignore[arg-type]


def test_nothing_stays_patched_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama")
    shared = SharedReading(model, RoPE.from_model(model), IDS, [2])
    blocks = decoder_blocks(model)

    def hooked(*_: Any, **__: Any) -> None:
        raise AssertionError("a skipped layer was called")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), installed(model, plan(model, 2)):
        blocks[1].__dict__["forward"] = hooked  # as a device hook sets it
        blocks[3].__dict__["forward"] = fail
        shared.read(plan(model, 2), 2)
    assert "forward" not in blocks[0].__dict__
    assert blocks[1].__dict__["forward"] is hooked
    monkeypatch.setattr(SharedReading, "_run", fail)
    del blocks[1].__dict__["forward"], blocks[3].__dict__["forward"]
    with pytest.raises(KeyboardInterrupt):
        SharedReading(model, RoPE.from_model(model), IDS, [2])
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_layers_that_read_the_keys_of_lower_ones_are_never_started_at() -> None:
    model = tiny("Llama")
    model.config.num_kv_shared_layers = 2
    shared = SharedReading(model, RoPE.from_model(model), IDS, [2])
    ran: list[int] = []
    decoder_blocks(model)[0].mlp.register_forward_hook(lambda *_: ran.append(0))
    with installed(model, plan(model, 2)):
        ran.clear()
        shared.read(plan(model, 2), 2)
    assert ran == [0]


def test_first_difference() -> None:
    rope = RoPE(16)
    per_layer = PerLayer(((0, rope), (2, rope), (3, RoPE(16, 500.0))))
    layers = [0, 2, 3]
    assert first_difference(rope, rope, layers) == 4
    assert first_difference(DoPE(rope, HeadSelection([(3, 0), (2, 1)])), rope, layers) == 2
    assert first_difference(DoPE(rope, HeadSelection([])), rope, layers) == 4
    assert first_difference(per_layer, rope, layers) == 3
    assert first_difference(DoPE(per_layer, HeadSelection([(2, 1)])), per_layer, layers) == 2


def test_a_model_without_a_list_of_layers_is_refused_by_name() -> None:
    model = tiny("Llama", num_hidden_layers=1)
    lonely = copy.deepcopy(model)
    lonely.model.only = lonely.model.layers[0]
    del lonely.model.layers
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        decoder_blocks(lonely)
