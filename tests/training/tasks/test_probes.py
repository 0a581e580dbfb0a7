from __future__ import annotations

import pytest
from tests.training.tasks.splits import everything, rows

from ropewalk.data.dataset_cache import NO_LABEL
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks import Copying, Induction, VariableTracking

SMALL = {"train": 400, "validation": 15, "test": 20}


def test_copying():
    task = Copying(letters=5, least=3, most=6, **SMALL)
    lengths = set()
    for row in rows(task, "train"):
        size = len(row["input_ids"]) // 2
        first, middle, second = row["input_ids"][:size], row["input_ids"][size], row["input_ids"][size + 1 :]
        assert first == second == row["labels"][size + 1 :] and middle == 1 and min(first) > 1
        assert row["labels"][: size + 1] == [NO_LABEL] * (size + 1)
        lengths.add(size)
    assert lengths == {3, 4, 5, 6} and task.longest == 13 and task.vocabulary_size == 7


def test_induction():
    task = Induction(letters=5, length=8, **SMALL)
    places = set()
    for row in rows(task, "train"):
        *string, asked, answer = row["input_ids"]
        assert len(string) == 8 and string.count(asked) == 1
        places.add(string.index(asked))
        assert string[string.index(asked) + 1] == answer
        assert row["labels"] == [NO_LABEL] * 9 + [answer]
    assert places == set(range(7)) and task.longest == 10 and task.vocabulary_size == 6


@pytest.mark.parametrize(("chains", "hops"), [(1, 0), (1, 3), (3, 0), (3, 2)])
def test_variable_tracking(chains, hops):
    task = VariableTracking(chains=chains, hops=hops, variables=12, values=7, **SMALL)
    asked_for, orders = set(), set()
    for row in rows(task, "train"):
        *assignments, question, asked, comma, answer = row["input_ids"]
        assert (question, comma) == (3, 2) and len(assignments) == 4 * chains * (hops + 1)
        known, depth = {}, {}
        for i in range(0, len(assignments), 4):
            variable, equals, given, comma = assignments[i : i + 4]
            assert (equals, comma) == (1, 2) and variable not in known and variable >= 11
            is_value = 4 <= given < 11
            known[variable] = given if is_value else known[given]  # a variable is known before it is handed on
            depth[variable] = 0 if is_value else depth[given] + 1
        assert known[asked] == answer and depth[asked] == hops
        assert sorted(depth.values()) == sorted(list(range(hops + 1)) * chains)
        assert len(set(known.values())) == chains
        assert row["labels"] == [NO_LABEL] * (len(row["input_ids"]) - 1) + [answer]
        last = [variable for variable in known if depth[variable] == hops]
        asked_for.add(last.index(asked))
        orders.add(tuple(depth.values()))
    assert asked_for == set(range(chains))
    assert (len(orders) > 1) == (chains > 1 and hops > 0)
    assert task.vocabulary_size == 23 and len(row["input_ids"]) == task.longest


@pytest.mark.parametrize(
    ("task", "different"),
    [(Copying(letters=2, least=1, most=5, train=2000, validation=15, test=16), 62),
     (Induction(letters=3, length=4, train=2000, validation=15, test=15), 72),
     (VariableTracking(chains=2, hops=1, variables=4, values=2, train=3000, validation=40, test=40), 288)],
)  # fmt: skip
def test_splits_share_nothing_and_together_reach_every_example(task, different):
    """So few examples that training sees all that aren't held back: their number is what `different` says."""
    found = everything(task)
    sets = {split: set(sequences) for split, sequences in found.items()}
    assert task.different == different
    assert sum(map(len, sets.values())) == len(set.union(*sets.values())) <= different
    assert len(sets["test"]) == task.test and len(sets["validation"]) == task.validation
    assert len(set.union(*sets.values())) > 0.95 * different


@pytest.mark.parametrize(
    ("make", "fields", "reason"),
    [(Copying, {"letters": 1}, "letters=1"), (Copying, {"least": 40}, "least=40.*from 1 to 32"),
     (Copying, {"letters": 2, "least": 2, "most": 3}, "of 12 different"), (Induction, {"letters": 2}, "letters=2"),
     (Induction, {"length": 1}, "length=1"), (VariableTracking, {"hops": -1}, "hops=-1"),
     (VariableTracking, {"hops": 6}, "variables=26.*4 chains of 6 hops need 28"),
     (VariableTracking, {"chains": 5, "values": 4}, "values=4.*each of 5 chains")],
)  # fmt: skip
def test_values_that_cannot_be_used(make, fields, reason):
    with pytest.raises(ArgumentError, match=reason) as error:
        make(**fields)
    assert "\n" not in str(error.value)
