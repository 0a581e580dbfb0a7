"""Measured cells in a folder: append-only JSON lines, one file a writer, safe under a crash and under two writers."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
import socket
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.byte_locks import Claims
from ropewalk.evaluation.statistics import Answer
from ropewalk.io import one_line_errors

FORMAT, VERSION = "ropewalk.cells", 1
CELLS, CLAIMS = "cells", "claims"
# Each line begins with a check sum of what follows it: damage is seen without reading the answers.
_SUM = 18  # characters of `{"crc":"01234567",`
_DEFINE, _ANSWERS = b'"define":', b',"prompt_id":'  # a line's first key; what follows its figures


class Cell(NamedTuple):
    """One plan on one prompt: `n` answers, `right` of them exact (None where nothing is asked), `nll` their mean.

    `model`, `plan` and `task` are references, the first 16 digits of a hash of their content; `key` is the cell's own
    hash. `file` and `start` say where its line is.
    """

    key: str
    model: str
    plan: str
    task: str
    prompt: int
    n: int
    right: int | None
    nll: float
    seconds: float
    file: int
    start: int


_FIGURES = set(Cell._fields[:-2])


@dataclass(frozen=True)
class Damage:
    """A line that can't be used: it is left out and its cell measured again."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} line {self.line}: {self.reason}"


class _File:
    """How far one writer's file has been read."""

    def __init__(self, path: Path):
        self.path, self.read, self.lines, self.has_header = path, 0, 0, False


class Cells:
    """The cells in a folder; what other processes add is seen after `refresh`.

    Every process that writes has a file of its own, `cells/*.jsonl`: a header line with the format's name and version,
    then a line a cell, each synced before the next. A last line without an end is one that a crash cut off, or that is
    being written; it doesn't count. What a cell refers to (model, encoding, task) stands in lines of its own.

    Processes keep apart by `Claims`; where there are none, a cell may be measured twice, and the first one counts.

    Raises:
        ArgumentError: a file of another version of the format, or a place that can't be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.cells: dict[str, Cell] = {}
        self.damaged: list[Damage] = []
        self.duplicates = 0
        self._definitions: dict[tuple[str, str], dict[str, Any]] = {}
        self._written: set[tuple[str, str]] = set()
        self._files: dict[str, _File] = {}
        self._order: list[_File] = []
        self._claims = Claims(self.folder / CLAIMS)
        self._out = -1
        self._mine: Path | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read what has been added to the folder since."""
        place = self.folder / CELLS
        if not place.is_dir():
            return
        with one_line_errors(place, "read"):
            for path in sorted(place.glob("*.jsonl")):
                if path.name not in self._files:
                    self._files[path.name] = _File(path)
                    self._order.append(self._files[path.name])
                if path != self._mine:
                    self._read(self._order.index(self._files[path.name]))

    def answers(self, cell: Cell) -> list[Answer]:
        """The answers of a cell, texts and all; none where nothing was asked."""
        path = self._order[cell.file].path
        with one_line_errors(path, "read"), path.open("rb") as file:
            file.seek(cell.start)
            record = json.loads(file.readline())
        same = {"prompt": record["prompt_id"], "setting": record["setting"]}
        return [Answer.from_dict(answer | same) for answer in record["answers"]]

    def definition(self, kind: str, content_reference: str) -> dict[str, Any]:
        """What a reference ("model", "plan" or "task") stands for: `name` and `content`; empty when no line says so."""
        return self._definitions.get((kind, content_reference), {})

    def claim(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that nobody has measured and nobody else is measuring: they are this process's now."""
        wanted = [key for key in keys if key not in self.cells]
        taken = [key for key in wanted if self._claims.take(key)]
        self.refresh()  # whoever had a claim wrote the cell before letting go of it
        self.release(key for key in taken if key in self.cells)
        return [key for key in taken if key not in self.cells]

    def release(self, keys: Iterable[str]) -> None:
        """Let go of claims."""
        for key in keys:
            self._claims.release(key)

    def define(self, kind: str, content_reference: str, content: Mapping[str, Any], name: str) -> None:
        """Write down, once, what a reference stands for, and what it was called."""
        if (kind, content_reference) not in self._written:
            record = {"define": kind, "reference": content_reference, "name": name, "content": content}
            self._append(record)
            self._written.add((kind, content_reference))
            self._definitions[kind, content_reference] = record

    def put(
        self,
        key: str,
        of: tuple[str, str, str],
        prompt: int,
        answers: Sequence[Answer],
        seconds: float,
        nll: float | None = None,
    ) -> Cell:
        """Write a cell and wait until it is on the disk; after an error the file is as it was before.

        Args:
            key: the cell's hash.
            of: references of its model, plan and task.
            answers: all about one prompt; none for a task that asks nothing, which gives `nll`.
        """
        right = sum(answer.is_exact for answer in answers) if answers else None
        mean = sum(answer.nll for answer in answers) / len(answers) if nll is None else nll
        model, plan, task = of
        n, rounded = max(1, len(answers)), round(seconds, 3)
        cell = Cell(key, model, plan, task, prompt, n, right, mean, rounded, self._own(), 0)
        figures = {name: getattr(cell, name) for name in Cell._fields[:-2]}
        plain = [answer.to_dict() for answer in answers]
        names = {name: plain[0][name] if plain else "" for name in ("prompt", "setting")}
        said = [{name: value for name, value in answer.items() if name not in names} for answer in plain]
        start = self._append(figures | {"prompt_id": names["prompt"], "setting": names["setting"], "answers": said})
        cell = cell._replace(start=start)
        self.cells.setdefault(key, cell)
        self.release([key])
        return cell

    def close(self) -> None:
        """Close the files and let go of all claims; closing twice does nothing."""
        self._claims.close()
        if self._out >= 0:
            os.close(self._out)
            self._out = -1

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, number: int) -> None:
        """Take the lines that a file has got since; one without an end isn't read yet."""
        state = self._order[number]
        with state.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= state.read:
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
                self._take(number, held)

    def _take(self, number: int, held: mmap.mmap) -> None:
        state = self._order[number]
        name = f"{CELLS}/{state.path.name}"
        figures: list[bytes] = []
        places: list[tuple[int, int]] = []
        while (end := held.find(b"\n", state.read)) >= 0:
            start, state.read, state.lines = state.read, end + 1, state.lines + 1
            if state.lines == 1:
                state.has_header = self._check_header(state, held[start:end])
            elif not state.has_header:
                continue
            elif held[start : start + _SUM] != _sum(held[start + _SUM : end]):
                self.damaged.append(Damage(name, state.lines, "is damaged"))
            elif held[start + _SUM : start + _SUM + len(_DEFINE)] == _DEFINE:
                record = json.loads(b"{" + held[start + _SUM : end])
                self._definitions.setdefault((record["define"], record["reference"]), record)
            else:
                # The answers, most of a line, are read when they are asked for.
                figures.append(held[start + _SUM : max(start + _SUM, held.find(_ANSWERS, start, end))])
                places.append((start, state.lines))
        for found, (start, line) in zip(_all_parsed(figures), places, strict=True):
            if found.keys() != _FIGURES:
                self.damaged.append(Damage(name, line, "holds other fields than a cell's"))
            elif found["key"] in self.cells:
                self.duplicates += 1
            else:
                self.cells[found["key"]] = Cell(**found, file=number, start=start)

    def _check_header(self, state: _File, line: bytes) -> bool:
        header, other = _parsed(line), "isn't the header of a file of cells; the whole file is left out"
        if header is None or header.get("format") != FORMAT:
            reason = "is damaged" if header is None else other
            self.damaged.append(Damage(f"{CELLS}/{state.path.name}", 1, reason))
            return header is None  # the lines after a damaged one have sums of their own
        if header.get("version") != VERSION:
            remedy = f"has version {header.get('version')} of the format, this ropewalk reads {VERSION}"
            raise ArgumentError("out", str(state.path), f"{remedy}; use the ropewalk that wrote it, or another folder")
        return True

    def _own(self) -> int:
        """The number of this process's file, which is made at the first call."""
        if self._mine is None:
            self._mine = self.folder / CELLS / f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            with one_line_errors(self._mine):
                self._mine.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                self._out = os.open(self._mine, flags, 0o666)
            self._files[self._mine.name] = _File(self._mine)
            self._order.append(self._files[self._mine.name])
            self._write(_dump({"format": FORMAT, "version": VERSION}) + b"\n")
        return self._order.index(self._files[self._mine.name])

    def _append(self, record: Mapping[str, Any]) -> int:
        """Write a record's line and give the place where it begins."""
        rest = _dump(record)[1:]
        self._own()
        return self._write(_sum(rest) + rest + b"\n")

    def _write(self, line: bytes) -> int:
        assert self._mine is not None
        if self._out < 0:
            raise ArgumentError("out", str(self._mine), "is closed; open the folder again")
        with one_line_errors(self._mine):
            before = os.lseek(self._out, 0, os.SEEK_END)
            try:
                while line:
                    line = line[os.write(self._out, line) :]
                os.fsync(self._out)
            except BaseException:
                # Half a line would join with the next one; without it the file is whole.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._out, before)
                raise
        return before


def _dump(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode()


def _sum(rest: bytes) -> bytes:
    return b'{"crc":"%08x",' % zlib.crc32(rest)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # neither JSON nor UTF-8
        return None
    return value if isinstance(value, dict) else None


def _all_parsed(figures: Sequence[bytes]) -> list[dict[str, Any]]:
    """The figures of many lines, each the inside of a JSON object; an empty dict for what isn't one."""
    try:
        found: list[dict[str, Any]] = json.loads(b"[{" + b"},{".join(figures) + b"}]") if figures else []
    except ValueError:
        found = []
    return found if len(found) == len(figures) else [_parsed(b"{" + one + b"}") or {} for one in figures]


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40] or "host"
