"""Rows out of Arrow, the order of data, batches, and how long a step waits for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets
from torch.utils.data import BatchSampler

from ropewalk.errors import ArgumentError
from ropewalk.training import batches as data
from ropewalk.training.batches import Clock, Collator, Order, Ragged, Rows, rows_of

IDS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]


def dataset(kind: str = "int64", ids: list[list[int]] = IDS) -> Dataset:
    features = Features({name: Sequence(Value(kind)) for name in ("input_ids", "labels")})
    return Dataset.from_dict({"input_ids": ids, "labels": [[-100, *row[1:]] for row in ids]}, features=features)


def lists(rows: Rows) -> list[list[int]]:
    assert all(labels.tolist() == [-100, *ids.tolist()[1:]] for ids, labels in (rows[i] for i in range(len(rows))))
    return [rows[i][0].tolist() for i in range(len(rows))]


@pytest.mark.parametrize("kind", ["int16", "int32", "int64"])
def test_rows_are_read_from_any_kind_of_list(kind: str) -> None:
    assert lists(Rows(dataset(kind))) == IDS


def test_rows_are_read_from_many_chunks_cuts_and_choices() -> None:
    joined = concatenate_datasets([dataset(), dataset(ids=[[3, 3]]), dataset()])
    assert lists(Rows(joined)) == [*IDS, [3, 3], *IDS]
    assert lists(Rows(joined.select(range(3, 8)))) == [*IDS[3:], [3, 3], *IDS[:2]]
    assert lists(Rows(joined.select([10, 5, 0]))) == [IDS[4], [3, 3], IDS[0]]


def test_rows_are_read_from_lists_of_one_length() -> None:
    features = Features({name: Sequence(Value("int32"), length=2) for name in ("input_ids", "labels")})
    made = Dataset.from_dict({"input_ids": [[1, 2], [3, 4], [5, 6]], "labels": [[-100, 2], [-100, 4], [-100, 6]]})
    assert lists(Rows(made.cast(features).select(range(1, 3)))) == [[3, 4], [5, 6]]


@pytest.mark.parametrize("copied", [0, 1 << 28])
def test_many_rows_at_once_are_those_one_by_one(copied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_COPIED", copied)  # 0: read from each chunk where it is
    joined = concatenate_datasets([dataset(), dataset(ids=[[3, 3]]), dataset()])
    made_of = [Rows(joined), Rows(joined.select([10, 5, 0, 7, 2])), Rows(joined.with_transform(lambda batch: batch))]
    for rows in made_of:
        wanted = [4, 0, 0, 3, 1]
        found, expected = rows.__getitems__(wanted), Ragged.of([rows[index] for index in wanted])
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        assert found.lengths.sum() == len(found.ids) == len(found.labels)


def test_a_datasets_own_transform_is_asked() -> None:
    def doubled(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": [[2 * i for i in row] for row in batch["input_ids"]], "labels": batch["labels"]}

    rows = Rows(dataset().with_transform(doubled))
    assert rows[2][0].tolist() == [10, 12] and rows[2][1].tolist() == [-100, 6]


def test_no_copy_is_made_of_a_large_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_COPIED", 0)
    rows = Rows(dataset())
    assert rows[0][0].base is not None and not rows[0][0].flags.writeable


def test_an_order_is_every_row_once_a_round_and_by_the_seed_alone() -> None:
    found = list(Order(7, 20, seed=3))
    assert len(found) == len(Order(7, 20, seed=3)) == 20
    assert sorted(found[:7]) == sorted(found[7:14]) == list(range(7)) and found[:7] != found[7:14]
    torch.manual_seed(5)
    np.random.seed(5)
    assert list(Order(7, 20, seed=3)) == found != list(Order(7, 20, seed=4))


def test_processes_cut_the_same_order_into_the_same_batches() -> None:
    whole = list(BatchSampler(Order(10, 24, 0), 4, drop_last=False))
    halves = list(BatchSampler(Order(10, 24, 0), 2, drop_last=False))
    assert [Counter(a + b) for a, b in zip(halves[::2], halves[1::2], strict=True)] == [Counter(b) for b in whole]


def test_batches_are_padded_on_the_right() -> None:
    rows = Rows(dataset("int16"))
    batch = Collator(0, 12)(rows.__getitems__([0, 1, 2]))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, -100, -100], [-100, 6, -100]]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


@pytest.mark.parametrize(("ids", "labels"), [([1, 12], [-100, 1]), ([-1, 1], [-100, 1]), ([1, 1], [-5, 12])])
def test_tokens_outside_the_vocabulary_are_refused(ids: list[int], labels: list[int]) -> None:
    with pytest.raises(ArgumentError, match="0 to 11"):
        Collator(0, 12)(Ragged.of([(np.array(ids), np.array(labels))]))


def test_a_split_without_rows_or_columns_is_refused() -> None:
    assert len(rows_of(dataset(), "test", 2)) == 2 and len(rows_of(dataset(), "test", 9)) == 5
    with pytest.raises(ArgumentError, match="data='train'"):
        rows_of(dataset(ids=[]), "train")
    with pytest.raises(ArgumentError, match="no column labels"):
        rows_of(dataset().remove_columns("labels"), "train")


def test_waiting_is_what_the_data_take_of_a_step() -> None:
    def slow() -> Iterator[int]:
        for number in range(2):
            time.sleep(0.02)
            yield number

    clock = Clock(stepping=1.0, waiting=0.5)
    clock.begin_step()
    assert list(clock.timed(slow())) == [0, 1]
    time.sleep(0.02)
    clock.end_step()
    clock.end_step()  # without a beginning nothing is counted
    assert 0.54 <= clock.waiting < clock.stepping - 0.51 and clock.stepping >= 1.06
    assert clock.share == clock.waiting / clock.stepping and Clock().share == 0.0
