from __future__ import annotations

import re
import time
from collections import Counter

import pytest
from tests.training.tasks.splits import everything, ids, rows

from ropewalk.data.dataset_cache import NO_LABEL
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.indexing import LETTERS, IndirectIndexing

SMALL = {"train": 3000, "validation": 200, "test": 300}
TEXT = re.compile(r"([A-Za-z]+), ([A-Za-z]), ([+-])(0|[1-9]\d*), ([A-Za-z])")


def test_examples_are_what_the_paper_describes():
    task = IndirectIndexing(**SMALL)
    lengths, shifts = set(), set()
    for row in rows(task, "train"):
        text = task.spell(row["input_ids"])
        letters, given, sign, size, target = TEXT.fullmatch(text).groups()
        assert 20 <= len(letters) == len(set(letters)) <= 40
        shift = int(sign + size)
        assert letters[letters.index(given) + shift] == target and 0 <= letters.index(given) + shift < len(letters)
        assert row["labels"] == [NO_LABEL] * (len(row["input_ids"]) - 1) + [row["input_ids"][-1]]
        assert len(row["input_ids"]) == len(text) - text.count(" ")
        assert not (sign == "-" and size == "0")
        lengths.add(len(letters))
        shifts.add(shift)
    assert lengths == set(range(20, 41)) and shifts == set(range(-15, 16))


def test_letters_are_drawn_evenly():
    task = IndirectIndexing(letters=6, least=3, most=3, shift=1, train=6000, validation=1, test=1)
    counts = Counter()
    for letters, given, *shift, _ in (TEXT.fullmatch(task.spell(found)).groups() for found in ids(task, "train")):
        for place in range(3):
            counts["at", place, letters[place]] += 1
        key = ("given", letters.index(given), "".join(shift))
        counts[key] += 1
    assert all(850 < count < 1150 for (kind, *_), count in counts.items() if kind == "at")
    at_ends = [counts["given", place, shift] for place, shift in ((0, "+0"), (0, "+1"), (2, "-1"), (2, "+0"))]
    inside = [counts["given", 1, shift] for shift in ("-1", "+0", "+1")]
    assert all(850 < count < 1150 for count in at_ends) and all(550 < count < 790 for count in inside)


def test_sizes():
    task = IndirectIndexing()
    assert (task.train, task.validation, task.test) == (1_000_000, 10_000, 10_000)
    assert task.vocabulary_size == 66 and task.longest == 48
    small = IndirectIndexing(letters=8, least=5, most=8, shift=2, **SMALL)
    assert small.vocabulary_size == 22 and max(map(len, ids(small, "train"))) == small.longest == 15
    assert {split: len(found) for split, found in everything(small).items()} == SMALL
    assert set("".join(small.spell(found) for found in ids(small, "test"))) == set(LETTERS[:8] + " ,+-012")


def test_no_example_is_in_two_splits():
    """With 2,280 examples in all, of which 1,100 are held back, drawing without a check would share hundreds."""
    task = IndirectIndexing(letters=5, least=4, most=5, shift=4, train=4000, validation=500, test=600)
    found = everything(task)
    assert task.different == 120 * 16 + 120 * 25
    assert len(set(found["test"])) == 600 and len(set(found["validation"])) == 500
    sets = [set(sequences) for sequences in found.values()]
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_test_set_is_fixed():
    task = IndirectIndexing(letters=6, least=4, most=6, shift=2, **SMALL)
    found = everything(task)
    larger = IndirectIndexing(letters=6, least=4, most=6, shift=2, train=4000, validation=250, test=300)
    assert ids(larger, "test") == found["test"]
    assert ids(larger, "validation")[:200] == found["validation"]
    other = IndirectIndexing(letters=6, least=4, most=6, shift=2, seed=1, **SMALL)
    assert ids(other, "test") != found["test"] and ids(other, "train") != found["train"]


def test_examples_are_the_same_on_every_machine():
    task = IndirectIndexing(train=1, validation=1, test=2)
    assert [task.spell(found) for found in ids(task, "test")] == [
        "ZetcGaJsVflWgwQHzFxrDv, F, -4, w",
        "hHIjxpBrWwfEGmQbsNPDVvRtoOuAZeLTUaikC, m, +8, v",
    ]


def test_the_paper_s_million_in_under_two_minutes():
    """A fortieth of it in a fortieth of the time, on one core."""
    task = IndirectIndexing(train=25_000, validation=100, test=100)
    task.dataset("test")  # what is done once
    begin = time.process_time()
    task.dataset("train")
    assert time.process_time() - begin < 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"letters": 53}, "letters=53.*from 1 to 52"), ({"letters": 30}, "most=40.*from 1 to 30"),
     ({"least": 41}, "least=41.*from 1 to 40"), ({"shift": -1}, "shift=-1"), ({"shift": 1.5}, "shift=1.5"),
     ({"train": 0}, "train=0.*at least 1"), ({"seed": "a"}, "seed='a'"), ({"test": True}, "test=True"),
     ({"letters": 4, "least": 2, "most": 2, "shift": 1}, r"validation \+ test=20000.*of 48 different")],
)  # fmt: skip
def test_values_that_cannot_be_used(fields, reason):
    with pytest.raises(ArgumentError, match=reason) as error:
        IndirectIndexing(**fields)
    assert "\n" not in str(error.value)


def test_unknown_tokens_are_not_spelled():
    with pytest.raises(ArgumentError, match="tokens=66"):
        IndirectIndexing().spell([14, 66])


def test_unknown_splits_are_refused():
    with pytest.raises(ArgumentError, match="split='valid'"):
        IndirectIndexing(**SMALL).dataset("valid")
