from __future__ import annotations

import json
import os

import pytest
from tests.data.tokenizers import byte_tokenizer, story

from ropewalk.errors import ArgumentError
from ropewalk.tasks.registry import reading_task, reading_tasks


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "story.txt").write_text(story(1000))
    rows = [
        {"question": f"{line} How many?", "answer": f"So many.\n#### {i}"}
        for i, line in enumerate(story(60).split("\n") * 9)
    ]
    (tmp_path / "asked.jsonl").write_text(
        "\n".join(json.dumps(row | {"question": f"{i}. " + row["question"]}) for i, row in enumerate(rows))
    )
    text, questions = str(tmp_path / "story.txt"), str(tmp_path / "asked.jsonl")
    return {"needle": {"text": text}, "many_shot": {"questions": questions}, "lookup": {}, "tracking": {}}


def test_the_names():
    assert list(reading_tasks()) == ["needle", "many_shot", "lookup", "tracking"]
    assert all(kind.summary and "\n" not in kind.summary for kind in reading_tasks().values())
    reading_tasks().clear()
    assert reading_tasks()


@pytest.mark.parametrize("name", ["needle", "many_shot", "lookup", "tracking"])
class TestEachTask:
    def test_is_made_from_plain_values(self, sources, name):
        task = reading_task(name, 1500, 3, sources[name])
        (prompt,) = task.prompts(byte_tokenizer(), 1)
        assert prompt.id == task.prompt_id(0)
        assert max(len(prompt.haystack_ids) + len(q.ids) + len(q.answer_ids) for q in prompt.questions) == 1500
        data = json.loads(json.dumps(task.to_dict()))
        assert (data["length"], data["seed"]) == (1500, 3)
        assert task.setting == "original"

    def test_every_option_can_be_given_its_default(self, sources, name):
        defaults = dict(reading_tasks()[name].options)
        assert reading_task(name, 1500, 3, {**defaults, **sources[name]}) == reading_task(name, 1500, 3, sources[name])

    def test_options_reach_the_task(self, sources, name):
        noisy = {"setting": "noisy", "noise_tokens": 2, "use_chat_template": False}
        others = {
            "needle": {"depths": 3, "protocol": "single"} | noisy,
            "many_shot": {"depths": ["none", "1/3"], "use_chat_template": False},
            "lookup": {"depths": [0, 0.5], "layout": "json", "values": "uuid"} | noisy,
            "tracking": {"chains": 2, "hops": 1, "text": sources["needle"]["text"]} | noisy,
        }[name]
        task = reading_task(name, 1500, 3, sources[name] | others)
        assert all(getattr(task, option) != reading_tasks()[name].options[option] for option in others)

    @pytest.mark.parametrize(
        ("length", "seed", "options", "reason"),
        [
            (1500, 0, {"dephts": 3}, r"'dephts': did you mean depths|'dephts': choose from"),
            (1500, 0, {"length": 3}, r"option of \w+='length'"),
            (1500.0, 0, {}, r"length=1500.0: must be a whole number"),
            (True, 0, {}, r"length=True: must be a whole number"),
            (0, 0, {}, r"length=0"),
            (1500, "0", {}, r"seed='0': must be a whole number"),
            (1500, 0, {"use_chat_template": "no"}, r"use_chat_template='no': must be true or false"),
        ],
    )
    def test_bad_values_are_refused_in_one_line(self, sources, name, length, seed, options, reason):
        with pytest.raises(ArgumentError, match=reason) as error:
            reading_task(name, length, seed, sources[name] | options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("needles", {}, "task='needles': did you mean needle"),
        ("many_shot", {}, "questions=None: the task many_shot needs it"),
        ("many_shot", {"questions": ""}, "questions='': the task many_shot needs it"),
        ("many_shot", {"questions": 3}, "questions=3: must be a text"),
        ("many_shot", {"questions": "nowhere.jsonl"}, "no such file"),
        ("needle", {"text": None}, "text=None: must be a text"),
        ("needle", {"text": "nowhere.txt"}, "no such file"),
        ("needle", {"depths": "many"}, "depths='many'"),
        ("needle", {"noise_tokens": "few"}, "noise_tokens='few': must be a whole number"),
        ("lookup", {"layout": 1}, "layout=1: must be a text"),
        ("tracking", {"hops": 1.5}, "hops=1.5: must be a whole number"),
        ("tracking", {"text": 5}, "text=5: must be a text"),
    ],
)
def test_what_one_task_refuses(name, options, reason):
    with pytest.raises(ArgumentError, match=reason):
        reading_task(name, 1500, 0, options)


def test_what_is_read_is_shared_until_the_file_changes(sources):
    path = sources["needle"]["text"]
    first, second = (reading_task("needle", length, 0, {"text": path}).text for length in (1000, 1500))
    assert first is second
    with open(path, "a") as file:
        file.write(" More.")
    os.utime(path, ns=(1, 1))
    assert reading_task("needle", 1000, 0, {"text": path}).text != first


def test_a_folder_of_questions_is_read_again_when_a_file_in_it_changes(sources, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for count in (1, 2):
        rows = "\n".join(json.dumps({"question": str(i), "answer": "a"}) for i in range(count))
        (folder / "a.jsonl").write_text(rows)
        assert len(reading_task("many_shot", 1000, 0, {"questions": str(folder)}).problems.problems) == count
