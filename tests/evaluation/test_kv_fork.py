from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.tiny_models import tiny
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ropewalk.evaluation.kv_fork import ForkableLayer, fork, forkable_cache


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 6), st.integers(1, 2), st.data())
def test_it_holds_what_a_growing_layer_holds(steps: list[int], room: int, batch: int, data: st.DataObject) -> None:
    ours, theirs = ForkableLayer(room), DynamicLayer()
    for number, step in enumerate(steps):
        torch.manual_seed(number)
        keys, values = torch.randn(batch, 3, step, 4), torch.randn(batch, 2, step, 6)
        for mine, wanted in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(mine, wanted)
        assert ours.get_seq_length() == theirs.get_seq_length()
        what = data.draw(st.sampled_from(["nothing", "crop", "reorder"]))
        for layer in (ours, theirs):
            if what == "crop":
                layer.crop(-1)
            if what == "reorder":
                layer.reorder_cache(torch.arange(batch - 1, -1, -1))
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_appending_within_the_room_copies_nothing_and_beyond_it_grows() -> None:
    layer = ForkableLayer(room=4)
    first = layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))[0]
    within = layer.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))[0]
    assert within.data_ptr() == first.data_ptr()
    beyond = layer.update(torch.full((1, 1, 1, 2), 5.0), torch.zeros(1, 1, 1, 2))[0]
    assert beyond.data_ptr() != first.data_ptr()
    assert beyond[0, 0, :, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 5]


def test_a_reset_layer_starts_again() -> None:
    layer = ForkableLayer(room=4)
    layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    layer.reset()
    assert layer.get_seq_length() == 0
    keys, _ = layer.update(torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2))
    assert keys.shape == (2, 1, 1, 2) and not keys.any()


def test_only_growing_layers_are_replaced() -> None:
    cache = forkable_cache(tiny("Gemma2").config)
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer, ForkableLayer] * 2


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Mistral"])
@torch.no_grad()
def test_after_a_fork_the_cache_is_as_it_was(family: str) -> None:
    """Two caches that share layers, as `SharedReading` makes them: a fork of one leaves the other alone too."""
    model = tiny(family)
    ids = torch.arange(3, 73)[None]
    cache = forkable_cache(model.config, room=8)
    model(input_ids=ids, past_key_values=cache)
    sharing = DynamicCache(config=model.config)
    sharing.layers = list(cache.layers)
    before = copy.deepcopy(cache)
    wanted = model(input_ids=ids[:, :5], past_key_values=copy.deepcopy(cache)).logits
    with pytest.raises(KeyboardInterrupt), fork(sharing):
        model(input_ids=ids[:, 10:30], past_key_values=sharing)
        raise KeyboardInterrupt
    for kept in (cache, sharing):
        for layer, old in zip(kept.layers, before.layers, strict=True):
            assert torch.equal(layer.keys, old.keys) and torch.equal(layer.values, old.values)
            assert layer.get_seq_length() == old.get_seq_length() == 70
        with fork(kept):
            assert torch.equal(model(input_ids=ids[:, :5], past_key_values=kept).logits, wanted)
