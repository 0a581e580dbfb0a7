"""Encodings by short name: what they mean, and names that mean nothing."""

from __future__ import annotations

import json

import pytest

from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.training.presets import NAMES, Shape, check_names, named, split_names, summaries

SHAPE = Shape(head_dim=8, heads=4, kv_heads=2, hidden=32, length=50)


def test_sizes_come_from_the_model() -> None:
    assert named("rope", SHAPE).encoding == RoPE(8)
    assert named("pope", SHAPE).encoding == PoPE(8, 2)
    assert named("pope-uniform", SHAPE).encoding == PoPE(8, 2, delta="uniform")
    assert named("pope-clamp", SHAPE).encoding == PoPE(8, 2, bound="clamp")
    assert named("pope", SHAPE).encoding.to_dict()["bound"] == "free"
    assert named("alibi", SHAPE).encoding == ALiBi(4)
    assert named("learned", SHAPE).encoding == Learned(32, 50)


@pytest.mark.parametrize("name", NAMES)
def test_what_makes_a_run_goes_through_json(name: str) -> None:
    chosen = named(name, SHAPE)
    data = json.loads(json.dumps(chosen.to_dict()))
    assert data["name"] == name
    assert Encoding.from_dict(data["encoding"]) == chosen.encoding
    assert (chosen.drop is not None) == (name == "drope")


def test_all_names_mean_different_things() -> None:
    found = [json.dumps({**named(name, SHAPE).to_dict(), "name": ""}) for name in NAMES]
    assert len(set(found)) == len(NAMES)


@pytest.mark.parametrize(
    ("text", "said"),
    [("rpoe", "did you mean rope"), ("rope,popee", "pope"), ("rope,rope", "twice"), (" , ", "at least one")],
)
def test_wrong_names_are_refused(text: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        split_names(text)


def test_names_keep_their_order() -> None:
    assert split_names("pope, rope,nope") == ("pope", "rope", "nope")
    with pytest.raises(ArgumentError, match="did you mean alibi"):
        named("alibii", SHAPE)
    with pytest.raises(ArgumentError, match="encoding"):
        check_names([])


def test_every_name_has_a_line_of_its_own() -> None:
    found = summaries()
    assert tuple(found) == NAMES and len(set(found.values())) == len(NAMES)
