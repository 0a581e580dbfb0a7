"""Remaps by name and sizes: in configs, on command lines; sizes that don't fit the lengths are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.remaps import check_fits, named_remap, parsed_remap
from ropewalk.evaluation.sweep_config import PlanEntry, build_config

ROPE = RoPE(64, base=1e5)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("self_extend:2048/5", SelfExtend(ROPE, 2048, 5)),
        ("self_extend", SelfExtend(ROPE, 2048, 5)),
        ("rerope:4096", ReRoPE(ROPE, 4096)),
        ("rerope:4096/0.125", ReRoPE(ROPE, 4096, 0.125)),
        ("dual_chunk:6144/1024", DualChunk(ROPE, 6144, 1024)),
        ("dual_chunk", DualChunk(ROPE, 6144, 2048)),
    ],
)
def test_a_remap_by_name(spec: str, expected: Remap) -> None:
    assert named_remap(spec, ROPE, 8192, 24576) == expected


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("self_extent:2048/5", "did you mean self_extend"),
        ("self_extend:2048", r"give self_extend:WINDOW/GROUP, in tokens"),
        ("self_extend:a/b", r"give self_extend:WINDOW/GROUP, in tokens"),
        ("self_extend:\uff15/4", r"give self_extend:WINDOW/GROUP"),
        ("self_extend:" + "9" * 400 + "/4", r"give self_extend:WINDOW/GROUP"),
        ("rerope:", r"give rerope:WINDOW or WINDOW/LEAK"),
        ("dual_chunk:100", r"give dual_chunk:CHUNK/LOCAL"),
        ("self_extend:2048/2", r"^group=2: .*13,311.*8,192 tokens; with this window give 4 or more$"),
        ("self_extend:9000/4", r"^window=9000: lets distances reach .*8,192 tokens; give less$"),
        ("self_extend:30000/4", r"^window=30000: is not shorter than the text of 24,576 tokens"),
        ("rerope:8192", r"^window=8192: lets distances reach 8,192"),
        ("rerope:4096/0.5", r"^leak=0.5: .*give 0.199 or less$"),
        ("dual_chunk:8000/1000", r"^chunk_size=8000: lets distances reach 8,999"),
        ("dual_chunk:24576/1", r"^chunk_size=24576: is not shorter than the text"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(spec: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said) as caught:
        named_remap(spec, ROPE, 8192, 24576)
    assert "\n" not in str(caught.value)


@given(window=st.integers(1, 400), leak=st.floats(0.01, 1), original=st.integers(2, 300), target=st.integers(2, 90000))
def test_the_leak_that_a_refusal_names_fits(window: int, leak: float, original: int, target: int) -> None:
    try:
        check_fits(ReRoPE(ROPE, window, leak), original, target)
    except ArgumentError as error:
        if error.argument == "leak":
            wanted = str(error).split("give ")[1].removesuffix(" or less")
            spec = f"rerope:{window}" if wanted == "no leak" else f"rerope:{window}/{wanted}"
            named_remap(spec, ROPE, original, target)


@given(window=st.integers(1, 400), group=st.integers(1, 30), original=st.integers(2, 300), target=st.integers(2, 900))
def test_what_is_let_through_keeps_distances_below_the_training_length(
    window: int, group: int, original: int, target: int
) -> None:
    remap = SelfExtend(ROPE, window, group)
    try:
        check_fits(remap, original, target)
    except ArgumentError as error:
        assert remap.largest_distance(target) >= original or window >= target
        if error.argument == "group":  # what the line says would fit does, and nothing smaller
            wanted = int(str(error).split("give ")[1].split()[0])
            assert SelfExtend(ROPE, window, wanted).largest_distance(target) < original
            assert wanted == 2 or SelfExtend(ROPE, window, wanted - 1).largest_distance(target) >= original
    else:
        assert remap.largest_distance(target) < original and window < target


def test_layers_without_rotation_keep_what_they_have() -> None:
    own = PerLayer(((0, ROPE), (1, NoPE()), (2, ROPE)))
    found = named_remap("self_extend:2048/5", own, 8192, 24576, lambda layer: layer != 2)
    assert [type(found.at(layer)) for layer in range(3)] == [SelfExtend, NoPE, RoPE]


def test_names_are_parsed() -> None:
    assert parsed_remap("rerope:8/0.5") == ("rerope", (8.0, 0.5))
    assert parsed_remap("rerope") == ("rerope", ())


def config(plans: list[Any]) -> dict[str, Any]:
    return {"models": ["smollm2"], "plans": plans, "tasks": ["needle"], "lengths": [24576]}


def test_a_sweep_takes_sizes_and_dope_on_a_remap() -> None:
    plans = build_config(
        config(
            [
                "plain",
                "self_extend:2048/5",
                {"remap": ["rerope", "self_extend:1024/5"], "dope": {"mode": "all", "view": ["near", "far"], "r": 32}},
            ]
        )
    ).plans
    assert [p.remap for p in plans[:2]] == [None, "self_extend:2048/5"]
    on_top = {(p.remap, p.dope.view) for p in plans[2:] if p.dope is not None}
    assert on_top == {(remap, view) for remap in ("rerope", "self_extend:1024/5") for view in ("near", "far")}
    assert plans[1].is_rule and not plans[2].is_rule
    assert plans[1] == PlanEntry(remap="self_extend:2048/5")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("self_extend:20", "give self_extend:WINDOW/GROUP"),
        ({"remap": "self_extent"}, "self_extend"),
        ({"remap": "self_extend", "factor": 2.0}, "factor"),
        ({"remap": "self_extend", "dope": {"view": "middle", "r": 32}}, "view"),
    ],
)
def test_a_sweep_refuses_what_it_cannot_read(plan: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        build_config(config(["plain", plan]))
