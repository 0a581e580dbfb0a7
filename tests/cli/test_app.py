from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from ropewalk.cli import app as cli
from ropewalk.errors import ArgumentError, DamagedFileError

HEAVY = ("torch", "transformers", "datasets", "matplotlib")


def _stop_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the only command, `fail`, raise this error."""

    def fail() -> None:
        """Fail."""
        raise error

    monkeypatch.setattr(cli, "COMMANDS", {"fail": (f"{__name__}:fail", "Fail")})
    module = type(sys)(__name__)
    module.fail = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, __name__, module)


def _fresh_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ArgumentError("length", 5, "must exceed 128"), "error: length=5: must exceed 128"),
        (DamagedFileError("plan.json: cut off\nat line 3"), "error: plan.json: cut off at line 3"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/results.jsonl"),
            "error: out/results.jsonl: no room left on the disk; free some or choose another folder",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/out"),
            "error: /out: permission denied; choose a folder or file that you may use",
        ),
        (
            FileNotFoundError(errno.ENOENT, "x", "a.txt"),
            "error: a.txt: no such file or folder; check the path",
        ),
        (OSError("can't reach the hub\nor the cache"), "error: can't reach the hub or the cache"),
    ],
)
def test_a_users_error_is_one_line_and_exit_2(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _stop_with(error, monkeypatch)
    assert cli.main(["fail"]) == 2
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_a_fault_of_ours_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _stop_with(RuntimeError("shapes\ndiffer"), monkeypatch)
    assert cli.main(["fail"]) == 1
    assert capsys.readouterr().err == (
        "error: unexpected RuntimeError: shapes differ; `ropewalk --debug ...` shows where\n"
    )


def test_ctrl_c_is_one_line_and_exit_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _stop_with(KeyboardInterrupt(), monkeypatch)
    assert cli.main(["fail"]) == 130
    assert capsys.readouterr().err == "stopped; finished work is kept\n"


@pytest.mark.parametrize(("error", "code"), [(ArgumentError("length", 5, "too short"), 2), (RuntimeError("bug"), 1)])
def test_debug_adds_the_traceback(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _stop_with(error, monkeypatch)
    assert cli.main(["--debug", "fail"]) == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "in fail" in err
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["lsit"], "command='lsit': did you mean list?"),
        (["list", "--no-such-option"], "--no-such-option"),
        (["list", "surplus"], "surplus"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and part in line


def test_no_command_shows_the_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert "Usage: ropewalk" in captured.err and captured.out == ""


def test_the_help_names_every_command_and_says_what_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, purpose) in cli.COMMANDS.items():
        assert f"  {name:<12} {purpose}" in lines  # whole: what doesn't fit would be cut


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in cli.PASSED_ON])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: ropewalk {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"ropewalk": "1.2.3"}.__getitem__)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "ropewalk 1.2.3\n"


def test_the_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ropewalk.cli.app import main; main(['--help']);"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = _fresh_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_reader_that_goes_away_leaves_no_traceback(tmp_path: Path) -> None:
    code = "import sys; from ropewalk.cli.app import main; sys.exit(main(['list', '--json']))"
    command = f'{sys.executable} -c "{code}" | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "ropewalk", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == cli.OK
    assert "ropewalk" in done.stdout
