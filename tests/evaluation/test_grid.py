"""Units of a sweep and the engine that measures them here: answers, claims, interruptions."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.sweeps import CONFIG, TEXT, LocalNeedles, needles_folder

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.engines.local import Local
from ropewalk.evaluation.grid import Unit, Windows, check_prompts
from ropewalk.evaluation.likelihood import token_nll
from ropewalk.evaluation.read import Reader
from ropewalk.hf import installed
from ropewalk.tasks.haystack import text_of
from ropewalk.tasks.prompts import REPORT_FIRST

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
