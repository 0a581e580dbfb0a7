"""`ropewalk recalibrate` on a tiny model: a table, a page and a picture, going on, Ctrl-C, bad input in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.training.tiny import quick_collections, text_file, text_model

from ropewalk.cli.app import INTERRUPTED, OK, USER_ERROR, main
from ropewalk.training import recalibrate as module


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_collections():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("recalibrate")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ROPEWALK_CACHE", str(folder / "cache"))
        text_model(folder / "model", text_file(folder))
        yield folder


def run(place: Path, out: Path, *words: str, **options: str) -> int:
    given = {"encoding": "pope", "steps": "4", "length": "16", "text": str(place / "text.txt"), "batch": "2"} | options
    named = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    return main(["recalibrate", str(place / "model"), "--cpu", "--held-out=64", f"--out={out}", *named, *words])


def test_a_model_is_swapped_trained_on_and_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    assert run(place, out, warmup="2", learning_rate="0.01") == OK
    captured = capsys.readouterr()
    assert captured.err == "" and "right after the swap" in captured.out and "summary.md" in captured.out
    names = {"run.json", "start.json", "curve.jsonl", "result.json", "model", "summary.md", "curves.png", "report.html"}
    assert {p.name for p in out.iterdir()} - {"tensorboard"} == names
    result = json.loads((out / "result.json").read_text())
    assert result["run"]["course"]["warmup"] == 2 and result["run"]["course"]["learning_rate"] == 0.01
    assert "--warmup 2.0" in (out / "summary.md").read_text() and result["steps"] == 4
    written = (out / "result.json").stat().st_mtime_ns
    assert run(place, out, warmup="2", learning_rate="0.01") == OK
    assert (out / "result.json").stat().st_mtime_ns == written


def test_ctrl_c_keeps_what_is_done(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "recovered", stopped)  # after the last step
        assert run(place, tmp_path / "o") == INTERRUPTED
    assert capsys.readouterr().err == "stopped; finished work is kept\n"
    assert list((tmp_path / "o").glob("checkpoint-*")) and not (tmp_path / "o" / "result.json").exists()
    assert run(place, tmp_path / "o") == OK
    assert "going on after step 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoding": "poep"}, "did you mean pope"),
        ({"encoding": "yarn"}, "yarn would change nothing"),
        ({"factor": "2"}, "factor=2.0: is for length rules"),
        ({"steps": "0"}, "steps=0"),
        ({"length": "1"}, "length=1"),
        ({"length": "2000"}, "too short for 2000 tokens"),
        ({"batch": "-1"}, "batch=-1"),
        ({"warmup": "1.5"}, "warmup=1.5"),
        ({"learning_rate": "-1"}, "learning_rate=-1.0"),
        ({"text": "no-such-file.txt"}, "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(
    place: Path, tmp_path: Path, options: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, tmp_path / "o", **options) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "o").exists()


def test_a_model_that_isnt_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--encoding=pope", "--steps=1", "--length=8", f"--out={tmp_path / 'o'}", "--cpu"]
    assert main(["recalibrate", str(tmp_path / "nothing"), *words]) == USER_ERROR
    assert "no such folder" in capsys.readouterr().err and not (tmp_path / "o").exists()
