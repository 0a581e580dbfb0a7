from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.errors import ArgumentError, DamagedFileError
from ropewalk.heads import HeadSelection

pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12)


@given(pairs, pairs)
def test_behaves_as_the_set_of_its_pairs(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    x, y = HeadSelection(a), HeadSelection(b)
    assert list(x) == sorted(set(a))
    assert list(x | y) == sorted(set(a) | set(b))
    assert list(x & y) == sorted(set(a) & set(b))
    assert list(x - y) == sorted(set(a) - set(b))
    assert (x == y) == (set(a) == set(b))
    assert len(x) == len(set(a)) and bool(x) == bool(a)
    assert all(pair in x for pair in a) and (99, 99) not in x


@given(pairs)
def test_round_trips(a: list[tuple[int, int]]) -> None:
    x = HeadSelection(a)
    assert HeadSelection.from_json(x.to_json()) == x
    assert HeadSelection(json.loads(json.dumps(x.to_list()))) == x
    assert HeadSelection(reversed(a)) == x and hash(HeadSelection(reversed(a))) == hash(x)
    assert eval(repr(x)) == x
    assert pickle.loads(pickle.dumps(x)) == x == copy.deepcopy(x)


def test_reads_as_its_pairs() -> None:
    x = HeadSelection([[20, 7], (3, 1), (3, 1), (np.int64(3), 5)])
    assert repr(x) == "HeadSelection([(3, 1), (3, 5), (20, 7)])"
    assert x.to_json() == "[[3, 1], [3, 5], [20, 7]]"
    assert x.layers == (3, 20) and x.first_layer == 3
    assert x.in_layer(3) == (1, 5) and x.in_layer(4) == ()
    assert [3, 1] in x and (3,) not in x and 3 not in x
    assert HeadSelection().first_layer is None and HeadSelection().layers == ()


def test_is_immutable() -> None:
    with pytest.raises(AttributeError):
        HeadSelection([(0, 0)]).pairs = ()  # type: ignore[misc]


def test_operators_want_another_selection() -> None:
    for operator in ("__or__", "__and__", "__sub__"):
        assert getattr(HeadSelection(), operator)([(1, 2)]) is NotImplemented


@pytest.mark.parametrize(
    "bad",
    [
        [(0, -1)],
        [(0, 1.0)],
        [(True, 1)],
        [(0,)],
        [(0, 1, 2)],
        ["01"],
        [("0", "1")],
        [3],
        "01",
        3,
        None,
        {(0, 1): 2},
    ],
)
def test_refuses_what_is_not_a_pair_of_indices(bad: object) -> None:
    with pytest.raises(ArgumentError, match="pairs="):
        HeadSelection(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[1, 2]",
        "{}",
        "3",
        "null",
        "[[1, 2.0]]",
        "[[1, -2]]",
        "[[1]]",
        "[[true, 1]]",
        "[" * 10**5,
        "[[NaN, 1]]",
    ],
)
def test_damaged_json_is_named(text: str) -> None:
    with pytest.raises(DamagedFileError, match="head selection") as caught:
        HeadSelection.from_json(text)
    assert "\n" not in str(caught.value)


def test_check_names_the_index_and_the_bounds() -> None:
    x = HeadSelection([(0, 0), (3, 7)])
    x.check(num_layers=4, num_heads=8)
    with pytest.raises(ArgumentError, match="layer=3: the model has 3 layers, 0 to 2"):
        x.check(num_layers=3, num_heads=8)
    with pytest.raises(ArgumentError, match="head=7: layer 3 has 7 query heads, 0 to 6"):
        x.check(num_layers=4, num_heads=7)


def test_widens_to_whole_groups() -> None:
    x = HeadSelection([(0, 5), (2, 0), (2, 1)])
    assert list(x.kv_groups(8, 2)) == [(0, 4), (0, 5), (0, 6), (0, 7), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert x.kv_groups(8, 8) == x
    assert x.kv_groups(6, 1).in_layer(2) == tuple(range(6))


@given(pairs, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_a_group_is_the_heads_that_read_one_key_head(a: list[tuple[int, int]], num_kv_heads: int) -> None:
    x = HeadSelection((layer, head % 12) for layer, head in a)
    reads = {(layer, head // (12 // num_kv_heads)) for layer, head in x}
    expected = [(layer, h) for layer in range(41) for h in range(12) if (layer, h // (12 // num_kv_heads)) in reads]
    assert list(x.kv_groups(12, num_kv_heads)) == expected


def test_groups_refuse_what_does_not_divide() -> None:
    with pytest.raises(ArgumentError, match="num_kv_heads=3"):
        HeadSelection().kv_groups(8, 3)
    with pytest.raises(ArgumentError, match="head=8"):
        HeadSelection([(0, 8)]).kv_groups(8, 2)
