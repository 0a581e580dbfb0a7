"""Claims on work, so that processes that share a folder don't do the same twice."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from ropewalk.io import one_line_errors

if sys.platform != "win32":
    import fcntl


class Claims:
    """Locks on single bytes of one file, a byte a hash: the system lets go of them when a process dies.

    They keep processes apart, not two objects in one process. On Windows, and on disks without locks, everybody gets
    every claim.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file = -1

    def take(self, key: str) -> bool:
        """Claim what a hash (hex) names; False when another process has it."""
        if sys.platform == "win32":
            return True
        if self._file < 0:
            with one_line_errors(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a disk without locks
            return True
        return True

    def release(self, key: str) -> None:
        """Let go of a claim; of one that isn't held too."""
        if self._file >= 0 and sys.platform != "win32":
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _offset(key))

    def close(self) -> None:
        """Let go of all claims."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _offset(key: str) -> int:
    """The byte that stands for a hash: 60 bits of it."""
    return int(key[:15], 16)
