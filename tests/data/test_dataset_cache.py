from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets.utils import logging

from ropewalk.data.dataset_cache import arrow_dataset, packed, pieces, sequences, sha256_of
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_sequence_length

NONE = ArgumentError("rows", 0, "none")
COLUMNS = {"number": "int32", "digits": "[int16]"}
CALLS: list[int] = []


def squares(count):
    CALLS.append(count)
    for number in range(count):
        yield {"number": number, "digits": [int(digit) for digit in str(number**2)]}


def failing(count):
    yield {"number": 1, "digits": [1]}
    raise ArgumentError("count", count, "not this one")


def numbers(count):
    yield {"input_ids": [1, 2], "labels": [-100, 2]}


def entries():
    return sorted((Path(os.environ["ROPEWALK_CACHE"]) / "tasks").rglob("*.arrow"))


class TestArrowDataset:
    def test_rows_come_back_and_are_made_once(self):
        CALLS.clear()
        first = arrow_dataset(squares, COLUMNS, NONE, count=12)
        again = arrow_dataset(squares, COLUMNS, NONE, count=12)
        assert CALLS == [12] and len(entries()) == 1
        assert list(first) == list(again) and first[11] == {"number": 11, "digits": [1, 2, 1]}
        assert Path(first.cache_files[0]["filename"]) in entries()

    def test_another_value_is_another_entry(self):
        CALLS.clear()
        assert [len(arrow_dataset(squares, COLUMNS, NONE, count=count)) for count in (3, 4, 3)] == [3, 4, 3]
        assert CALLS == [3, 4]

    def test_an_error_comes_out_as_it_is_and_leaves_nothing(self):
        with pytest.raises(ArgumentError, match=r"^count=3: not this one$"):
            arrow_dataset(failing, COLUMNS, NONE, count=3)
        assert entries() == []

    def test_no_rows(self):
        with pytest.raises(ArgumentError) as error:
            arrow_dataset(squares, COLUMNS, NONE, count=0)
        assert error.value is NONE and entries() == []

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "file"))
        with pytest.raises(ArgumentError, match="ROPEWALK_CACHE=") as error:
            arrow_dataset(squares, COLUMNS, NONE, count=2)
        assert "\n" not in str(error.value)

    def test_is_quiet_and_leaves_the_bars_as_they_were(self, capfd, monkeypatch):
        monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS", raising=False)
        logging.enable_progress_bar()
        arrow_dataset(squares, COLUMNS, NONE, count=2)
        assert capfd.readouterr() == ("", "")
        assert logging.is_progress_bar_enabled()

    def test_without_a_folder_of_its_own_it_is_where_datasets_keeps_its_own(self, tmp_path, monkeypatch):
        monkeypatch.delenv("ROPEWALK_CACHE")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
        made = arrow_dataset(squares, COLUMNS, NONE, count=2)
        assert Path(made.cache_files[0]["filename"]).is_relative_to(tmp_path / "hf")


@pytest.mark.parametrize(("vocabulary", "kind"), [(32768, "int16"), (32769, "int32")])
def test_tokens_take_no_more_room_than_they_need(vocabulary, kind):
    made = sequences(numbers, vocabulary, NONE, count=vocabulary)
    assert {str(feature.feature.dtype) for feature in made.features.values()} == {kind}


def test_pieces():
    assert list(pieces([7, 8, 9, 7, 8], 3)) == [
        {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
        {"input_ids": [7, 8], "labels": [-100, 8]},
    ]
    assert len(list(pieces([7, 8, 9, 7], 3))) == 1  # the last one has nothing to label


def test_packed():
    assert list(packed([[7], [8, 9, 7, 8], [], [9, 9]], 3)) == [
        {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
        {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
    ]
    assert list(packed([[7, 8]], 3)) == []
    assert list(pieces([], 3)) == []


@pytest.mark.parametrize("length", [1, 0, -2, 2.0, "8", None, True])
def test_lengths_without_anything_to_predict(length):
    with pytest.raises(ArgumentError, match=r"length=.*at least 2"):
        check_sequence_length(length)


def test_sha256(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert sha256_of(str(file), "path").startswith("ba7816bf8f01cfea")
    file.write_bytes(b"")
    assert sha256_of(str(file), "path").startswith("e3b0c44298fc1c14")
    with pytest.raises(ArgumentError, match=r"path=.*no such file"):
        sha256_of(str(tmp_path / "b"), "path")
    with pytest.raises(ArgumentError, match=r"path=.*can't be read"):
        sha256_of(str(tmp_path), "path")


def test_tasks_are_listed_without_loading_what_they_need():
    code = (
        "import sys, ropewalk.training.tasks\n"
        "print(sorted(ropewalk.training.tasks.sequence_tasks()))\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'miditok') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = ["chorales", "copying", "genome", "indexing", "induction", "language", "midi", "variables"]
    assert done.stdout.splitlines() == [str(names), "[]"]
