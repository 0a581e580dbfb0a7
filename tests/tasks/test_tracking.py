from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer

from ropewalk.data.text import text_of
from ropewalk.errors import ArgumentError
from ropewalk.tasks.tracking import TrackingTask

TEXT = text_of(story(3000), "story")
KINDS = {
    "words": word_tokenizer(),
    "words, chat": word_tokenizer(chat=True),
    "bytes": byte_tokenizer(),
    "bytes, chat": byte_tokenizer(chat=True),
}
TEXTS = {"a text": TEXT, "a few sentences": None}
SET = re.compile(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|[0-9]{5})\.")
PINNED = [("VTNEV", "32226"), ("LYFMY", "85014")]


def total(prompt, question):
    return len(prompt.haystack_ids) + len(question.ids) + len(question.answer_ids)


def resolved(text, name):
    """(value, names on the way from it, where each is set) of a variable, followed through the text."""
    given = {m[1]: (m[2], m.start()) for m in SET.finditer(text)}
    names = []
    while name in given:
        value, place = given[name]
        names.append((place, name))
        name = value
    return name, names[::-1]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())
@settings(max_examples=6, deadline=None)
@given(
    length=st.integers(900, 2500),
    chains=st.integers(1, 5),
    hops=st.integers(0, 3),
    seed=st.integers(0, 10**6),
    setting=st.sampled_from(["original", "noisy"]),
)
def test_length_is_exact(tokenizer, text, length, chains, hops, seed, setting):
    one = TrackingTask(length, chains, hops, text, setting, seed, noise_tokens=4)
    for prompt in one.prompts(tokenizer, 2):
        lengths = [total(prompt, question) for question in prompt.questions]
        assert max(lengths) == length
        assert len(lengths) == chains


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
class TestPrompt:
    @settings(max_examples=15, deadline=None)
    @given(chains=st.integers(1, 5), hops=st.integers(0, 4), seed=st.integers(0, 10**6))
    def test_chains_lead_to_the_answer_in_order(self, text, chains, hops, seed):
        tokenizer = byte_tokenizer()
        (prompt,) = TrackingTask(2500, chains, hops, text, seed=seed).prompts(tokenizer, 1)
        read = tokenizer.decode(prompt.haystack_ids)
        assert len(SET.findall(read)) == chains * (hops + 1)
        for q in prompt.questions:
            value, names = resolved(read, q.key)
            assert value == q.value
            assert len(names) == hops + 1
            assert names == sorted(names)
        assert len({q.value for q in prompt.questions}) == chains

    def test_the_number_is_at_its_depth_and_where_the_span_says(self, text):
        tokenizer = byte_tokenizer()
        for prompt in TrackingTask(2500, 4, 1, text).prompts(tokenizer, 3):
            read = tokenizer.decode(prompt.haystack_ids)
            first = prompt.questions[0].needle_span[0]
            for i, q in enumerate(prompt.questions):
                start, end = q.needle_span
                _, names = resolved(read, q.key)
                assert tokenizer.decode(prompt.haystack_ids[start:end]) == f" VAR {names[0][1]} = {q.value}."
                assert q.depth == i / 4
                hidden = len(tokenizer(" ".join(m[0] for m in SET.finditer(read)))["input_ids"])
                window = len(prompt.haystack_ids) - first - hidden
                # The assignments before it, and the way to the end of a sentence, move it.
                assert -51 <= start - first - q.depth * window <= 51 + hidden

    def test_noise_comes_right_after_each_assignment_and_changes_nothing_else(self, text):
        tokenizer = byte_tokenizer()
        plain = TrackingTask(2500, 2, 2, text).prompts(tokenizer, 1)[0]
        noisy = TrackingTask(2500, 2, 2, text, "noisy", noise_tokens=7).prompts(tokenizer, 1)[0]
        start = tokenizer.bos_token_id
        assert noisy.haystack_ids.count(start) - plain.haystack_ids.count(start) == 7 * 6
        said = tokenizer.decode(noisy.haystack_ids)
        assert len(re.findall(SET.pattern + "(?:<s>){7}", said)) == 6
        assert [(q.key, q.value, q.ids) for q in noisy.questions] == [(q.key, q.value, q.ids) for q in plain.questions]
        ours, theirs = (
            SET.sub("", tokenizer.decode([i for i in p.haystack_ids if i != start])) for p in (noisy, plain)
        )
        assert theirs.replace(" ", "").startswith(ours.replace(" ", "")[:-1])

    def test_prompts_are_a_function_of_seed_and_index(self, text):
        one = TrackingTask(1500, text=text, seed=3)
        once = one.prompts(byte_tokenizer(), 4)
        assert TrackingTask(1500, text=text, seed=3).prompts(byte_tokenizer(), 2, first=2) == once[2:]
        other = TrackingTask(1500, text=text, seed=4).prompts(byte_tokenizer(), 1)
        assert len({p.haystack_ids for p in [*once, *other]}) == len({p.id for p in [*once, *other]}) == 5
        assert [p.id for p in once] == [one.prompt_id(i) for i in range(4)]
        # Another version of Python shows here.
        assert [(q.key, q.value) for q in once[0].questions[:2]] == PINNED


class TestTask:
    @pytest.mark.parametrize("chat", [False, True])
    def test_the_reply_tells_the_value(self, chat):
        tokenizer = byte_tokenizer(chat)
        for q in TrackingTask(1500).prompts(tokenizer, 1)[0].questions:
            between = " </s>[assistant] " if chat else "\nAnswer: "
            asked = f"What is the value of VAR {q.key}?{between}The value of VAR {q.key} is {q.value}"
            assert tokenizer.decode([*q.ids, *q.answer_ids]).endswith(asked)
            assert tokenizer.decode(q.answer_ids).strip() == q.value

    def test_names_that_the_text_has_are_not_drawn(self):
        names = [
            m[1]
            for p in TrackingTask(1500).prompts(byte_tokenizer(), 1)
            for m in SET.finditer(byte_tokenizer().decode(p.haystack_ids))
        ]
        text = text_of(story(2000) + " ".join(names), "with names")
        (prompt,) = TrackingTask(1500, text=text).prompts(byte_tokenizer(), 1)
        drawn = {m[1] for m in SET.finditer(byte_tokenizer().decode(prompt.haystack_ids))}
        assert len(drawn) == 12 and not drawn & set(names)

    def test_to_dict_is_json_and_complete(self):
        for text, kept in ((TEXT, TEXT.to_dict()), (None, None)):
            data = json.loads(json.dumps(TrackingTask(900, text=text).to_dict()))
            assert data.keys() == {f.name for f in dataclasses.fields(TrackingTask)}
            assert data["text"] == kept

    @pytest.mark.parametrize(
        "fields",
        [
            {"length": 0},
            {"chains": 0},
            {"chains": 1001},
            {"hops": -1},
            {"hops": 1001},
            {"setting": "loud"},
            {"noise_tokens": 0},
        ],
    )
    def test_bad_values(self, fields):
        with pytest.raises(ArgumentError) as error:
            TrackingTask(**{"length": 900} | fields)
        assert error.value.argument in fields

    def test_too_short_a_length_and_too_short_a_text_say_what_is_needed(self):
        with pytest.raises(ArgumentError, match="use at least") as error:
            TrackingTask(60).prompts(byte_tokenizer(), 1)
        least = int(str(error.value).split()[-1])
        prompt = TrackingTask(least).prompts(byte_tokenizer(), 1)[0]
        assert max(total(prompt, q) for q in prompt.questions) == least
        with pytest.raises(ArgumentError):
            TrackingTask(least - 1).prompts(byte_tokenizer(), 1)
        with pytest.raises(ArgumentError, match=r"text='story': has [\d,]+ tokens but [\d,]+ are needed"):
            TrackingTask(10**6, text=TEXT).prompts(byte_tokenizer(), 1)
        with pytest.raises(ArgumentError, match="number=0"):
            TrackingTask(900).prompts(byte_tokenizer(), 0)
