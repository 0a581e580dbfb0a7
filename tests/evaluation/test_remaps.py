"""Position remaps as candidates of `extend`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.tiny_models import tiny
from tests.reference import remap as reference

from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.candidates import is_remap, rotation_to_stretch, rule_candidates
from ropewalk.evaluation.remaps import remap_candidates, search_candidates, smallest_group
from ropewalk.patching import installed


@pytest.mark.parametrize(("original", "target"), [(256, 300), (256, 512), (8192, 11000), (8192, 16384), (100, 1000)])
def test_no_distance_is_above_the_training_length(original: int, target: int) -> None:
    model = tiny("Llama")
    found = remap_candidates(model, RoPE.from_model(model), original, target)
    kinds = [c.name.split()[0] for c in found]
    assert kinds == ["self_extend"] * (len(found) - 2) + ["rerope", "dual_chunk"]
    assert 1 <= kinds.count("self_extend") <= 3 and len({c.name for c in found}) == len(found)
    for candidate in found:
        assert isinstance(candidate.encoding, Remap)
        assert candidate.encoding.largest_distance(target) < original, candidate.name


@pytest.mark.parametrize(
    ("original", "target", "sizes"),
    [
        (256, 300, ["64/2", "32/2", "128/2"]),
        (8192, 11000, ["2048/2", "1024/3", "4096/3"]),
        (8192, 16384, ["2048/3", "1024/4", "4096/5"]),
        (8192, 65536, ["2048/14", "1024/14", "4096/23"]),
        (8, 12, ["2/2", "1/3", "4/3"]),
    ],
)
def test_self_extend_comes_in_three_sizes_that_keep_far_positions_well_inside(
    original: int, target: int, sizes: list[str]
) -> None:
    model = tiny("Llama")
    found = [c.encoding for c in remap_candidates(model, RoPE.from_model(model), original, target)]
    extends = [e for e in found if isinstance(e, SelfExtend)]
    assert [e.sizes for e in extends] == sizes
    for encoding, share in zip(extends, (0.84, 0.71, 0.84), strict=True):
        assert encoding.largest_distance(target) <= share * original
        smaller = dataclasses.replace(encoding, group=encoding.group - 1)
        assert encoding.group == 2 or smaller.largest_distance(target) > share * original
    rest = [e.sizes for e in found if not isinstance(e, SelfExtend)]
    assert rest == [f"{original // 2}", f"{original * 3 // 4}/{original // 4}"]


@given(window=st.integers(1, 60), beyond=st.floats(0.25, 80), target=st.integers(2, 400))
def test_the_smallest_group_is_the_smallest(window: int, beyond: float, target: int) -> None:
    furthest = window + beyond
    group = smallest_group(window, target, furthest)

    def largest(group: int) -> int:
        apart = [distance for distance in range(target) if distance >= window]
        return max((reference.self_extend(target - 1, target - 1 - d, window, group) for d in apart), default=0)

    fitting = [g for g in range(2, target + 2) if g >= target or largest(g) <= furthest]
    assert group == (fitting[0] if target > window else group)
    if target > window:
        assert largest(group) <= furthest or group == max(2, target)


def test_a_window_without_room_is_refused_in_one_line() -> None:
    for window in (100, 84):
        with pytest.raises(ArgumentError, match=rf"^window={window}: .*84 tokens") as caught:
            smallest_group(window, 1000, 84.0)
        assert "\n" not in str(caught.value)
    assert smallest_group(83, 84, 84.0) >= 2


@pytest.mark.parametrize(("original", "target"), [(256, 300), (8192, 16384)])
def test_the_order_of_a_search(original: int, target: int) -> None:
    """YaRN, Self-Extend and ReRoPE, three more rules, dual chunk, then the other rules; plain isn't there."""
    model = tiny("Llama")
    own = RoPE.from_model(model)
    names = [c.name for c in search_candidates(model, own, original, target)]
    rules = [c.name for c in rule_candidates(own, original, target)]
    kinds = [name.split()[0] for name in names[:9]]
    assert kinds == ["yarn", *["self_extend"] * 3, "rerope", "ntk", "ntk_by_parts", "llama3", "dual_chunk"]
    assert [name for name in names if name in rules] == rules and names[9:] == rules[4:]
    assert len(set(names)) == len(names) == len(rules) + 5 and "plain" not in names


def test_a_model_with_a_rule_of_its_own_begins_with_that_rule() -> None:
    model = tiny("Llama", rope_scaling={"rope_type": "linear", "factor": 2.0})
    names = [c.name for c in search_candidates(model, RoPE.from_model(model), 256, 512)]
    assert names[0] == "own linear x4" and names[1].startswith("self_extend")


def test_without_remaps_a_search_is_that_of_rules() -> None:
    model = tiny("Gemma2")  # its scores are capped before the softmax
    own, stretched = rotation_to_stretch(model, 256)
    assert search_candidates(model, own, 256, 300, stretched) == rule_candidates(own, 256, 300, stretched)


@torch.no_grad()
def test_each_reads_past_its_window_and_changes_the_model() -> None:
    model = tiny("Llama")
    ids = torch.arange(300)[None] % 500
    plain = model(ids).logits
    for candidate in remap_candidates(model, RoPE.from_model(model), 256, 300):
        with installed(model, candidate.encoding):
            changed = model(ids).logits
        assert torch.isfinite(changed).all()
        assert torch.allclose(changed[:, :32], plain[:, :32], atol=1e-4), candidate.name  # all within every window
        assert not torch.allclose(changed[:, -1], plain[:, -1], atol=1e-4), candidate.name


def test_layers_with_a_window_keep_their_rotation() -> None:
    model = tiny("Mistral", sliding_window=32)
    model.config.layer_types = ["sliding_attention", "full_attention"] * 2
    own, stretched = rotation_to_stretch(model, 256)
    assert isinstance(own, PerLayer)
    for candidate in remap_candidates(model, own, 256, 300, stretched):
        assert [isinstance(candidate.encoding.at(layer), Remap) for layer in range(4)] == [False, True] * 2
        assert is_remap(candidate.encoding)


def test_a_model_whose_attention_cant_have_them_has_none() -> None:
    model = tiny("Gemma2")  # its scores are capped before the softmax
    own, stretched = rotation_to_stretch(model, 256)
    assert remap_candidates(model, own, 256, 300, stretched) == []
    assert not hasattr(model, "_ropewalk_handle")


def test_a_remap_in_some_layers_is_told_from_rotations() -> None:
    rope = RoPE(16)
    assert is_remap(SelfExtend(rope)) and is_remap(PerLayer(((0, rope), (1, SelfExtend(rope)))))
    assert not is_remap(rope) and not is_remap(PerLayer(((0, rope), (1, NoPE())))) and not is_remap(NoPE())
