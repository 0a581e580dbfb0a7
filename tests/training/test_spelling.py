"""The tokenizer saved beside a model: the very tokens that the model was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.tiny import Echo, text_file
from transformers import AutoTokenizer

from ropewalk.data.char_tokenizer import CHARACTERS
from ropewalk.data.text import encode
from ropewalk.training.models import spelling
from ropewalk.training.tasks.language import Language


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))


def test_a_saved_tokenizer_spells_as_the_task_does(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    # A line's end, two blanks, a character outside of the first plane, and in the last part some that are new.
    path.write_text("ab \n  \u00e9\U0001f600<unknown>\r\n" * 40 + "xyz\U0001f601 ab" * 4, encoding="utf-8", newline="")
    task = Language(str(path), CHARACTERS, 4)
    spelling(task).save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    text = path.read_text(encoding="utf-8")
    parts = {"train": text[: len(text) * 90 // 100], "test": text[len(text) * 95 // 100 :]}
    for split, part in parts.items():
        ids = [i for row in task.dataset(split)["input_ids"] for i in row]
        assert encode(saved, part)[: len(ids)] == ids
    assert 0 in encode(saved, parts["test"]) and 0 not in encode(saved, parts["train"])
    assert saved.decode(encode(saved, "ab \n  \u00e9\U0001f600")) == "ab \n  \u00e9\U0001f600"
    assert len(saved) == task.vocabulary_size and saved("ab")["input_ids"] == encode(saved, "ab")


def test_a_tokenizer_of_transformers_is_kept_as_it_is(tmp_path: Path) -> None:
    made = spelling(Language(str(text_file(tmp_path)), CHARACTERS, 4))
    made.save_pretrained(tmp_path / "saved")
    kept = spelling(Language(str(text_file(tmp_path)), str(tmp_path / "saved"), 4))
    assert kept("abc. dd")["input_ids"] == made("abc. dd")["input_ids"]


def test_tokens_that_spell_no_text_have_none() -> None:
    assert spelling(Echo()) is None
