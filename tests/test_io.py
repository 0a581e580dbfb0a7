"""One writer at a time, where the file system can tell."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ropewalk import io as files
from ropewalk.errors import ArgumentError

fcntl = pytest.importorskip("fcntl")


def test_the_second_of_two_writers_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT) for _ in range(2))
    files.lock(first, tmp_path)
    with pytest.raises(ArgumentError, match="another process is writing to it"):
        files.lock(second, tmp_path)
    os.close(first)
    files.lock(second, tmp_path)
    os.close(second)


@pytest.mark.parametrize(("number", "is_fine"), [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_written_to_all_the_same(
    number: int, is_fine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if is_fine:
        files.lock(0, tmp_path)
    else:
        with pytest.raises(OSError, match="no"):
            files.lock(0, tmp_path)
