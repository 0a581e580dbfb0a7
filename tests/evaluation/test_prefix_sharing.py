from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.evaluation.tiny_models import tiny
from torch import nn

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import UnsupportedModelError
from ropewalk.evaluation import prefix_sharing as layer_tree
from ropewalk.evaluation.candidates import dope_candidates, plain_candidate
from ropewalk.evaluation.kv_fork import fork
from ropewalk.evaluation.prefix_sharing import SharedReading, decoder_blocks, layer_path
from ropewalk.evaluation.reader import Reader
from ropewalk.heads import HeadSelection
from ropewalk.patching import installed

IDS = tuple((torch.arange(90) * 37 % 590 + 3).tolist())


def plan(model: nn.Module, *heads: tuple[int, int], mode: str = "all") -> DoPE:
    rope = RoPE.from_model(model)
    assert isinstance(rope, RoPE | PerLayer)
    return DoPE(rope, HeadSelection(heads), mode=mode, original_length=64)


def plans(model: nn.Module) -> list[Encoding]:
    """A tree: 3.2 noisy, (2.1), (2.1, 3.0) and (2.1, 3.3) branch off in layers 2 and 3, one more in layer 0."""
    return [
        plan(model, (2, 1), (3, 0)),
        plan(model, (3, 2), mode="gaussian"),
        plan(model, (0, 1), (3, 2)),
        RoPE.from_model(model),
        plan(model, (2, 1)),
        plan(model, (2, 1), (3, 3)),
    ]


TREE = [3, 1, 4, 0, 5, 2]  # the order in which `plans` are read
TREE_STARTS = [0, 3, 2, 3, 3, 0]


def assert_same_cache(one: Any, other: Any) -> None:
    assert len(one.layers) == len(other.layers)
    for mine, wanted in zip(one.layers, other.layers, strict=True):
        assert torch.equal(mine.keys, wanted.keys) and torch.equal(mine.values, wanted.values)
        assert mine.get_seq_length() == wanted.get_seq_length()


QUESTION = IDS[40:60]


@torch.no_grad()
def asked(model: nn.Module, cache: Any, ids: Sequence[int]) -> torch.Tensor:
    """The logits behind some tokens that continue from a cache, which is then as it was."""
    with fork(cache):
        logits: torch.Tensor = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).logits
    return logits


def check_all(model: nn.Module, encodings: Sequence[Encoding], shared: SharedReading) -> None:
    """Every reading equals a whole one, also when questions are asked in between."""
    for index in shared.order:
        with installed(model, encodings[index]):
            cache = shared.read(index)
            whole = Reader(model, None).read(IDS)  # type: ignore[arg-type]
            assert_same_cache(cache, whole)
            wanted = [asked(model, whole, ids) for ids in (QUESTION, QUESTION, IDS[:3])]
            with shared.asking():
                assert all(
                    torch.equal(asked(model, cache, ids), logits)
                    for ids, logits in zip((QUESTION, QUESTION, IDS[:3]), wanted, strict=True)
                )
            assert_same_cache(cache, whole)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral", "Gemma2", "Gemma3", "GPTNeoX"])
def test_shared_readings_equal_whole_ones_and_leave_nothing_behind(family: str) -> None:
    model = tiny(family)
    before = [dict(block.__dict__) for block in decoder_blocks(model)]
    shared = SharedReading(model, IDS, plans(model))
    assert list(shared.order) == TREE
    check_all(model, plans(model), shared)
    assert [block.__dict__.keys() for block in decoder_blocks(model)] == [held.keys() for held in before]
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in decoder_blocks(model))


def test_layers_without_a_rotation_belong_to_the_layers_below_them() -> None:
    model = tiny("SmolLM3")
    encodings = [RoPE.from_model(model), plan(model, (2, 1)), plan(model, (3, 1))]
    check_all(model, encodings, SharedReading(model, IDS, encodings))


def count_layers(model: nn.Module, monkeypatch: pytest.MonkeyPatch, shared: SharedReading) -> list[list[int]]:
    """The layers whose attention ran, and in negative numbers less one those whose MLP ran, a list a reading."""
    ran: list[int] = []
    hooks = []
    for index, block in enumerate(decoder_blocks(model)):
        hooks.append(block.self_attn.register_forward_pre_hook(lambda *_, i=index: ran.append(i)))
        hooks.append(block.mlp.register_forward_hook(lambda *_, i=index: ran.append(-i - 1)))
    found = []
    encodings = plans(model)
    for index in shared.order:
        with installed(model, encodings[index]):
            ran.clear()
            shared.read(index)
            found.append(list(ran))
    for hook in hooks:
        hook.remove()
    return found


def test_only_layers_that_nobody_has_computed_are_computed_and_the_last_ones_mlp_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("Llama")
    shared = SharedReading(model, IDS, plans(model))
    ran = count_layers(model, monkeypatch, shared)
    assert [[i for i in layers if i >= 0] for layers in ran] == [list(range(start, 4)) for start in TREE_STARTS]
    assert [[-i - 1 for i in layers if i < 0] for layers in ran] == [list(range(start, 3)) for start in TREE_STARTS]
    assert shared.layer_passes == sum(3 - start for start in TREE_STARTS) == 7


def test_the_first_pass_over_the_questions_starts_where_the_reading_did() -> None:
    model = tiny("Llama")
    encodings = plans(model)
    shared = SharedReading(model, IDS, encodings)
    ran: list[int] = []
    for index, block in enumerate(decoder_blocks(model)):
        block.mlp.register_forward_hook(lambda *_, i=index: ran.append(i))
    found = []
    for index in shared.order:
        with installed(model, encodings[index]):
            cache = shared.read(index)
            ran.clear()
            if index == 4:  # nobody asks: the readings above it start from the bottom
                continue
            with shared.asking():
                asked(model, cache, QUESTION)
                found.append(ran[0])
                ran.clear()
                asked(model, cache, QUESTION)
                assert ran == [0, 1, 2, 3]
    assert found == [0, 3, 0, 3, 0]


def test_with_less_room_readings_start_lower_and_say_the_same() -> None:
    model = tiny("Llama")
    one = len(IDS) * 64 * 4
    shared = SharedReading(model, IDS, plans(model), kept_bytes=one)
    roomy = SharedReading(model, IDS, plans(model))
    assert shared.layer_passes > roomy.layer_passes
    for index in shared.order:
        with installed(model, plans(model)[index]):
            shared.read(index)
            assert len(shared._inputs) <= 1
    check_all(model, plans(model), SharedReading(model, IDS, plans(model), kept_bytes=one))


@pytest.mark.parametrize("most", [1, 2, 3, 99])
def test_no_more_inputs_are_kept_than_asked_for(most: int) -> None:
    for starts in itertools.product(range(5), repeat=5):
        bounded = layer_tree.bounded([0, *starts], 4, most)
        assert all(low <= high for low, high in zip(bounded, [0, *starts], strict=True))
        assert all(len(layer_tree.later_starts(bounded, at, 4)) <= most for at in range(6))
        if most > 3:
            assert bounded == [0, *starts]


def test_equal_encodings_are_read_once() -> None:
    model = tiny("Llama")
    encodings = [RoPE.from_model(model), plan(model), plan(model, (1, 0))]
    shared = SharedReading(model, IDS, encodings)
    assert shared.layer_passes == 3 + 2
    check_all(model, encodings, shared)


def test_other_kinds_share_nothing() -> None:
    model = tiny("Llama")
    encodings = [RoPE.from_model(model), PoPE(16, 2), PoPE(16, 2, delta="uniform"), PoPE(16, 2)]
    shared = SharedReading(model, IDS, encodings)
    assert shared.layer_passes == 9 and list(shared.order) == [0, 1, 3, 2]


def test_nothing_stays_patched_after_an_exception() -> None:
    model = tiny("Llama")
    encodings = [RoPE.from_model(model), plan(model, (2, 1))]
    shared = SharedReading(model, IDS, encodings)
    blocks = decoder_blocks(model)
    with installed(model, encodings[0]):
        shared.read(0)

    def hooked(*_: Any, **__: Any) -> None:
        raise AssertionError("a skipped layer was called")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), installed(model, encodings[1]):
        blocks[1].__dict__["forward"] = hooked  # as a device hook sets it
        blocks[2].mlp.__dict__["forward"] = fail
        shared.read(1)
    assert "forward" not in blocks[0].__dict__ and "forward" not in blocks[3].__dict__
    assert blocks[1].__dict__["forward"] is hooked
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_a_last_layer_with_a_device_hook_runs_to_its_end() -> None:
    model = tiny("Llama")
    last = decoder_blocks(model)[-1]
    held = last.forward
    ran: list[int] = []
    last.mlp.register_forward_hook(lambda *_: ran.append(1))
    last.__dict__["forward"] = lambda *args, **kwargs: held(*args, **kwargs)
    encodings = [RoPE.from_model(model)]
    shared = SharedReading(model, IDS, encodings)
    with installed(model, encodings[0]):
        shared.read(0)
    assert ran


def test_layers_that_read_the_keys_of_lower_ones_are_never_started_at() -> None:
    model = tiny("Llama")
    model.config.num_kv_shared_layers = 2
    encodings = [RoPE.from_model(model), plan(model, (2, 1))]
    shared = SharedReading(model, IDS, encodings)
    assert shared.layer_passes == 8
    check_all(model, encodings, shared)


def test_a_path_says_what_a_plan_does_in_each_layer_and_nothing_more() -> None:
    rope = RoPE(16)
    per_layer = PerLayer(((0, rope), (2, rope), (3, RoPE(16, 500.0))))
    layers = [0, 2, 3]

    def agree(one: Encoding, other: Encoding) -> list[bool]:
        return [a == b for a, b in zip(layer_path(one, layers), layer_path(other, layers), strict=True)]

    def dope(*heads: tuple[int, int], base: RoPE | PerLayer = rope, **fields: Any) -> DoPE:
        return DoPE(base, HeadSelection(heads), **fields)

    assert agree(dope((2, 1), (3, 0)), dope((2, 1))) == [True, True, False]
    assert agree(dope((2, 1)), dope((2, 1), (2, 2))) == [True, False, True]
    assert agree(dope(), rope) == [True, True, True]
    assert agree(per_layer, rope) == [True, True, False]
    assert agree(dope((2, 1), base=per_layer), per_layer) == [True, False, True]
    assert agree(dope((2, 1)), dope((2, 1), mode="parts")) == [True, False, True]
    # A seed matters where there is noise, the training length where bands are told apart by it.
    assert agree(dope((2, 1)), dope((2, 1), seed=7, original_length=5)) == [True, True, True]
    assert agree(dope((2, 1), mode="gaussian"), dope((2, 1), mode="gaussian", seed=7)) == [True, False, True]
    assert agree(dope((2, 1), mode="gaussian"), dope((2, 1), mode="gaussian", sigma=0.5)) == [True, False, True]
    assert agree(dope((2, 1), mode="parts"), dope((2, 1), mode="parts", original_length=5)) == [True, False, True]
    for field, value in {"reading": "zero", "scope": "kv_group", "apply_to": "key"}.items():
        assert agree(dope((2, 1)), dope((2, 1), **{field: value})) == [True, False, True]


def test_a_model_without_a_list_of_layers_is_refused_by_name() -> None:
    model = tiny("Llama", num_hidden_layers=1)
    lonely = copy.deepcopy(model)
    lonely.model.only = lonely.model.layers[0]
    del lonely.model.layers
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        decoder_blocks(lonely)


# SmolLM2's first ten heads (layer.head) by each score of the search, measured at 4,096 tokens under its own rotation.
RANKED = {
    ("truncated_entropy", 32): "7.3 7.4 7.5 19.0 19.1 19.2 15.3 15.4 15.5 11.6",
    ("truncated_entropy", 1): "11.6 11.7 11.8 7.3 7.4 7.5 11.0 11.1 11.2 28.0",
    ("truncated_effective_rank", 16): "19.0 15.3 28.1 16.8 16.3 15.5 27.2 23.4 3.5 16.6",
    ("truncated_effective_rank", 8): "1.6 1.7 1.8 11.6 11.7 11.8 7.3 7.4 7.5 10.3",
    ("band_entropy", None): "7.6 7.7 7.8 18.6 18.7 18.8 17.3 17.4 17.5 4.3",
}


class Ranked:
    """Stands for SmolLM2's head statistics."""

    layers, num_heads, head_dim = tuple(range(30)), 9, 64

    def select(self, score: str, r: int | None = None, heads: int = 3, **_: Any) -> HeadSelection:
        return HeadSelection(tuple(map(int, place.split("."))) for place in RANKED[score, r].split()[:heads])


def test_32_plans_of_a_search_compute_at_most_six_tenths_of_their_layers() -> None:
    """The 14 plans that `extend` tries, and 1 to 10 heads by the first key and the first query score of those."""
    model = tiny(
        "Llama", num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=36, head_dim=4
    )
    own = RoPE.from_model(model)
    assert isinstance(own, RoPE)
    statistics: Any = Ranked()
    encodings = [found.encoding for found in dope_candidates(plain_candidate(own), statistics, 8192)]
    for score, r in (("truncated_entropy", 32), ("truncated_effective_rank", 16)):
        encodings += [DoPE(own, statistics.select(score, r, heads), original_length=8192) for heads in range(1, 11)]
    encodings = list(dict.fromkeys(encodings))
    shared = SharedReading(model, IDS, encodings)
    assert len(encodings) == 32 and shared.layer_passes == 552 <= 0.6 * 32 * 30
    narrow = SharedReading(model, IDS, encodings, kept_bytes=2 * len(IDS) * 36 * 4)
    assert narrow.layer_passes < 0.66 * 32 * 30
