"""`ropewalk sweep` on a tiny model: measured, resumed, searched, in two processes, and with bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.evaluation.sweeps import CONFIG, DOPE, filled, needles_folder

from ropewalk.cli.app import OK, USER_ERROR, main
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.cells import CELLS, FORMAT, Cells
from ropewalk.evaluation.comparison import summarise
from ropewalk.evaluation.prefix_sharing import SharedReading
from ropewalk.hub.loading import load_model
from ropewalk.hub.plan import Plan
from ropewalk.patching import install
from ropewalk.scaling import NTK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return needles_folder(tmp_path_factory.mktemp("sweep"))


def config(folder: Path, place: Path, **changed: Any) -> str:
    place.mkdir(exist_ok=True)
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(filled(CONFIG | {"original_length": 128} | changed, folder)), encoding="utf-8")
    return str(file)


def test_a_sweep_ends_in_tables_and_a_page_and_is_never_measured_twice(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    file = config(folder, tmp_path, plans=["plain", {"rule": "ntk", "factor": [2.0, 3.0]}, DOPE])
    assert main(["sweep", file, "--out", out]) == OK
    printed = capsys.readouterr().out
    assert "against plain" in printed and "needle, 220 tokens, 2 prompts" in printed and "5 plans under" in printed
    assert "ntk x2 + DoPE all/nope, 2 heads (truncated_entropy-4 key)" in printed and "right  NLL" in printed
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    (comparison,) = found["comparisons"]
    # The rule was picked on one prompt, which isn't among those compared on.
    assert comparison["baselines"][1] == found["picks"][0]["rule"] == found["picks"][0]["tried"][0]["plan"]
    cells = Cells(out)
    assert sorted({cell.prompt for cell in cells.cells.values()}) == [0, 1000, 1001]
    assert len(cells.cells) == 2 * 5 + 2 and f"ropewalk sweep {file}" in (tmp_path / "out" / "summary.md").read_text()
    # A folder can be summarised without its config too.
    (alone,) = summarise(cells)
    assert [row.plan for row in alone.rows] and {row.plan for row in alone.rows} == {
        p["plan"] for p in comparison["plans"]
    }
    assert alone.rows[0].nll.mean == pytest.approx(comparison["plans"][0]["nll"]["mean"])
    read: list[Any] = []
    monkeypatch.setattr(SharedReading, "read", lambda *args: read.append(args))
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert main(["sweep", file, "--out", out]) == OK
    assert not read and (tmp_path / "out" / "report.html").read_bytes() == page
    assert len(list((tmp_path / "out" / CELLS).iterdir())) == 1


def test_a_rule_that_a_saved_plan_has_already_is_still_what_plans_are_compared_with(
    folder: Path, tmp_path: Path
) -> None:
    model, _ = load_model(str(folder))
    Plan.of(model, dataclasses.replace(RoPE.from_model(model), rule=NTK(2.0)), 512).save_pretrained(tmp_path / "plan")
    ours = {"plan": str(tmp_path / "plan"), "name": "ours"}
    file = config(folder, tmp_path, plans=["plain", ours, {"rule": "ntk", "factor": 2.0}], prompts=1)
    assert main(["sweep", file, "--out", str(tmp_path / "out")]) == OK
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["picks"][0]["rule"] == "ours" and found["comparisons"][0]["baselines"] == ["plain", "ours"]


def test_a_trained_models_folder_is_taken_and_what_it_cant_have_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, encoding in (("rope", RoPE(16)), ("pope", PoPE(16, 2))):
        model, tokenizer = load_model(str(folder))
        install(model, encoding)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    out = str(tmp_path / "out")
    both = [str(tmp_path / name) for name in ("rope", "pope")]
    assert main(["sweep", config(folder, tmp_path, models=both, plans=["plain"], prompts=1), "--out", out]) == OK
    assert len(Cells(out).cells) == 2
    capsys.readouterr()
    file = config(folder, tmp_path, models=both[1], plans=["plain", "yarn"])
    assert main(["sweep", file, "--out", out]) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert "plans='yarn'" in error and both[1] in error and "pope" in error and "\n" not in error
    assert len(Cells(out).cells) == 2


def test_remaps_are_plans_and_may_be_the_best_rule(folder: Path, tmp_path: Path) -> None:
    plans = ["plain", "yarn", "self_extend", "dual_chunk", "rerope"]
    file = config(folder, tmp_path, plans=plans, prompts=1)
    assert main(["sweep", file, "--out", str(tmp_path / "out")]) == OK
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {row["plan"] for row in found["comparisons"][0]["plans"]} == set(plans)
    assert {row["plan"] for row in found["picks"][0]["tried"]} == set(plans[1:])


def test_a_damaged_line_is_named_and_measured_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = config(folder, tmp_path, plans=["plain"], prompts=1), tmp_path / "out"
    assert main(["sweep", file, "--out", str(out)]) == OK
    (lines,) = (out / CELLS).iterdir()
    content = lines.read_bytes()
    lines.write_bytes(content[:-30] + b"#" + content[-29:])
    capsys.readouterr()
    assert main(["sweep", file, "--out", str(out)]) == OK
    printed = capsys.readouterr().out
    assert f"skipped: cells/{lines.name} line 5: is damaged" in printed and "1 damaged line in all" in printed
    assert len(Cells(out).cells) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_measure_each_cell_once(folder: Path, tmp_path: Path) -> None:
    threads = os.environ.get("OMP_NUM_THREADS")
    out = tmp_path / "out"
    file = config(folder, tmp_path, plans=["plain", DOPE], prompts=8)
    assert main(["sweep", file, "--out", str(out), "--workers", "2"]) == OK
    cells = Cells(out)
    assert len(cells.cells) == 24 and cells.duplicates == 0
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_all_that_is_read_is_named_with_its_hash(folder: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"question": f"What is {i} and {i}?", "answer": str(2 * i)}) for i in range(60)]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    (tmp_path / "other.txt").write_text((folder / "text.txt").read_text() + "The end.")
    many_shot = {"task": "many_shot", "questions": str(tmp_path / "sums.jsonl"), "protocol": "multi", "depths": [0, 1]}
    changed = {"tasks": [*CONFIG["tasks"], many_shot], "calibration": str(tmp_path / "other.txt"), "prompts": 1}
    file = config(folder, tmp_path, plans=["plain", DOPE], **changed)
    assert main(["sweep", file, "--out", str(tmp_path / "out")]) == OK
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())["facts"]
    for path in (folder / "text.txt", tmp_path / "other.txt"):
        wanted = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        assert wanted in [value for name, value in facts.items() if name == f"SHA-256 of {path}"]
    assert len(facts[f"SHA-256 of {tmp_path / 'sums.jsonl'}"]) == 16


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the process under /proc")
def test_a_further_process_ends_with_the_first_even_if_that_is_killed(tmp_path: Path) -> None:
    script = """
import multiprocessing, os, sys, threading, time
from ropewalk.cli import sweep

def work(parent, file):
    sweep._LOOK = 0.05
    threading.Thread(target=sweep._end_with, args=(parent,), daemon=True).start()
    open(file, "w").write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(), sys.argv[1]))
    child.start()
    time.sleep(600)
"""
    file = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", script, str(file)]) as first:
        pid = int(waited(lambda: file.exists() and file.read_text()))
        os.kill(pid, 0)
        first.kill()
    waited(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def waited(done: Callable[[], Any]) -> Any:
    """What `done` gives once it gives something, within 30 s."""
    end = time.monotonic() + 30
    while not (found := done()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        ({"plan": ["plain"]}, [], "plans"),
        ({"plans": [{"rule": "yarm"}]}, [], "yarn"),
        ({"models": ["{folder}/nowhere"]}, [], "nowhere"),
        ({"tasks": [{"task": "needle", "text": "nowhere.txt"}]}, [], "nowhere.txt"),
        ({"lengths": [90_000]}, [], "tokens"),
        ({"plans": [{"plan": "nowhere"}]}, [], "nowhere"),
        ({"calibration": "nowhere.txt", "plans": [DOPE]}, [], "nowhere.txt"),
        ({}, ["--engine", "slurm"], "engine="),
        ({}, ["--address", "auto"], "address="),
        ({}, ["--workers", "-1"], "workers="),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_measured(
    folder: Path, tmp_path: Path, changed: dict[str, Any], options: list[str], said: str, capsys: Any
) -> None:
    file = config(folder, tmp_path, **changed)
    assert main(["sweep", file, "--out", str(tmp_path / "out"), *options]) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "out" / CELLS).exists() and not (tmp_path / "out" / "report.html").exists()


def test_an_address_where_no_ray_answers_is_one_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("ray")
    options = ["--out", str(tmp_path / "out"), "--engine", "ray", "--address", "127.0.0.1:9"]
    assert main(["sweep", config(folder, tmp_path), *options]) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert "no Ray cluster answers there" in error and "\n" not in error and not (tmp_path / "out").exists()


def test_a_folder_of_another_version_is_refused_and_left_as_it_is(folder: Path, tmp_path: Path, capsys: Any) -> None:
    place = tmp_path / "out" / CELLS
    place.mkdir(parents=True)
    header = json.dumps({"format": FORMAT, "version": 7}) + "\n"
    (place / "old.jsonl").write_text(header)
    assert main(["sweep", config(folder, tmp_path), "--out", str(tmp_path / "out")]) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert "version 7 of the format" in error and "\n" not in error
    assert [f.name for f in (tmp_path / "out").rglob("*")] == [CELLS, "old.jsonl"]
    assert (place / "old.jsonl").read_text() == header
