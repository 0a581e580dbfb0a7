"""Windows of held-out text."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer

from ropewalk.data.char_tokenizer import Characters
from ropewalk.data.corpus import corpus_of
from ropewalk.data.text import text_of
from ropewalk.data.windows import Books
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.language import Language

STORY = story(600)
TEXT = text_of(STORY, "story")
CHARACTERS = Characters("".join(sorted(set(STORY))))


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), word_tokenizer(), CHARACTERS], ids=["bytes", "words", "chars"])
def test_windows_are_exact_and_the_same_each_time(tokenizer: Any) -> None:
    books = Books(TEXT, 90, 5, seed=3)
    windows = books.draw(tokenizer)
    assert [len(window) for window in windows] == [90] * 5
    assert windows == books.draw(tokenizer)
    assert windows != dataclasses.replace(books, seed=4).draw(tokenizer)


def test_windows_share_no_text() -> None:
    drawn = [CHARACTERS.decode(window) for window in Books(TEXT, 2000, 8).draw(CHARACTERS)]
    places = [STORY.find(window) for window in drawn]
    assert min(places) >= 0
    assert all(later >= earlier + 2000 for earlier, later in itertools.pairwise(places))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_parts_are_those_of_the_language_task(part: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(STORY)
    task = Language(str(tmp_path / "text.txt"), length=50)
    text = task.corpus
    assert text.read() == STORY
    whole = [token for row in task.dataset(part) for token in row["input_ids"]]
    spelled = CHARACTERS.decode(whole)
    for window in Books(text, 300, 2, part=part).draw(CHARACTERS):
        assert CHARACTERS.decode(window)[:250] in spelled
    others = {"train", "validation", "test"} - {part}
    for other in others:
        rest = CHARACTERS.decode(token for row in task.dataset(other) for token in row["input_ids"])
        assert CHARACTERS.decode(Books(text, 300, 2, part=part).draw(CHARACTERS)[0]) not in rest


@pytest.mark.parametrize("part", ["all", "train", "test"])
def test_a_text_in_a_file_has_the_windows_of_the_same_text_in_memory(part: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(STORY)
    in_file = corpus_of(str(tmp_path / "text.txt"), 10**9)
    assert Books(in_file, 300, 2, part=part).draw(CHARACTERS) == Books(TEXT, 300, 2, part=part).draw(CHARACTERS)


def test_to_dict_tells_all_but_the_text_itself() -> None:
    found = Books(TEXT, 90, 5, 1, "test").to_dict()
    assert found == {"text": TEXT.to_dict(), "part": "test", "length": 90, "windows": 5, "seed": 1}
    assert Books(TEXT, 90, 5, 1, "test").describe() == "the test part of story"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"length": 1}, "length=1"),
        ({"windows": 0}, "windows=0"),
        ({"seed": -1}, "seed=-1"),
        ({"length": True}, "length=True"),
        ({"part": "tset"}, "did you mean test"),
    ],
)
def test_wrong_values_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Books(**({"text": TEXT, "length": 90} | changed))


@pytest.mark.parametrize(("windows", "part"), [(8, "test"), (1, "validation"), (400, "all")])
def test_a_text_that_is_too_short_says_how_much_there_is(windows: int, part: str) -> None:
    with pytest.raises(ArgumentError, match=r"has about [\d,]+ tokens, too few") as caught:
        Books(TEXT, 2_000, windows, part=part).draw(byte_tokenizer())
    assert "\n" not in str(caught.value)


def test_a_part_without_a_letter_is_too_short() -> None:
    with pytest.raises(ArgumentError, match="has about 0 tokens"):
        Books(text_of("ab" + " " * 98, "blank"), 2, 1, part="test").draw(CHARACTERS)
