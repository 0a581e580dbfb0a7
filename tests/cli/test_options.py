from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from ropewalk.cli.options import duration, plain_console, prepared_folder
from ropewalk.cli.progress import Watch
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep import Done

NAME = "ntk x2.69 + DoPE all/nope, 5 heads (truncated_entropy-1 key)"
DONE = Done("rules", NAME, "p", 1.25, (Answer("p", "original", 0.5, "k", "1", 0.5, True, "[/INST]"),))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("30m", 1800.0), ("1.5h", 5400.0), ("45", 45.0), (" 2m ", 120.0), ("0.5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "0", "-5m", "5d", "1h30m", "m", "1.m", "inf", "nan", "30 m"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="30m"):
        duration(text)


def test_a_folder_is_made_and_nothing_left_in_it(tmp_path: Path) -> None:
    made = prepared_folder(tmp_path / "a" / "b")
    assert made.is_dir() and not list(made.iterdir())
    assert prepared_folder(made) == made


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_a_place_that_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(ArgumentError, match="out="):
        prepared_folder(tmp_path / name)


def test_a_pipe_gets_whole_lines_with_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    plain_console().print("[/INST] " + "word " * 60)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and printed.startswith("[/INST] word")


def run(console: Console, budget: float, spent: float) -> None:
    watch = Watch(console, budget, spent)
    with watch.shown() as shown:
        assert shown is watch
        watch.start("rules", NAME, "p")
        time.sleep(0.3)
        watch.done(DONE)


def test_into_a_file_progress_is_one_plain_line_a_measurement() -> None:
    file = io.StringIO()
    run(Console(file=file, width=80), 100.0, 40.0)
    lines = [line for line in file.getvalue().splitlines() if line]
    assert len(lines) == 1 and NAME in lines[0]
    assert "1 of 1 right" in lines[0] and "0.500" in lines[0]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", file.getvalue())


@pytest.mark.parametrize(
    ("budget", "spent", "shown"),
    [(100.0, 40.0, r"00:5\d left"), (9000.0, 1000.0, r"2:13:1\d left"), (100.0, 140.0, "finishing")],
)
def test_a_terminal_shows_the_time_left_and_what_is_measured(budget: float, spent: float, shown: str) -> None:
    file = io.StringIO()
    run(Console(file=file, force_terminal=True, width=160, legacy_windows=False), budget, spent)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert re.search(shown, text)
    assert f"rules: {NAME}" in text and "1 of 1 right" in text


def test_a_link_that_stands_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    out, target = tmp_path / "out", tmp_path / "mine"
    out.mkdir()
    target.write_text("kept")
    (out / f".write-{os.getpid()}").symlink_to(target)  # the name that was used once, for anybody to guess
    prepared_folder(out)
    assert target.read_text() == "kept"
