"""Units of a sweep and the engine that measures them here: answers, claims, interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import word_tokenizer
from tests.evaluation.sweeps import CONFIG, TEXT, LocalNeedles, needles_folder

from ropewalk.data.text import text_of
from ropewalk.errors import ArgumentError, TooShortError
from ropewalk.evaluation import grid
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.grid import Job, Unit, check_prompts
from ropewalk.evaluation.halves import HalvedText, Windows
from ropewalk.evaluation.identity import reference
from ropewalk.evaluation.likelihood import token_nll
from ropewalk.evaluation.local_engine import Local
from ropewalk.evaluation.reader import Reader
from ropewalk.patching import installed
from ropewalk.tasks.base import REPORT_FIRST
from ropewalk.tasks.registry import reading_task
from ropewalk.tasks.tracking import TrackingTask

BOTH = CONFIG | {"tasks": [*CONFIG["tasks"], {"task": "perplexity", "text": "{folder}/text.txt"}], "seeds": [0, 1]}


@pytest.fixture(scope="module")
def needles(tmp_path_factory: pytest.TempPathFactory) -> LocalNeedles:
    return LocalNeedles(needles_folder(tmp_path_factory.mktemp("grid")), TEXT)


def test_a_unit_is_a_prompt_and_a_cell_is_one_plan_on_it(needles: LocalNeedles) -> None:
    units = needles.units(BOTH)
    assert len(units) == 2 * 2 * 2 and {unit.index for unit in units} == {1000, 1001}
    assert [unit.index for unit in units[:4]] == [1000] * 4, "all tasks and seeds get their first prompts first"
    keys = [key for unit in units for key in unit.keys]
    assert len(set(keys)) == len(keys) == 8 * 3
    again = needles.units(BOTH)
    assert [unit.keys for unit in again] == [unit.keys for unit in units]


@pytest.mark.parametrize(
    "changed", [{"lengths": [230]}, {"seeds": [5]}, {"tasks": [{**CONFIG["tasks"][0], "depths": 3}]}]
)
def test_another_task_is_another_cell(needles: LocalNeedles, changed: dict[str, Any]) -> None:
    one, other = needles.units(CONFIG), needles.units(CONFIG | changed)
    assert not {key for unit in one for key in unit.keys} & {key for unit in other for key in unit.keys}


def test_the_answers_are_those_of_each_plan_alone_and_nothing_is_measured_twice(
    needles: LocalNeedles, tmp_path: Path
) -> None:
    units = needles.units(BOTH)[:2]
    reader = Reader(needles.model, needles.tokenizer)
    done: list[str] = []
    with Cells(tmp_path) as cells:
        Local(reader, cells, on_done=lambda unit, number, cell: done.append(cell.key)).run(units)
        assert sorted(done) == sorted(cells.cells) == sorted(key for unit in units for key in unit.keys)
        for unit in units:
            for number, candidate in enumerate(unit.candidates):
                cell = cells.cells[unit.keys[number]]
                with installed(needles.model, candidate.encoding):
                    if not isinstance(unit.task, Windows):
                        (prompt,) = unit.task.prompts(needles.tokenizer, 1, first=unit.index)
                        assert cells.answers(cell) == reader.answers(prompt, unit.task.setting)
                    else:
                        ids = unit.task.ids(needles.tokenizer, unit.index)
                        assert cell.nll == float(token_nll(needles.model, ids).double().mean()) and cell.right is None
        done.clear()
        Local(reader, cells, on_done=lambda unit, number, cell: done.append(cell.key)).run(units)
    with Cells(tmp_path) as cells:
        Local(reader, cells, on_done=lambda unit, number, cell: done.append(cell.key)).run(units)
        assert not done
        kinds = {kind for kind, _ in units[0].contents}
        assert kinds == {"model", "plan", "task"}
        for kind, reference in units[0].contents:
            name, content = units[0].contents[kind, reference]
            if kind != "task" or reference in {cell.task for cell in cells.cells.values()}:
                found = cells.definition(kind, reference)
                assert (found["name"], found["content"]) == (name, content)


def test_what_was_measured_before_an_interruption_is_kept(needles: LocalNeedles, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    units = needles.units(CONFIG)
    with Cells(tmp_path) as cells, pytest.raises(KeyboardInterrupt):
        Local(Reader(needles.model, needles.tokenizer), cells, on_done=stop).run(units)
    assert not any("forward" in module.__dict__ for module in needles.model.modules())
    done: list[Cell] = []
    with Cells(tmp_path) as cells:
        assert len(cells.cells) == 1
        reader = Reader(needles.model, needles.tokenizer)
        Local(reader, cells, on_done=lambda unit, number, cell: done.append(cell)).run(units)
        assert len(done) == 5 and len(cells.cells) == 6


def test_what_fails_lets_go_of_its_claims(
    needles: LocalNeedles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[Any] = []
    monkeypatch.setattr(Cells, "release", lambda self, keys: released.append(list(keys)))
    monkeypatch.setattr(grid, "SharedReading", None)  # so that measuring fails
    (unit, *_) = needles.units(CONFIG)
    with Cells(tmp_path) as cells, pytest.raises(TypeError):
        Local(Reader(needles.model, needles.tokenizer), cells).run([unit])
    assert released[-1] == list(unit.keys)


def _sweep(folder: Path, out: Path, found: Any) -> None:
    needles = LocalNeedles(folder, TEXT)
    with Cells(out) as cells:
        reader = Reader(needles.model, needles.tokenizer)
        mine: list[str] = []
        Local(reader, cells, on_done=lambda unit, number, cell: mine.append(cell.key)).run(needles.units(CONFIG))
        found.put((mine, len(cells.cells)))


def test_two_processes_share_the_work_and_do_nothing_twice(needles: LocalNeedles, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    found = fork.Queue()
    arguments = (needles.folder, tmp_path / "out", found)
    processes = [fork.Process(target=_sweep, args=arguments, daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    (one, all_of_one), (other, all_of_other) = found.get(timeout=200), found.get(timeout=200)
    for process in processes:
        process.join()
    assert all_of_one == all_of_other == 6
    assert len(one) + len(other) == 6 and not set(one) & set(other)
    assert Cells(tmp_path / "out").duplicates == 0


def test_a_task_that_cannot_be_had_stops_before_anything_is_measured(needles: LocalNeedles) -> None:
    config = needles.config(CONFIG | {"lengths": [90_000]})
    with pytest.raises(ArgumentError, match="tokens"):
        check_prompts(needles.job(config), needles.tokenizer, [1000])


def test_units_name_what_they_are(needles: LocalNeedles) -> None:
    unit: Unit = needles.units(CONFIG)[1]
    assert unit.name == "needle, 220 tokens, seed 0, prompt 1001"


def test_windows_share_no_token_and_each_half_of_the_text_has_its_own_purpose(needles: LocalNeedles) -> None:
    whole = " ".join(f"w{i}" for i in range(40_000))
    text, length = text_of(whole, "numbers"), 3_000
    found = {}
    for rank in (0, 1):
        windows = Windows(text, length, rank, 2)
        for index in (0, 1, REPORT_FIRST, REPORT_FIRST + 1):
            ids = windows.ids(needles.tokenizer, index)
            assert len(ids) == length
            found[rank, index] = set(re.findall(r"w\d+", needles.tokenizer.decode(ids))[1:-1])
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    first = [int(word[1:]) for (_, index), words in found.items() if index < REPORT_FIRST for word in words]
    second = [int(word[1:]) for (_, index), words in found.items() if index >= REPORT_FIRST for word in words]
    assert max(first) < min(second)


def test_a_text_without_room_for_so_many_windows_is_refused(needles: LocalNeedles) -> None:
    windows = Windows(TEXT, 400, 0, 2)
    with pytest.raises(ArgumentError, match=r"its second half has room for \d+ windows of 400 tokens, number 81 is"):
        windows.ids(needles.tokenizer, REPORT_FIRST + 40)


def words(tokenizer: Any, ids: Any) -> list[int]:
    """The numbers of the words w0, w1, ... in a text, but for those that its ends or what is hidden may have cut."""
    return [int(word) for word in re.findall(r" w(\d+)\.(?= w)", tokenizer.decode(ids))]


@pytest.mark.parametrize("entry", [{"task": "needle", "depths": 3}, {"task": "needle", "setting": "noisy"}, "tracking"])
def test_haystacks_that_choose_share_no_text_with_those_that_judge(
    needles: LocalNeedles, tmp_path: Path, entry: Any
) -> None:
    (tmp_path / "numbers.txt").write_text(" ".join(f"w{i}." for i in range(9_000)))
    entry = {"task": entry} if isinstance(entry, str) else entry
    tasks = [{**entry, "text": str(tmp_path / "numbers.txt")}]
    ((_, _, task),) = needles.job(needles.config(CONFIG | {"tasks": tasks, "lengths": [900]})).tasks
    found = []
    for first in (0, REPORT_FIRST):
        prompts = task.prompts(needles.tokenizer, 12, first=first)
        assert [prompt.id for prompt in prompts] == [task.prompt_id(first + i) for i in range(12)]
        assert len({prompt.haystack_ids for prompt in prompts}) == 12
        found.append([number for prompt in prompts for number in words(needles.tokenizer, prompt.haystack_ids)])
    chosen, judged = found
    assert max(chosen) < 4_600 and min(judged) > 4_400 and max(chosen) < min(judged)
    # The whole of each half is in use.
    assert min(chosen) < 1_000 and max(chosen) > 3_500 and min(judged) < 5_500 and max(judged) > 8_000


def test_tracking_in_sentences_of_its_own_has_no_text_to_halve(needles: LocalNeedles) -> None:
    ((_, _, task),) = needles.job(needles.config(CONFIG | {"tasks": "tracking", "lengths": [900]})).tasks
    assert isinstance(task, TrackingTask)


def test_haystacks_of_halves_are_other_cells_than_those_of_the_whole_text(needles: LocalNeedles) -> None:
    job = needles.job(needles.config(CONFIG))
    ((entry, seed, task),) = job.tasks
    assert isinstance(task, HalvedText)
    (content,) = job.task_contents()
    (whole,) = dataclasses.replace(job, tasks=((entry, seed, task.task),)).task_contents()
    assert content["text"] == whole["text"] and whole["text"]["fingerprint"] == TEXT.fingerprint
    assert reference(content) != reference(whole)


@pytest.mark.parametrize(("index", "half"), [(0, "chooses"), (REPORT_FIRST, "judges")])
def test_a_text_whose_half_is_too_short_is_refused_in_a_line(needles: LocalNeedles, index: int, half: str) -> None:
    whole = len(needles.tokenizer(TEXT.text)["input_ids"])
    config = needles.config(CONFIG | {"lengths": [whole * 2 // 3]})
    with pytest.raises(ArgumentError) as caught:
        check_prompts(needles.job(config), needles.tokenizer, [index])
    said = str(caught.value)
    assert "text.txt'" in said and f"prompts of {whole * 2 // 3:,} tokens" in said and f"that {half}" in said
    assert "give a longer text or ask for a shorter length" in said and "\n" not in said


def test_seeds_of_a_many_shot_sweep_ask_other_problems(needles: LocalNeedles, tmp_path: Path) -> None:
    rows = [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(200)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = {"task": "many_shot", "questions": str(tmp_path / "sums.jsonl"), "depths": ["none"]}
    changed = CONFIG | {"tasks": [entry], "lengths": [400]}
    job = needles.job(needles.config(changed | {"seeds": [0, 1]}))
    asked = [task.prompts(needles.tokenizer, 40, first=REPORT_FIRST) for _, _, task in job.tasks]
    keys = [{question.key for prompt in prompts for question in prompt.questions} for prompts in asked]
    assert len(keys[0] | keys[1]) == 80
    ((_, _, alone),) = needles.job(needles.config(changed | {"seeds": [1]})).tasks
    assert alone == reading_task("many_shot", 400, 1, {k: v for k, v in entry.items() if k != "task"})


def test_a_problem_too_long_for_its_prompt_stops_before_anything_is_measured(
    needles: LocalNeedles, tmp_path: Path
) -> None:
    rows = [{"question": f"What is {i}{' and 0' * (i % 50)}?", "answer": str(i)} for i in range(100)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = {"task": "many_shot", "questions": str(tmp_path / "sums.jsonl"), "depths": [0]}

    def job(length: int) -> Job:
        return needles.job(needles.config(CONFIG | {"tasks": [entry], "lengths": [length]}))

    def builds(index: int) -> bool:
        with contextlib.suppress(TooShortError):
            return bool(job(250).tasks[0][2].prompts(needles.tokenizer, 1, first=index))
        return False

    built = [index for index in range(REPORT_FIRST, REPORT_FIRST + 40) if builds(index)]
    indices = range(built[0], built[-1] + 1)
    assert len(built) < len(indices)  # the first and the last could be built, one between them not
    with pytest.raises(TooShortError, match=r"=250: too short .* problem sums.jsonl:\d+; use") as at:
        check_prompts(job(250), needles.tokenizer, indices)
    check_prompts(job(at.value.needed), needles.tokenizer, indices)
    with pytest.raises(TooShortError):
        check_prompts(job(at.value.needed - 1), needles.tokenizer, indices)
    assert str(pickle.loads(pickle.dumps(at.value))) == str(at.value)


def test_sliding_windows_judge_the_newest_tokens_of_a_full_context(needles: LocalNeedles, tmp_path: Path) -> None:
    entry = {"task": "perplexity", "text": "{folder}/text.txt", "way": "sliding", "stride": 30}
    units = needles.units(CONFIG | {"tasks": [entry], "lengths": [100], "prompts": 1})
    assert isinstance(units[0].task, Windows)
    ids = units[0].task.ids(needles.tokenizer, units[0].index)
    assert len(ids) == 100 + 2 * 30
    wanted = [token_nll(needles.model, ids[end - 100 : end])[-30:] for end in (100, 130, 160)]
    with Cells(tmp_path) as cells:
        needles.measure(units, cells)
        cell = cells.cells[units[0].keys[0]]
        assert cell.nll == pytest.approx(float(torch.cat(wanted).double().mean()), abs=1e-6)
        assert cell.right is None and cell.nll != pytest.approx(float(token_nll(needles.model, ids).mean()), abs=1e-4)


def test_sliding_windows_begin_with_the_start_token_and_need_room_for_all_that_is_read() -> None:
    tokenizer = word_tokenizer()
    numbers = " ".join(f"rope {digit}" for i in range(9_000) for digit in str(i))
    windows = Windows(text_of(numbers, "numbers"), 200, way="sliding", stride=50)
    starts = [windows.ids(tokenizer, index) for index in range(3)]
    assert [len(ids) for ids in starts] == [350] * 3 and tokenizer.bos_token_id not in {
        i for ids in starts for i in ids
    }
    read: list[list[int]] = []

    class Model(torch.nn.Module):
        """Notes what it is asked to read."""

    def noted(model: Any, ids: list[int], newest: int | None = None) -> torch.Tensor:
        read.append(ids)
        return torch.zeros(newest or len(ids))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ropewalk.evaluation.likelihood.token_nll", noted)
        windows.nll(Model(), starts[0], tokenizer)
    assert [len(ids) for ids in read] == [200] * 4 and {ids[0] for ids in read} == {tokenizer.bos_token_id}
    with pytest.raises(ArgumentError, match="windows of 350 tokens"):
        windows.ids(tokenizer, 500)


def test_whole_windows_are_named_as_before_and_sliding_ones_by_their_stride() -> None:
    named = {"text": TEXT.to_dict(), "length": 300, "rank": 0, "seeds": 2}
    assert Windows(TEXT, 300, 0, 2).to_dict() == Windows(TEXT, 300, 0, 2, way="full").to_dict() == named
    sliding = Windows(TEXT, 300, 0, 2, way="sliding")
    assert sliding.to_dict() == named | {"way": "sliding", "stride": 150}
    assert sliding == Windows(TEXT, 300, 0, 2, way="sliding", stride=150)
