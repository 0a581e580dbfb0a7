from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import stat
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.cells import CELLS, FORMAT, Cell, Cells
from ropewalk.evaluation.comparison import summarise
from ropewalk.evaluation.identity import cell_key, content_hash, reference
from ropewalk.evaluation.statistics import Answer

PLAN, TASK = {"kind": "rope", "base": 10000.0}, {"task": "needle", "length": 300, "seed": 0}
OF = "00000000000000aa", reference(PLAN), reference(TASK)
NASTY = 'says <script>alert("1")</script>\n\u2028 {"crc":"0" \ud800 ünï'


def answers(prompt: int, number: int = 2) -> list[Answer]:
    name = f"needle/{prompt}"
    return [Answer(name, "noisy", i / 2, f"k{i}", "12", 0.25 * (i + 1), i == 0, NASTY) for i in range(number)]


def put(cells: Cells, *prompts: int) -> list[Cell]:
    cells.define("plan", OF[1], PLAN, "plain")
    return [cells.put(cell_key(*OF, prompt), OF, prompt, answers(prompt), 1.23456) for prompt in prompts]


def lines_of(folder: Path) -> list[bytes]:
    (file,) = (folder / CELLS).iterdir()
    return file.read_bytes().splitlines(keepends=True)


def rewrite(folder: Path, lines: list[bytes]) -> None:
    (file,) = (folder / CELLS).iterdir()
    file.write_bytes(b"".join(lines))


def test_what_is_put_is_read_back(tmp_path: Path) -> None:
    with Cells(tmp_path) as cells:
        first, second = put(cells, 1000, 1001)
        assert cells.cells == {first.key: first, second.key: second}
        assert cells.answers(second) == answers(1001)
    again = Cells(tmp_path)
    assert again.cells == cells.cells and again.answers(again.cells[second.key]) == answers(1001)
    assert (first.n, first.right, first.nll, first.prompt) == (2, 1, 0.375, 1000)
    assert (first.model, first.plan, first.task) == OF and first.seconds == 1.235
    assert again.definition("plan", OF[1])["content"] == PLAN and again.definition("plan", OF[1])["name"] == "plain"
    assert again.definition("task", OF[2]) == {}
    assert not again.damaged and again.duplicates == 0


def test_every_cell_is_on_the_disk_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cells(tmp_path) as cells:
        put(cells, 1000)
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", synced.append)
        put(cells, 1001, 1002)
    assert len(synced) == 2


def test_a_task_that_asks_nothing_has_a_likelihood_alone(tmp_path: Path) -> None:
    with Cells(tmp_path) as cells:
        cell = cells.put(cell_key(*OF, 1000), OF, 1000, [], 0.5, nll=2.5)
    assert (cell.n, cell.right, cell.nll) == (1, None, 2.5)
    again = Cells(tmp_path)
    assert again.cells == {cell.key: cell} and again.answers(cell) == []


def test_every_line_is_json_with_a_header_before_them(tmp_path: Path) -> None:
    with Cells(tmp_path) as cells:
        put(cells, 1000)
    header, definition, cell = (json.loads(line) for line in lines_of(tmp_path))
    assert header == {"format": FORMAT, "version": 1}
    assert definition["define"] == "plan" and cell["answers"][0]["generated"] == NASTY
    (file,) = (tmp_path / CELLS).iterdir()
    assert not stat.S_IMODE(file.stat().st_mode) & 0o111


def test_opening_a_folder_writes_nothing(tmp_path: Path) -> None:
    with Cells(tmp_path / "out") as cells:
        assert cells.cells == {}
    assert not (tmp_path / "out").exists()


def test_the_hash_is_of_the_content_however_its_keys_are_ordered() -> None:
    assert content_hash({"a": 1, "b": [2.5, None]}) == content_hash({"b": [2.5, None], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert len(content_hash({})) == 64 and reference({}) == content_hash({})[:16]
    keys = {cell_key(*of, prompt) for of in (OF, ("m", *OF[1:]), (*OF[:2], "t")) for prompt in (0, 1)}
    assert len(keys) == 6


def test_a_last_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    with Cells(tmp_path) as cells:
        first, second = put(cells, 1000, 1001)
    lines = lines_of(tmp_path)
    for cut in (1, 30, len(lines[-1]) - 1):
        rewrite(tmp_path, [*lines[:-1], lines[-1][:cut]])
        again = Cells(tmp_path)
        assert set(again.cells) == {first.key} and not again.damaged
        rewrite(tmp_path, lines)
        again.refresh()
        assert set(again.cells) == {first.key, second.key}
    for header in (b"", lines[0][:9]):
        rewrite(tmp_path, [header])
        assert Cells(tmp_path).cells == {} and not Cells(tmp_path).damaged


@pytest.mark.parametrize("place", [1, 25, 120, -20])
def test_a_damaged_line_is_named_skipped_and_counted(tmp_path: Path, place: int) -> None:
    """One byte turned, in the check sum, the figures or the answers."""
    with Cells(tmp_path) as cells:
        _, second, third = put(cells, 1000, 1001, 1002)
    lines = lines_of(tmp_path)
    turned = bytearray(lines[2])
    turned[place] ^= 1
    rewrite(tmp_path, [*lines[:2], bytes(turned), *lines[3:]])
    again = Cells(tmp_path)
    assert set(again.cells) == {second.key, third.key}
    (damage,) = again.damaged
    assert str(damage) == f"{damage.file} line 3: is damaged" and damage.file.startswith("cells/")
    with again:
        put(again, 1000)
    assert len(Cells(tmp_path).cells) == 3


def line(text: bytes) -> bytes:
    return b'{"crc":"%08x",' % zlib.crc32(text) + text + b"\n"


@pytest.mark.parametrize("text", [b'"key":"abc","prompt_id":""}', b'"key":,"prompt_id":""}', b'"other":1}', b"}"])
def test_a_line_that_is_no_cell_spoils_no_other(tmp_path: Path, text: bytes) -> None:
    with Cells(tmp_path) as cells:
        put(cells, 1000)
    lines = lines_of(tmp_path)
    rewrite(tmp_path, [*lines, line(text), lines[-1]])
    again = Cells(tmp_path)
    assert again.cells == cells.cells and again.duplicates == 1
    assert [damage.line for damage in again.damaged] == [4] and "fields" in str(again.damaged[0])


def test_a_file_of_another_version_is_refused_and_one_of_another_kind_left_out(tmp_path: Path) -> None:
    with Cells(tmp_path) as cells:
        put(cells, 1000)
    lines = lines_of(tmp_path)
    rewrite(tmp_path, [json.dumps({"format": FORMAT, "version": 2}).encode() + b"\n", *lines[1:]])
    with pytest.raises(ArgumentError, match="version 2 of the format") as caught:
        Cells(tmp_path)
    assert "\n" not in str(caught.value)
    rewrite(tmp_path, [b'{"format":"other"}\n', *lines[1:]])
    again = Cells(tmp_path)
    assert again.cells == {} and [d.line for d in again.damaged] == [1] and "left out" in str(again.damaged[0])


@pytest.mark.parametrize("first", [b"garbage\n", b"[1]\n", b'{"format": "rope\n', b"\x00\xff\n"])
def test_a_damaged_header_costs_no_cell(tmp_path: Path, first: bytes) -> None:
    with Cells(tmp_path) as cells:
        put(cells, 1000, 1001)
    rewrite(tmp_path, [first, *lines_of(tmp_path)[1:]])
    again = Cells(tmp_path)
    assert {key: again.answers(cell) for key, cell in again.cells.items()} == {
        key: answers(cell.prompt) for key, cell in cells.cells.items()
    }
    assert [str(damage)[-18:] for damage in again.damaged] == ["line 1: is damaged"]


def test_a_full_disk_leaves_the_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(file: int, content: bytes) -> int:
        real(file, content[:40])
        raise OSError(28, "No space left on device")

    with Cells(tmp_path) as cells:
        put(cells, 1000)
        before = lines_of(tmp_path)
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ArgumentError, match="No space left"):
            put(cells, 1001)
        monkeypatch.setattr(os, "write", real)
        assert lines_of(tmp_path) == before
        put(cells, 1001)
    assert len(Cells(tmp_path).cells) == 2


def test_what_another_writer_adds_is_seen_and_a_cell_of_both_counts_once(tmp_path: Path) -> None:
    with Cells(tmp_path) as one, Cells(tmp_path) as other:
        put(one, 1000)
        put(other, 1000, 1001)
        one.refresh()
        assert len(one.cells) == 2 and one.duplicates == 1
        assert one.answers(one.cells[cell_key(*OF, 1001)]) == answers(1001)
    assert len(list((tmp_path / CELLS).iterdir())) == 2


def _hold(folder: Path, keys: list[str], ready: Any, go: Any) -> None:
    with Cells(folder) as cells:
        mine = cells.claim(keys)
        ready.put(mine)
        go.get()
        for prompt in range(1000, 1000 + len(mine) // 2):
            put(cells, prompt)
        ready.put([])
        time.sleep(60)


def test_a_claim_keeps_another_process_off_until_it_is_done_or_dead(tmp_path: Path) -> None:
    keys = [cell_key(*OF, prompt) for prompt in range(1000, 1004)]
    spawn = multiprocessing.get_context("fork")
    ready, go = spawn.Queue(), spawn.Queue()
    process = spawn.Process(target=_hold, args=(tmp_path, keys, ready, go), daemon=True)
    process.start()
    assert ready.get(timeout=30) == keys
    with Cells(tmp_path) as cells:
        other = content_hash("another")
        assert cells.claim([*keys, other]) == [other]
        go.put(None)
        ready.get(timeout=30)
        # Two of the four are done: they're read, and the two others are still its own.
        assert cells.claim(keys) == [] and set(cells.cells) == set(keys[:2])
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert cells.claim(keys) == keys[2:]
        cells.release(keys)


def _claims_some(folder: Path, keys: list[str], found: Any) -> None:
    with Cells(folder) as cells:
        found.put(cells.claim(keys))


def test_what_is_measured_or_released_is_free_for_nobody_or_all(tmp_path: Path) -> None:
    keys = [cell_key(*OF, prompt) for prompt in (1000, 1001)]
    spawn = multiprocessing.get_context("fork")
    found = spawn.Queue()
    with Cells(tmp_path) as cells:
        assert cells.claim(keys) == keys
        put(cells, 1000)
        cells.release(keys[1:])
        process = spawn.Process(target=_claims_some, args=(tmp_path, keys, found), daemon=True)
        process.start()
        assert found.get(timeout=30) == keys[1:]
        process.join()


def made_up(folder: Path, number: int) -> None:
    """A folder of cells: 100 plans under 10 conditions, ten answers each, in the files of four writers."""
    rng = random.Random(0)
    (folder / CELLS).mkdir(parents=True)
    header = json.dumps({"format": FORMAT, "version": 1}).encode() + b"\n"
    lines: list[list[bytes]] = [[header] for _ in range(4)]
    for cell in range(number):
        of = f"{cell % 2:016x}", f"{cell // 2 % 100:016x}", f"{cell // 200 % 5:016x}"
        prompt = 1000 + cell // 1000
        said = [
            {"depth": d / 9, "key": "Oslo", "expected": "1234567", "nll": rng.random(), "is_exact": rng.random() < 0.5}
            | {"generated": "1234567 and what a model says next"}
            for d in range(10)
        ]
        figures = dict(zip(Cell._fields[:5], (cell_key(*of, prompt), *of, prompt), strict=True))
        right, nll = sum(a["is_exact"] for a in said), sum(a["nll"] for a in said) / 10
        rest = {
            "n": 10,
            "right": right,
            "nll": nll,
            "seconds": 1.2,
            "prompt_id": f"needle/{prompt}",
            "setting": "noisy",
        }
        text = json.dumps(figures | rest | {"answers": said}, separators=(",", ":"))[1:]
        lines[cell % 4].append(line(text.encode()))
    for writer, content in enumerate(lines):
        (folder / CELLS / f"host-{writer}.jsonl").write_bytes(b"".join(content))


def test_a_large_folder_is_summarised(tmp_path: Path) -> None:
    made_up(tmp_path, 4000)
    found = summarise(Cells(tmp_path))
    assert len(found) == 10 and sum(row.prompts for comparison in found for row in comparison.rows) == 4000


@pytest.mark.slow
def test_a_hundred_thousand_cells_are_opened_and_summarised_in_three_seconds(tmp_path: Path) -> None:
    made_up(tmp_path, 100_000)
    began = time.process_time()
    found = summarise(Cells(tmp_path))
    seconds = time.process_time() - began
    print(f"{seconds:.2f} s of processor time")  # pytest -rP shows it, for results/evaluation-speed.md
    assert seconds < 3.0
    assert sum(row.prompts for comparison in found for row in comparison.rows) == 100_000


def test_a_disk_without_locks_gives_every_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", without)
    with Cells(tmp_path) as cells:
        assert cells.claim(["ab"]) == ["ab"]
        cells.put("ab", ("m", "p", "t"), 1000, [], 1.0, nll=1.0)
    assert set(Cells(tmp_path).cells) == {"ab"}
