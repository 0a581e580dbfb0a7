"""Characters as tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.tokenizers import byte_tokenizer, story

from ropewalk.data.char_tokenizer import Characters
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.language import Language


def test_characters_are_tokens_from_one_on() -> None:
    tokenizer = Characters("ab\n")
    assert tokenizer("a\nbz", add_special_tokens=False)["input_ids"] == [1, 3, 2, 0]
    assert tokenizer.decode([1, 3, 2, 0]) == "a\nb\ufffd" and len(tokenizer) == 4


def test_they_are_those_of_the_task(tmp_path: Path) -> None:
    text = story(400)
    (tmp_path / "text.txt").write_text(text)
    task = Language(str(tmp_path / "text.txt"), length=64)
    tokenizer = task.load_tokenizer()
    assert len(tokenizer) == task.vocabulary_size
    row = task.dataset("train")[0]["input_ids"]
    assert row == tokenizer(text[:64])["input_ids"] and tokenizer.decode(row) == text[:64]


def test_a_task_with_a_tokenizer_has_that_one(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = Language("unused.txt", str(tmp_path / "tokenizer")).load_tokenizer()
    assert tokenizer("The rope")["input_ids"] == byte_tokenizer()("The rope")["input_ids"]


def test_a_text_that_is_gone_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"gone\.txt"):
        Language("gone.txt").load_tokenizer()
