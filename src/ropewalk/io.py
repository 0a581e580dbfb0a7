"""Files written whole or not at all, and the system's errors about them in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors

from ropewalk.errors import ArgumentError, DamagedFileError

if sys.platform != "win32":
    import fcntl


def write_atomically(path: str | Path, text: str, argument: str = "out") -> None:
    """Write a whole text file so that a reader, or a crash, sees the old or the new content, never a part.

    Raises ArgumentError naming the path when the place can't be written.
    """
    write_parts_atomically(path, (text,), argument)


def write_parts_atomically(path: str | Path, parts: Iterable[str], argument: str = "out") -> None:
    """The same for a text that is too long to be in memory, given in parts."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with one_line_errors(path, argument=argument):
            path.parent.mkdir(parents=True, exist_ok=True)
            # A name of a file may hold bytes that are no text.
            with part.open("x", encoding="utf-8", errors="replace", newline="") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def lock(descriptor: int, path: Path) -> None:
    """Be the only process that writes to `path` while this file is open; ArgumentError when another one is.

    Windows has no flock, and some file systems of clusters don't serve it: there, nothing stops two writers.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "another process is writing to it; wait for that one or choose another --out"
            raise ArgumentError("out", str(path), remedy) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise


@contextlib.contextmanager
def one_line_errors(path: Path, doing: str = "write", argument: str = "out") -> Iterator[None]:
    """Turns the system's errors about a path into an ArgumentError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = f"can't {doing} here ({reason}); choose another place or make room"
        raise ArgumentError(argument, str(path), remedy) from error


@contextlib.contextmanager
def one_line_damage(path: str, kind: str, remedy: str) -> Iterator[None]:
    """Turns whatever goes wrong while one of our files is read into a DamagedFileError; no file is an ArgumentError.

    Args:
        path: the file.
        kind: what it should be, such as `a readable inspection`.
        remedy: what writes such a file.
    """
    if not os.path.isfile(path):
        raise ArgumentError("path", path, f"no such file; {remedy}")
    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedFileError(f"{path} isn't {kind} ({reason})") from None
