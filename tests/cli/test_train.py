"""`ropewalk train` on tiny sizes: a table and a picture, going on, Ctrl-C, and bad input in one line."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tests.training.tiny import Echo, quick_collections, recipe

from ropewalk.cli import train
from ropewalk.cli.app import INTERRUPTED, OK, USER_ERROR, main
from ropewalk.cli.steps import Steps
from ropewalk.training import compare
from ropewalk.training.compare import Comparison
from ropewalk.training.runner import Result

QUICK = {
    "model.hidden": 16,
    "model.heads": 2,
    "model.layers": 1,
    "batch": 4,
    "log_every": 2,
    "evaluate_every": 4,
    "task.train": 200,
    "task.validation": 20,
    "task.test": 20,
}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_collections():
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run(out: Path, *words: str, **options: str) -> int:
    given = {"task": "induction", "seeds": "1", "steps": "4"} | options
    settings = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    return main(["train", "--cpu", f"--out={out}", *(f"--{k}={v}" for k, v in given.items()), *settings, *words])


def test_encodings_are_trained_compared_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "o", encoding="rope,alibi") == OK
    captured = capsys.readouterr()
    assert "induction, small recipe, 4 steps of 4" in captured.out and "summary.md" in captured.out
    assert captured.out.count("rope, seed 0") == 1 and captured.err == ""
    made = {"summary.md", "summary.json", "curves.jsonl", "curves.png", "report.html"}
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"rope", "alibi"} | made
    found = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert [r["encoding"] for r in found["results"]] == ["rope", "alibi"]
    assert "--encoding rope,alibi" in found["command"] and "--set batch=4" in found["command"]
    assert found["task"]["train"] == 200 and found["recipe"]["steps"] == 4
    before = (tmp_path / "o" / "rope" / "seed-0" / "result.json").stat().st_mtime_ns
    assert run(tmp_path / "o", encoding="rope,nope") == OK
    assert (tmp_path / "o" / "rope" / "seed-0" / "result.json").stat().st_mtime_ns == before


def test_ctrl_c_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = compare.train

    def stopping(*arguments: object) -> object:
        if arguments[2] == "alibi":
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "train", stopping)
    assert run(tmp_path / "o", encoding="rope,alibi") == INTERRUPTED
    assert capsys.readouterr().err == "stopped; finished work is kept\n"
    assert (tmp_path / "o" / "rope" / "seed-0" / "result.json").exists()
    assert "| rope |" in (tmp_path / "o" / "summary.md").read_text()


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        ((), {"task": "inductoin"}, "did you mean induction"),
        ((), {"encoding": "rope,poep"}, "did you mean pope"),
        ((), {"size": "huge"}, "size='huge'"),
        ((), {"seeds": "0"}, "seeds=0"),
        ((), {"steps": "-1"}, "steps=-1"),
        ((), {"data": "a.txt"}, "makes its own examples"),
        ((), {"tokenizer": "gpt2"}, "tokens of its own"),
        (("--set", "model.depth=3"), {}, "model.depth"),
        (("--set", "task.length=many"), {}, "length='many'"),
        (("--set", "model.positions=8"), {"encoding": "learned"}, "model.positions=8"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(
    tmp_path: Path, words: tuple[str, ...], options: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "o", *words, **options) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "o").exists()


def test_data_that_is_missing_or_damaged_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.json").write_text("{")
    words = ["train", "--cpu", "--task=chorales", f"--out={tmp_path / 'o'}"]
    for more, said in (([], "--data"), ([f"--data={tmp_path / 'damaged.json'}"], "damaged.json")):
        assert main([*words, *more]) == USER_ERROR
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error
    assert not (tmp_path / "o").exists()


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """A folder of three MIDI files and two that can't be used."""
    symusic = pytest.importorskip("symusic")
    pytest.importorskip("miditok")
    folder = tmp_path / "music"
    folder.mkdir()
    for piece in range(3):
        score, track = symusic.Score(480), symusic.Track(program=0, is_drum=False, name="t")
        for i in range(12):
            track.notes.append(symusic.Note(240 * i, 240, 50 + (i * (piece + 2)) % 20, 90))
        score.tracks.append(track)
        score.dump_midi(folder / f"{piece}.mid")
    (folder / "empty.mid").write_bytes(b"")
    (folder / "noise.mid").write_bytes(b"nonsense")
    return folder


def learn_music(folder: Path, out: Path, *words: str) -> int:
    sizes = {k: v for k, v in QUICK.items() if not k.startswith("task.")} | {"task.length": 32}
    settings = [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
    given = [f"--data={folder}", f"--out={out}", "--encoding=rope", "--seeds=1", "--steps=4"]
    return main(["train", "--cpu", "--task=midi", *given, *settings, *words])


def test_midi_files_that_are_left_out_are_told_in_a_line_and_kept_in_the_record(
    tmp_path: Path, music: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    assert learn_music(music, out) == OK
    captured = capsys.readouterr()
    (said,) = [line for line in captured.out.splitlines() if line.startswith("skipped: ")]
    assert said.startswith("skipped: empty.mid (can't be parsed") and f" and 1 more; {out}/summary.json" in said
    assert captured.out.index("skipped: ") < captured.out.index("rope, seed 0") and captured.err == ""
    left_out = json.loads((out / "summary.json").read_text())["left_out"]
    assert [problem.partition(" ")[0] for problem in left_out] == ["empty.mid", "noise.mid"]
    assert all(html.escape(problem) in (out / "report.html").read_text() for problem in left_out)
    assert "2 files left out" in (out / "summary.md").read_text()


def test_a_folder_with_another_midi_file_is_other_data(
    tmp_path: Path, music: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn_music(music, tmp_path / "o") == OK
    (music / "1.mid").rename(music / "more.mid")
    assert learn_music(music, tmp_path / "o") == USER_ERROR
    assert "data_sha256: " in capsys.readouterr().err


def test_a_place_that_cant_be_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(tmp_path / "file" / "o", encoding="rope") == USER_ERROR
    assert "can't write there" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_the_table_of_three_seeds_fits_a_narrow_terminal(tmp_path: Path) -> None:
    values = {"rope": (0.56, 0.42, 0.425), "pope-uniform": (0.99, 0.89, 0.93)}
    results = tuple(
        Result(name, seed, "accuracy", value, {"sequences": 1000}, 10, 1_234_567, 0, 120.0, 0.012)
        for name, found in values.items()
        for seed, value in enumerate(found)
    )
    console = Console(width=80, force_terminal=True, color_system=None, record=True, file=io.StringIO(), markup=False)
    train._print(console, Comparison(recipe(), Echo(), tuple(values), 3, tmp_path, results))
    lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [
        ["rope", "56.0%", "42.0%", "42.5%", "46.8%"],
        ["", "[52.9, 59.0]", "[39.0, 45.1]", "[39.5, 45.6]", "[27.1, 66.6]"],
        ["pope-uniform", "99.0%", "89.0%", "93.0%", "93.7%"],
        ["", "[98.2, 99.5]", "[86.9, 90.8]", "[91.2, 94.4]", "[81.2, 100.0]"],
    ]
    assert any("Student's" in line for line in lines)


def test_progress_tells_steps_loss_metric_and_time() -> None:
    console = Console(width=200, force_terminal=False, record=True)
    steps = Steps(console, runs=4, metric="accuracy")
    steps.began("rope, seed 0", 20, 100)
    steps.moved(40, 0.5, 0.25)
    (task,) = steps._progress.tasks
    assert (task.completed, task.total) == (40, 100)
    assert task.description == "1 of 4: rope, seed 0  loss 0.5000  accuracy 25.0%"
    assert task.fields["left"] == "00:00"
    steps.ended("rope, seed 0", 0.75, 65)
    steps.began("pope, seed 0", 0, 100)
    assert task.description == "2 of 4: pope, seed 0"
    steps.ended("pope, seed 0", None, 3700)
    printed = console.export_text()
    assert "going on after step 20" in printed and "75.0%" in printed and "01:05" in printed
    assert "not a number" in printed and "1:01:40" in printed
