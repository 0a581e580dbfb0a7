"""Files of minimal pairs and of passages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.data.minimal_pairs import Pair, Passage, read_pairs, read_passages
from ropewalk.errors import ArgumentError

LINE = {"sentence_good": "a b", "sentence_bad": "b a", "UID": "x"}


def test_pairs_come_from_a_file_or_a_folder(tmp_path: Path) -> None:
    with_term = LINE | {"linguistics_term": "order"}
    (tmp_path / "one.jsonl").write_text(json.dumps(with_term) + "\n\n" + json.dumps(LINE) + "\n")
    (tmp_path / "two.jsonl").write_text("\n".join(3 * [json.dumps(LINE)]))
    (tmp_path / "notes.txt").write_text("not a test set")
    found = read_pairs(tmp_path)
    assert [pair.test_set for pair in found] == ["one", "one", "two", "two", "two"]
    assert found[0] == Pair("one", "a b", "b a", "order") and found[1] == Pair("one", "a b", "b a")
    assert len(read_pairs(tmp_path / "two.jsonl")) == 3
    assert [pair.test_set for pair in read_pairs(tmp_path, limit=2)] == ["one", "one", "two", "two"]


def test_passages_come_as_json_lines_or_a_line_each(tmp_path: Path) -> None:
    wanted = [Passage("he went", "home"), Passage("and,  then", "slept.")]
    (tmp_path / "words.jsonl").write_text(
        json.dumps({"text": "he went  home \n"}) + "\n" + json.dumps({"text": "and,  then slept."})
    )
    (tmp_path / "words.txt").write_text("he went  home \r\n\nand,  then slept.")
    for name in ("words.jsonl", "words.txt"):
        assert read_passages(tmp_path / name) == wanted
    assert read_passages(tmp_path / "words.txt", limit=1) == wanted[:1]


@pytest.mark.parametrize("text", ["not json", "[1]", "{}", '{"sentence_good": "a", "sentence_bad": 3}', "", "\n \n"])
@pytest.mark.parametrize("read", [read_pairs, read_passages])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, text: str, read: Callable[[Path], Any]) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ArgumentError) as caught:
        read(tmp_path / "x.jsonl")
    assert "\n" not in str(caught.value) and "x.jsonl" in str(caught.value)


def test_a_passage_of_one_word_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("two words\nalone\n")
    with pytest.raises(ArgumentError, match=r"words\.txt:2"):
        read_passages(tmp_path / "words.txt")


def test_what_cant_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, said in (("gone.jsonl", "no such file"), ("binary.jsonl", "UTF-8")):
        with pytest.raises(ArgumentError, match=said):
            read_pairs(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match="holds no pairs"):
        read_pairs(tmp_path / "empty")
