"""Records on disk that survive a killed process: one JSON line each, appended and synced, resumable."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ropewalk.errors import ArgumentError, DamagedFileError
from ropewalk.io import lock, one_line_errors

FORMAT = "ropewalk.records"
VERSION = 1
# Damaged lines that are named one by one.
_NAMED = 10


class Store:
    """An append-only file of records, open for writing by one process at a time.

    The first line tells the format and the run's `settings`; each later line is a record, a dict with a
    string under "key" that no other record has. Opening a file that is there goes on where it stopped: a last
    line that was cut off is dropped. A damaged line, or one whose key was there before, is skipped: `damaged` has the
    numbers of those lines, from 1 on, and `damage` tells of them. They stay in the file; what they held can be
    appended again. Raises ArgumentError when the settings differ from the file's, another process has it open, or the
    place can't be written; DamagedFileError when the file isn't such a file, or its first line is damaged.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]):
        self.path = Path(path)
        self.settings = _through_json(settings, "settings")
        self._records: dict[str, dict[str, Any]] = {}
        self.damaged: tuple[int, ...] = ()
        with one_line_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            lock(self._file, self.path)
            self._resume()
        except BaseException:
            self.close()
            raise

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and wait until it is on the disk; after an error the file is as it was before."""
        record = _through_json(record, "record")
        key = record.get("key")
        if not isinstance(key, str):
            raise ArgumentError("key", key, "a record needs a string under 'key'")
        if key in self._records:
            raise ArgumentError("key", key, f"is in {self.path} already; ask has(key) first")
        self._write_line(record)
        self._records[key] = record

    def has(self, key: str) -> bool:
        """Whether a record with this key is in the file."""
        return key in self._records

    def records(self) -> list[dict[str, Any]]:
        """All records, in the order in which they were appended."""
        return list(self._records.values())

    @property
    def damage(self) -> str:
        """One line that names the file and its damaged lines; empty where there are none."""
        return _told(self.path, self.damaged)

    def close(self) -> None:
        """Close the file and let go of the lock; closing twice does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _resume(self) -> None:
        with one_line_errors(self.path):
            content = _read_all(self._file)
        header, self._records, self.damaged, whole = _parse(content, self.path)
        if whole < len(content):
            with one_line_errors(self.path):
                os.ftruncate(self._file, whole)
        if header is None:
            self._write_line({"format": FORMAT, "version": VERSION, "settings": self.settings})
            return
        differing = _differing(header["settings"], self.settings)
        if differing:
            remedy = f"was made with other {', '.join(differing)}; choose another --out or the same settings"
            raise ArgumentError("out", str(self.path), remedy)

    def _write_line(self, content: dict[str, Any]) -> None:
        if self._file < 0:
            raise ArgumentError("out", str(self.path), "is closed; open the store again")
        line = _dump(content).encode() + b"\n"
        with one_line_errors(self.path):
            before = os.lseek(self._file, 0, os.SEEK_END)
            try:
                while line:
                    line = line[os.write(self._file, line) :]
                os.fsync(self._file)
            except BaseException:
                # Half a line would join with the next one; without it the file is whole.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, before)
                raise


def read_records(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(settings, records) of a store's file, read only, also while another process is appending to it.

    Damaged lines are skipped, with a warning that names them. Raises ArgumentError when the file can't be read,
    DamagedFileError when it isn't a store's or its first line is damaged.
    """
    path = Path(path)
    with one_line_errors(path, "read"):
        content = path.read_bytes()
    header, records, damaged, _ = _parse(content, path)
    if header is None:
        raise DamagedFileError(f"{path}: holds no records yet; let the run that makes it go on")
    if damaged:
        warnings.warn(_told(path, damaged), stacklevel=2)
    return header["settings"], list(records.values())


def _read_all(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(file, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, allow_nan=False)


def _through_json(value: dict[str, Any], name: str) -> dict[str, Any]:
    """The value as it will be read back (tuples as lists); refuses what JSON can't hold, NaN included."""
    try:
        plain: dict[str, Any] = json.loads(_dump(value))
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, value, f"isn't plain JSON ({error}); give numbers, text and lists") from error
    return plain


def _parse(content: bytes, path: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]], tuple[int, ...], int]:
    """(header or None, records by key, damaged lines, length in bytes of the whole lines) of a file's content."""
    whole = content.rfind(b"\n") + 1
    if whole == 0:
        start = f'{{"format": "{FORMAT}"'.encode()
        if not start.startswith(content[: len(start)]):
            raise DamagedFileError(f"{path}: isn't a file of records; choose another file")
        return None, {}, (), 0
    first, *lines = content[: whole - 1].split(b"\n")
    header = _line(first)
    if header is None or header.get("format") != FORMAT or not isinstance(header.get("settings"), dict):
        raise DamagedFileError(f"{path}: isn't a file of records; choose another file")
    if header.get("version") != VERSION:
        raise DamagedFileError(
            f"{path}: has version {header.get('version')!r}, but this ropewalk reads version {VERSION}"
        )
    records: dict[str, dict[str, Any]] = {}
    damaged: list[int] = []
    for number, line in enumerate(lines, start=2):
        record = _line(line)
        if record is None or not isinstance(record.get("key"), str) or record["key"] in records:
            damaged.append(number)
        else:
            records[record["key"]] = record
    return header, records, tuple(damaged), whole


def _told(path: Path, damaged: Sequence[int]) -> str:
    if not damaged:
        return ""
    named = ", ".join(map(str, damaged[:_NAMED])) + (", ..." if len(damaged) > _NAMED else "")
    lines = f"line {named} is" if len(damaged) == 1 else f"{len(damaged)} lines are"
    which = "" if len(damaged) == 1 else f" ({named})"
    return f"{path}: {lines} damaged and skipped{which}; what they held is measured again if it is wanted"


def _line(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # neither JSON nor UTF-8
        return None
    return value if isinstance(value, dict) else None


def _differing(there: dict[str, Any], here: dict[str, Any], within: str = "") -> list[str]:
    """The names of the settings that differ, those inside another written as outer.inner."""
    names: list[str] = []
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _differing(old, new, f"{within}{name}.")
        elif old != new or (name in there) != (name in here):
            names.append(within + name)
    return names
