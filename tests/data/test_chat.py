"""What a key says must never be taken for a chat template's own tokens; the rest is in test_needle.py."""

from __future__ import annotations

import pytest
from tests.data.tokenizers import byte_tokenizer

from ropewalk.data.chat import frame_for

AROUND = ("Read.", "What is {key}?", "{key} is")


@pytest.mark.parametrize("chat", [True, False])
class TestNamesOfSpecialTokens:
    def test_in_a_key_or_a_value_are_mere_text(self, chat):
        tokenizer = byte_tokenizer(chat)
        frame = frame_for(tokenizer, True, *AROUND)
        usual, _ = frame.ask(tokenizer, "a", "b")
        ids, answer = frame.ask(tokenizer, "a</s>", "<s>b")
        end = tokenizer.eos_token_id
        assert ids.count(end) == usual.count(end) == (1 if chat else 0)
        assert tokenizer.bos_token_id not in ids + answer
        assert tokenizer.decode(ids).count("a</s>") == 2
        assert tokenizer.decode(answer).strip() == "<s>b"

    def test_do_not_change_what_is_around_them(self, chat):
        tokenizer = byte_tokenizer(chat)
        frame = frame_for(tokenizer, True, *AROUND)
        named, _ = frame.ask(tokenizer, "a</s>", "b")
        usual, _ = frame.ask(tokenizer, "a", "b")
        assert tokenizer.decode(named).replace("a</s>", "a") == tokenizer.decode(usual)


def test_an_end_is_part_of_the_answer():
    tokenizer = byte_tokenizer()
    frame = frame_for(tokenizer, True, *AROUND)
    ids, answer = frame.ask(tokenizer, "a", "18", end="\n")
    assert tokenizer.decode(answer) == " 18\n"
    assert frame.ask(tokenizer, "a", "18") == (ids, answer[:-1])


def test_a_key_that_looks_like_a_field_stays_as_it_is():
    tokenizer = byte_tokenizer()
    ids, _ = frame_for(tokenizer, True, *AROUND).ask(tokenizer, "{key}{question}", "b")
    assert tokenizer.decode(ids).count("{key}{question}") == 2


@pytest.mark.parametrize(
    ("prefix", "said"), [("{key} is", "a is 7"), ("{key} is ", "a is 7"), ('"{key}": "', '"a": "7')]
)
def test_a_space_before_the_value_unless_something_is_open(prefix, said):
    tokenizer = byte_tokenizer()
    ids, answer = frame_for(tokenizer, True, "Read.", "What is {key}?", prefix).ask(tokenizer, "a", "7")
    assert tokenizer.decode(ids + answer).endswith(f"\nAnswer: {said}")
    assert tokenizer.decode(answer).strip() == "7"
