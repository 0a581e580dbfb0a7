from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer

from ropewalk.data.qa_problems import Problem, problems_of
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.identity import content_hash
from ropewalk.tasks.base import REPORT_FIRST
from ropewalk.tasks.many_shot import ManyShotTask

PROBLEMS = problems_of(
    [
        Problem(f"{line} What is {i}?", str(7 * i), f"It is seven times {i}." if i % 3 else "", f"a.jsonl:{i}")
        for i, line in enumerate(story(200).split("\n"))
    ],
    "a.jsonl",
)
KINDS = {
    "words": word_tokenizer(),
    "words, chat": word_tokenizer(chat=True),
    "bytes": byte_tokenizer(),
    "bytes, chat": byte_tokenizer(chat=True),
}
PINNED = ["a.jsonl:4", "a.jsonl:17"]
# What a seed by itself asks and is named by: published records depend on it.
RECORDED = {
    ("single", 0): "ffed1dbb0fa7758c",
    ("single", 3): "e88db84b043cf5f9",
    ("multi", 0): "2b45b000afdfdedf",
    ("multi", 3): "1458310505766585",
}


def task(length=2000, **fields):
    return ManyShotTask(PROBLEMS, length, **fields)


def total(prompt):
    return len(prompt.haystack_ids) + max(len(q.ids) + len(q.answer_ids) for q in prompt.questions)


def whole(problem):
    said = f"Problem: {problem.question}\nAnswer: {problem.answer}\n"
    return said + (f"Solution: {problem.solution}\n\n" if problem.solution else "")


def examples(prompt):
    """The (question, answer) pairs of the whole examples of a prompt, in order."""
    read = byte_tokenizer().decode(prompt.haystack_ids)
    return re.findall(r"^Problem: (.*(?:\n.*)*?)\nAnswer: (.*)$", read, re.MULTILINE)


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())
@settings(max_examples=10, deadline=None)
@given(length=st.integers(900, 3000), seed=st.integers(0, 10**6), depths=st.permutations(["none", 0, 0.4, 1]))
def test_length_is_exact(tokenizer, length, seed, depths):
    one = task(length, seed=seed, depths=depths[:2])
    assert [total(prompt) for prompt in one.prompts(tokenizer, 4)] == [length] * 4


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())
@settings(max_examples=10, deadline=None)
@given(length=st.integers(1500, 3000), seed=st.integers(0, 10**6))
def test_length_is_exact_for_the_longest_of_several_questions(tokenizer, length, seed):
    one = task(length, seed=seed, depths=["none", 0, 0.4, 1], protocol="multi")
    assert [total(prompt) for prompt in one.prompts(tokenizer, 3)] == [length] * 3


class TestMulti:
    def test_every_depth_has_a_problem_of_its_own(self):
        tokenizer = byte_tokenizer()
        one = task(3000, depths=["none", 0, 0.5, 1], protocol="multi")
        prompts = one.prompts(tokenizer, 3)
        assert [p.id for p in prompts] == [f"many_shot/multi/3000/0/{i}" for i in range(3)]
        assert len({q.key for p in prompts for q in p.questions}) == 12
        for prompt in prompts:
            found = examples(prompt)
            drawn = len(found) - 3
            assert [q.depth for q in prompt.questions] == [-1.0, 0.0, 0.5, 1.0]
            for question, place in zip(prompt.questions, (None, 0, 1 + int(0.5 * drawn + 0.5), -1), strict=True):
                asked = next(p for p in PROBLEMS.problems if p.place == question.key)
                start, end = question.needle_span
                assert tokenizer.decode(prompt.haystack_ids[start:end]) == ("" if place is None else whole(asked))
                assert found.count((asked.question, asked.answer)) == (place is not None)
                assert place is None or found[place] == (asked.question, asked.answer)
                assert tokenizer.decode(question.answer_ids) == f" {asked.answer}\n"

    def test_prompts_ask_all_problems_and_no_more(self):
        one, half = task(depths=["none", 1], protocol="multi"), -(-len(PROBLEMS.problems) // 2)
        prompts = one.prompts(word_tokenizer(), half // 2)
        assert len({q.key for p in prompts for q in p.questions}) == half - half % 2
        with pytest.raises(ArgumentError, match=f"for {len(prompts)} prompts, not for number {len(prompts) + 1};"):
            one.prompts(word_tokenizer(), 1, first=len(prompts))

    def test_other_protocols_are_refused(self):
        with pytest.raises(ArgumentError, match="protocol='both': choose single or multi"):
            task(protocol="both")


class TestPrompt:
    @settings(max_examples=15, deadline=None)
    @given(length=st.integers(1200, 3000), seed=st.integers(0, 10**6), depth=st.floats(0, 1))
    def test_depth_is_where_it_says(self, length, seed, depth):
        tokenizer = byte_tokenizer()
        (prompt,) = task(length, seed=seed, depths=[depth]).prompts(tokenizer, 1)
        (question,) = prompt.questions
        asked = next(p for p in PROBLEMS.problems if p.place == question.key)
        start, end = question.needle_span
        assert tokenizer.decode(prompt.haystack_ids[start:end]) == whole(asked)
        found = examples(prompt)
        assert found.count((asked.question, asked.answer)) == 1
        place = found.index((asked.question, asked.answer))
        assert place == int(depth * (len(found) - 1) + 0.5)
        assert question.depth == depth

    def test_left_out_it_is_nowhere(self):
        for prompt in task(depths=["none"]).prompts(byte_tokenizer(), 5):
            (question,) = prompt.questions
            asked = next(p for p in PROBLEMS.problems if p.place == question.key)
            assert asked.question not in byte_tokenizer().decode(prompt.haystack_ids)
            assert (question.depth, question.needle_span) == (-1.0, (0, 0))

    @pytest.mark.parametrize("depths", [["none"], [0], [1]])
    def test_only_the_first_example_is_cut_and_one_more_would_not_fit(self, depths):
        tokenizer = byte_tokenizer()
        one = task(1500, depths=depths)
        for prompt in one.prompts(tokenizer, 5):
            body = tokenizer.decode(prompt.haystack_ids).split("in the same form.\n\n")[1]
            by_question = {p.question: p for p in PROBLEMS.problems}
            rest = "".join(whole(by_question[question]) for question, _ in examples(prompt))
            assert body.endswith(rest)
            cut = body[: len(body) - len(rest)]
            assert sum(whole(p).endswith(cut) and whole(p) != cut for p in PROBLEMS.problems) >= 1

    def test_tokens_are_those_of_the_text(self):
        tokenizer = byte_tokenizer()
        (prompt,) = task(depths=[0.5]).prompts(tokenizer, 1)
        start = prompt.questions[0].needle_span[0]
        ours = list(prompt.haystack_ids[start:])
        read = tokenizer(tokenizer.decode(ours) + "Problem", add_special_tokens=False)["input_ids"]
        assert read[: len(ours)] == ours

    @pytest.mark.parametrize("chat", [False, True])
    def test_the_question_asks_in_the_examples_form(self, chat):
        tokenizer = byte_tokenizer(chat)
        for prompt in task().prompts(tokenizer, 5):
            (question,) = prompt.questions
            asked = next(p for p in PROBLEMS.problems if p.place == question.key)
            between = " </s>[assistant] " if chat else "\n"
            assert tokenizer.decode(question.ids) == f"Problem: {asked.question}{between}Answer:"
            assert tokenizer.decode(question.answer_ids) == f" {asked.answer}\n"
            assert question.value == asked.answer
            read = tokenizer.decode(prompt.haystack_ids)
            assert read.startswith(("<s>[user] " if chat else "") + "Below are problems")

    def test_text_in_problems_opens_and_ends_nothing(self):
        tokenizer = byte_tokenizer(chat=True)
        wild = [
            Problem(f"Is </s>[assistant] {{key}} {{answer}} <s> {i}?", f"</s>{i}", "<s>Yes", str(i)) for i in range(50)
        ]
        one = ManyShotTask(problems_of(wild, "wild"), 1500, depths=[0.5])
        for prompt in one.prompts(tokenizer, 3):
            (question,) = prompt.questions
            ids = [*prompt.haystack_ids, *question.ids, *question.answer_ids]
            assert len(ids) == 1500
            assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
            assert f"Is </s>[assistant] {{key}} {{answer}} <s> {question.key}?" in tokenizer.decode(question.ids)


class TestOrder:
    def test_runs_over_problems_then_depths(self):
        one = task(depths=["none", 0, "1/3"])
        prompts = one.prompts(byte_tokenizer(), 9)
        keys = [p.questions[0].key for p in prompts]
        assert keys == [key for key in keys[::3] for _ in range(3)]
        assert len(set(keys)) == 3
        assert [p.questions[0].depth for p in prompts] == [-1.0, 0.0, 1 / 3] * 3
        assert [p.id for p in prompts] == [one.prompt_id(i) for i in range(9)]
        assert len({p.id for p in prompts} | {p.haystack_ids for p in prompts}) == 18
        assert one.prompt_id(4) == "many_shot/2000/0/choose/1/0"

    def test_depths_share_their_examples(self):
        none, start, end = task(depths=["none", 0, 1]).prompts(byte_tokenizer(), 3)
        first, last = examples(start), examples(end)
        assert first[0] == last[-1]
        assert first[1:] == last[:-1] == examples(none)[: len(last) - 1]

    def test_every_problem_is_asked_once(self):
        one, every = task(depths=["none"]), len(PROBLEMS.problems)
        choosing = one.prompts(word_tokenizer(), every - every // 2)
        judging = one.prompts(word_tokenizer(), every // 2, first=REPORT_FIRST)
        asked = [{p.questions[0].key for p in prompts} for prompts in (choosing, judging)]
        assert asked[0] | asked[1] == {p.place for p in PROBLEMS.problems} and not asked[0] & asked[1]
        for first, prompts, does in ((0, choosing, "chooses"), (REPORT_FIRST, judging, "judges")):
            with pytest.raises(ArgumentError, match=f"that {does} has enough for {len(prompts)} prompts, not for"):
                one.prompts(word_tokenizer(), 1, first=first + len(prompts))

    @pytest.mark.parametrize("protocol", ["single", "multi"])
    def test_what_chooses_never_judges_whatever_the_seed(self, protocol):
        def asked(first, seed):
            prompts = task(depths=["none", 0], protocol=protocol, seed=seed).prompts(word_tokenizer(), 6, first=first)
            return {q.key for p in prompts for q in p.questions}, {p.id for p in prompts}

        chosen, ids = asked(0, seed=1)
        judged, other_ids = asked(REPORT_FIRST, seed=0)
        assert not chosen & judged and not ids & other_ids

    def test_prompts_are_a_function_of_seed_and_index(self):
        once = task(seed=3).prompts(byte_tokenizer(), 6)
        assert task(seed=3).prompts(byte_tokenizer(), 2, first=4) == once[4:]
        assert task(seed=4).prompts(byte_tokenizer(), 1)[0].haystack_ids != once[0].haystack_ids
        assert examples(once[0])[0] != examples(once[5])[0]  # each problem has its own
        # Another version of Python shows here.
        assert [p.questions[0].key for p in once[::5]] == PINNED


class TestSeeds:
    @pytest.mark.parametrize("first", [0, REPORT_FIRST])
    @pytest.mark.parametrize(("protocol", "number", "problems"), [("single", 10, 15), ("multi", 2, 12)])
    def test_seeds_of_one_comparison_ask_other_problems(self, protocol, number, problems, first):
        seeds, asked = (4, 0, 9), set()
        for seed in seeds:
            one = task(depths=["none", 0], protocol=protocol, seed=seed, seeds=seeds)
            asked |= {q.key for p in one.prompts(word_tokenizer(), number, first=first) for q in p.questions}
        assert len(asked) == problems  # of the half's 17

    def test_too_few_problems_for_all_seeds_say_so_in_a_line(self):
        half = len(PROBLEMS.problems) // 2
        one = task(depths=["none"], seed=1, seeds=(0, 1))
        assert one.prompts(word_tokenizer(), half // 2, first=REPORT_FIRST)
        with pytest.raises(ArgumentError, match=f"enough for {half // 2} prompts of each of 2 seeds, not for") as error:
            one.prompts(word_tokenizer(), 1, first=REPORT_FIRST + half // 2)
        assert "fewer prompts, seeds or depths" in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize(("protocol", "seed"), RECORDED)
    def test_a_seed_by_itself_asks_what_it_always_did(self, protocol, seed):
        for alone in ((), (seed,)):
            one = task(1500, depths=["none", 0, 1], protocol=protocol, seed=seed, seeds=alone)
            prompts = [p for first in (0, REPORT_FIRST) for p in one.prompts(word_tokenizer(), 4, first=first)]
            found = content_hash([one.to_dict(), [dataclasses.asdict(p) for p in prompts]])
            assert found.startswith(RECORDED[protocol, seed])

    @pytest.mark.parametrize("seeds", [(1, 2), (0, 0)])
    def test_seeds_without_its_own_or_with_one_twice_are_refused(self, seeds):
        with pytest.raises(ArgumentError, match="seeds="):
            task(seed=0, seeds=seeds)


class TestTask:
    def test_depths_as_they_may_be_written(self):
        assert task(depths=["none", 0, "1/4", "0.5", 1]).depths == (None, 0.0, 0.25, 0.5, 1.0)
        assert task(depths="none").depths == (None,)
        assert task(depths=0.5).depths == (0.5,)
        assert task(depths=None).depths == (None,)
        assert len(task().depths) == 5

    @pytest.mark.parametrize(
        "depths", [[], [0, 0], ["none", None], [2], [-1], ["half"], ["1/0"], [True], [float("nan")]]
    )
    def test_other_depths_are_refused(self, depths):
        with pytest.raises(ArgumentError, match="depths"):
            task(depths=depths)

    def test_to_dict_is_json_and_complete(self):
        data = json.loads(json.dumps(task(seed=4, seeds=(2, 4)).to_dict()))
        assert data.keys() == {f.name for f in dataclasses.fields(ManyShotTask)} and data["seeds"] == [2, 4]
        assert data["problems"] == {
            "name": "a.jsonl",
            "fingerprint": PROBLEMS.fingerprint,
            "problems": len(PROBLEMS.problems),
        }
        assert task().setting == "original"

    @pytest.mark.parametrize("depth", ["none", 0.5])
    def test_too_short_a_length_says_what_is_needed(self, depth):
        with pytest.raises(ArgumentError, match="use at least") as error:
            task(60, depths=depth).prompts(byte_tokenizer(), 1)
        least = int(str(error.value).split()[-1])
        assert total(task(least, depths=depth).prompts(byte_tokenizer(), 1)[0]) == least
        with pytest.raises(ArgumentError, match="length"):
            task(least - 1, depths=depth).prompts(byte_tokenizer(), 1)
        with pytest.raises(ArgumentError, match="length=0"):
            task(0)
        with pytest.raises(ArgumentError, match="number=0"):
            task().prompts(byte_tokenizer(), 0)

    def test_too_few_problems_say_so(self):
        with pytest.raises(ArgumentError, match=r"questions='a.jsonl': fills [\d,]+ of [\d,]+ tokens; give more"):
            task(10**5).prompts(byte_tokenizer(), 1)

    def test_examples_too_long_for_the_prompt_are_passed_over(self):
        long = Problem("long " * 2000, "1", "", "long")
        problems = problems_of([long, *PROBLEMS.problems], "a.jsonl")
        for seed in range(100):  # the long one is the first drawn for some of them
            one = ManyShotTask(problems, 1500, depths=("none",), seed=seed)
            try:
                assert total(one.prompts(word_tokenizer(), 1)[0]) == 1500
            except ArgumentError as error:
                assert "problem long" in str(error)  # too long to be asked
