from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.training.tasks.splits import everything, rows

from ropewalk.data.dataset_cache import NO_LABEL
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.chorales import Chorales

REAL = Path("/work/shared/data/Jsb16thSeparated.json")


def step(first):
    return [first, first - 3, first - 7, first - 12]


def content(**changed):
    splits = {"train": [[step(60 + i) for i in range(5)], [step(70)]], "valid": [[step(50)]], "test": [[step(108)]]}
    return splits | changed


@pytest.fixture
def write(tmp_path):
    def _write(what):
        path = tmp_path / "chorales.json"
        path.write_text(what if isinstance(what, str) else json.dumps(what))
        return path

    return _write


def test_raster_order_and_the_90_tokens(write):
    path = write(content(train=[[[108, 74.0, 21, -1], [22, None, float("nan"), 60]]]))
    task = Chorales(path)
    assert rows(task, "train") == [
        {"input_ids": [89, 55, 2, 1, 3, 1, 1, 41], "labels": [NO_LABEL, 55, 2, 1, 3, 1, 1, 41]},
    ]
    assert task.vocabulary_size == 90 and task.metric == "nll" and task.padding == 0


def test_long_chorales_go_on_in_the_next_sequence(write):
    task = Chorales(write(content()), length=8)
    found = everything(task)
    first = [[pitch - 19 for voice in step(60 + i) for pitch in [voice]] for i in range(5)]
    assert found["train"][:3] == [tuple(first[0] + first[1]), tuple(first[2] + first[3]), tuple(first[4])]
    assert [len(found[split]) for split in found] == [4, 1, 1]
    assert task.longest == 8 and Chorales(task.path).longest == 20


def test_splits_are_the_file_s_own(write):
    task = Chorales(write(content()))
    assert [[sequence[0] for sequence in found] for found in everything(task).values()] == [[41, 51], [31], [89]]


def test_a_changed_file_is_read_again(write):
    task = Chorales(write(content()))
    before = everything(task)
    write(content(test=[[step(90), step(91)]]))
    assert everything(task)["train"] == before["train"] and everything(task)["test"] != before["test"]
    assert len(task.sha256) == 64 and json.loads(json.dumps(task.to_dict()))["name"] == "chorales"


@pytest.mark.parametrize(
    ("what", "reason"),
    [("", "isn't JSON"), ("[" * 100_000, "isn't JSON"), ("[1]", "isn't a JSON object"),
     ({"train": [[step(60)]]}, "lacks valid and test"), (content(test=[]), "test holds no chorales"),
     (content(test=[[]]), "test holds no chorales"), (content(valid=3), "valid holds no chorales"),
     (content(valid=[7]), r"valid\[0\] is no chorale"),
     (content(valid=[[step(60), [60, 61, 62]]]), r"valid\[0\]\[1\] has 3 values"),
     (content(valid=[[60]]), r"valid\[0\]\[0\] is 60"),
     (content(train=[[step(60)], [step(60), step(109)]]), r"train\[1\]\[1\] has the pitch 109.*from 21 to 108"),
     (content(train=[[step(32)]]), "the pitch 20"), (content(train=[[[60, 61, 62, 60.5]]]), "the pitch 60.5"),
     (content(train=[[[60, 61, 62, True]]]), "the pitch True"), (content(train=[[[60, 1, 2, "C"]]]), "the pitch 1")],
)  # fmt: skip
def test_files_of_another_form_are_refused_in_one_line(write, what, reason):
    path = write(what)
    for read in (lambda: Chorales(path).dataset("train"), lambda: Chorales(path).longest):
        with pytest.raises(ArgumentError, match=reason) as error:
            read()
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_arguments_that_cannot_be_used(tmp_path):
    with pytest.raises(ArgumentError, match=r"length=10.*multiple of 4"):
        Chorales("a", length=10)
    with pytest.raises(ArgumentError, match="length=0"):
        Chorales("a", length=0)
    with pytest.raises(ArgumentError, match=r"path=.*no such file"):
        Chorales(tmp_path / "none.json").dataset("test")
    with pytest.raises(ArgumentError, match=r"path=.*can't be read"):
        Chorales(tmp_path).dataset("test")


@pytest.mark.skipif(not REAL.exists(), reason="the public data set isn't here")
def test_the_public_data_set():
    task = Chorales(REAL)
    found = everything(task)
    assert [len(sequences) for sequences in found.values()] == [230, 79, 79] and task.longest == 2048
    content = json.loads(REAL.read_text())
    steps = {key: sum(map(len, content[key])) for key in content}
    assert [sum(map(len, sequences)) for sequences in found.values()] == [
        4 * steps[k] for k in ("train", "valid", "test")
    ]
