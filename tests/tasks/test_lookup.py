from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.tokenizers import byte_tokenizer, word_tokenizer

from ropewalk.errors import ArgumentError
from ropewalk.tasks.lookup import LAYOUTS, VALUES, LookupTask

KINDS = {
    "words": word_tokenizer(),
    "words, chat": word_tokenizer(chat=True),
    "bytes": byte_tokenizer(),
    "bytes, chat": byte_tokenizer(chat=True),
}
KEY = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
PINNED = ("3ae8c32d-ec79-2e64-f53c-7b4a7bf3449c", "3237598")


def total(prompt, question):
    return len(prompt.haystack_ids) + len(question.ids) + len(question.answer_ids)


def spelled(value, layout):
    return value if layout == "lines" else f'"{value}"'


def line(question, layout):
    said = f"{spelled(question.key, layout)}: {spelled(question.value, layout)}"
    return said + ("\n" if layout == "lines" else ",\n")


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("setting", ["original", "noisy"])
@settings(max_examples=6, deadline=None)
@given(
    length=st.integers(900, 3000),
    depths=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    layout=st.sampled_from(LAYOUTS),
    values=st.sampled_from(VALUES),
)
def test_length_is_exact(tokenizer, setting, length, depths, seed, layout, values):
    one = LookupTask(length, depths, layout, values, setting, seed, noise_tokens=5)
    for prompt in one.prompts(tokenizer, 2):
        lengths = [total(prompt, question) for question in prompt.questions]
        assert max(lengths) == length
        assert len(lengths) == depths


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", VALUES)
class TestPrompt:
    def test_pairs_are_where_the_spans_say(self, layout, values):
        tokenizer = byte_tokenizer()
        for prompt in LookupTask(2500, 7, layout, values).prompts(tokenizer, 3):
            assert len({q.key for q in prompt.questions}) == 7
            for q in prompt.questions:
                start, end = q.needle_span
                assert tokenizer.decode(prompt.haystack_ids[start:end]) == line(q, layout)
                assert re.fullmatch(KEY, q.key)
                assert re.fullmatch(KEY if values == "uuid" else "[1-9][0-9]{6}", q.value)

    def test_depth_counts_the_other_pairs(self, layout, values):
        tokenizer = byte_tokenizer()
        depths = (0.0, 0.2, 0.21, 0.5, 1.0)
        for prompt in LookupTask(2500, depths, layout, values).prompts(tokenizer, 3):
            body = tokenizer.decode(prompt.haystack_ids).split("one of the values.\n\n")[1]
            _, *lines = body.split("\n")[:-1]
            asked = [line(q, layout)[:-1] for q in prompt.questions]
            others = [one for one in lines if one not in asked]
            assert len(lines) == len(others) + 5
            for depth, mine in zip(depths, asked, strict=True):
                before = [one for one in lines[: lines.index(mine)] if one not in asked]
                assert len(before) == int(depth * len(others) + 0.5)

    def test_only_the_first_line_is_cut(self, layout, values):
        tokenizer = byte_tokenizer()
        value = spelled(KEY if values == "uuid" else "[0-9]{7}", layout) + ("," if layout == "json" else "")
        for prompt in LookupTask(2500, 3, layout, values).prompts(tokenizer, 3):
            body = tokenizer.decode(prompt.haystack_ids).split("one of the values.\n\n")[1]
            cut, *lines = body.split("\n")[:-1]
            assert all(re.fullmatch(f"{spelled(KEY, layout)}: {value}", one) for one in lines)
            assert len(cut) < len(lines[0])

    def test_the_reply_is_a_line_of_the_list(self, layout, values):
        for tokenizer in (byte_tokenizer(), byte_tokenizer(chat=True)):
            for q in LookupTask(2500, 3, layout, values).prompts(tokenizer, 1)[0].questions:
                said = tokenizer.decode([*q.ids, *q.answer_ids])
                assert said.startswith("\n") and f"What is the value of the key {q.key}?" in said
                assert said.endswith(line(q, layout).rstrip('",\n'))
                assert tokenizer.decode(q.answer_ids).strip() == q.value

    def test_tokens_are_those_of_the_text(self, layout, values):
        tokenizer = byte_tokenizer()
        (prompt,) = LookupTask(2500, 3, layout, values).prompts(tokenizer, 1)
        start = prompt.questions[0].needle_span[0]
        read = tokenizer.decode(prompt.haystack_ids[start:])
        assert tokenizer(read, add_special_tokens=False)["input_ids"] == list(prompt.haystack_ids[start:])


class TestTask:
    def test_noise_comes_right_after_each_pair_and_changes_nothing_else(self):
        tokenizer = byte_tokenizer()
        plain = LookupTask(2500, 4).prompts(tokenizer, 1)[0]
        noisy = LookupTask(2500, 4, setting="noisy", noise_tokens=20).prompts(tokenizer, 1)[0]
        start = tokenizer.bos_token_id
        assert noisy.haystack_ids.count(start) - plain.haystack_ids.count(start) == 20 * 4
        for ours, theirs in zip(noisy.questions, plain.questions, strict=True):
            end = ours.needle_span[1]
            assert noisy.haystack_ids[end : end + 20] == (start,) * 20
            assert (ours.key, ours.value, ours.ids) == (theirs.key, theirs.value, theirs.ids)
        texts = (tokenizer.decode([i for i in p.haystack_ids if i != start]) for p in (noisy, plain))
        fewer, more = (set(text.split("\n\n", 1)[1].split("\n")[1:]) for text in texts)
        assert fewer < more

    def test_prompts_are_a_function_of_seed_and_index(self):
        one = LookupTask(1500, seed=3)
        once = one.prompts(byte_tokenizer(), 4)
        assert LookupTask(1500, seed=3).prompts(byte_tokenizer(), 2, first=2) == once[2:]
        other = LookupTask(1500, seed=4).prompts(byte_tokenizer(), 1)
        assert len({p.haystack_ids for p in [*once, *other]}) == len({p.id for p in [*once, *other]}) == 5
        assert [p.id for p in once] == [one.prompt_id(i) for i in range(4)]
        # Another version of Python shows here.
        assert (once[0].questions[0].key, once[0].questions[0].value) == PINNED

    def test_to_dict_is_json_and_complete(self):
        data = json.loads(json.dumps(LookupTask(900, depths=[0, 1]).to_dict()))
        assert data.keys() == {f.name for f in dataclasses.fields(LookupTask)}
        assert data["depths"] == [0.0, 1.0]

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"length": 0}, "length"),
            ({"layout": "line"}, "layout='line': did you mean lines"),
            ({"values": "numbers"}, "values='numbers': did you mean number"),
            ({"setting": "loud"}, "setting"),
            ({"depths": 0}, "depths"),
            ({"noise_tokens": 0}, "noise_tokens"),
        ],
    )
    def test_bad_values(self, fields, reason):
        with pytest.raises(ArgumentError, match=reason):
            LookupTask(**{"length": 900} | fields)

    @pytest.mark.parametrize("setting", ["original", "noisy"])
    def test_too_short_a_length_says_what_is_needed(self, setting):
        with pytest.raises(ArgumentError, match="too short for 3 pairs and one more; use at least") as error:
            LookupTask(60, 3, setting=setting).prompts(byte_tokenizer(), 1)
        least = int(str(error.value).split()[-1])
        prompt = LookupTask(least, 3, setting=setting).prompts(byte_tokenizer(), 1)[0]
        assert max(total(prompt, q) for q in prompt.questions) == least
        with pytest.raises(ArgumentError):
            LookupTask(least - 1, 3, setting=setting).prompts(byte_tokenizer(), 1)
        with pytest.raises(ArgumentError, match="number=0"):
            LookupTask(900).prompts(byte_tokenizer(), 0)
