"""Minimal pairs and last words: files of sentences that a language model should find likely."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError
from ropewalk.io import one_line_errors


@dataclass(frozen=True)
class Pair:
    """A good sentence and a bad one that differ in what is tested.

    `test_set` is the file that they are from, `phenomenon` what several test sets share, if the file says so.
    """

    test_set: str
    good: str
    bad: str
    phenomenon: str = ""


@dataclass(frozen=True)
class Passage:
    """A text whose last word is to be found from all before it."""

    context: str
    word: str


def read_pairs(source: str | Path, limit: int | None = None) -> list[Pair]:
    """Minimal pairs from a JSON lines file, or from all `*.jsonl` of a folder, a file a test set.

    Each line holds `sentence_good` and `sentence_bad`, and perhaps the phenomenon as `linguistics_term`, as BLiMP's
    files do. `limit`: pairs that are taken of each test set at most, the first ones. Raises ArgumentError for a line
    without the sentences, or a source without pairs.
    """
    path = Path(source)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = []
    for file in files:
        of_file: list[Pair] = []
        for number, line in _lines(file, "pairs"):
            if not all(isinstance(line.get(name), str) for name in ("sentence_good", "sentence_bad")):
                remedy = "should hold the texts sentence_good and sentence_bad"
                raise ArgumentError("pairs", f"{file}:{number}", remedy)
            phenomenon = line.get("linguistics_term")
            phenomenon = phenomenon if isinstance(phenomenon, str) else ""
            of_file.append(Pair(file.stem, line["sentence_good"], line["sentence_bad"], phenomenon))
        found += of_file[:limit]
    if not found:
        raise ArgumentError("pairs", str(source), "holds no pairs; give a JSON lines file or a folder of them")
    return found


def read_passages(source: str | Path, limit: int | None = None) -> list[Passage]:
    """Passages whose last words are asked for, from JSON lines (`.jsonl`, `.json`) with `text`, or a line each of text.

    LAMBADA's files come as both. `limit`: passages that are taken at most, the first ones. Raises ArgumentError for a
    passage of fewer than two words, or a source without passages.
    """
    path = Path(source)
    is_json = path.suffix.lower() in (".jsonl", ".json")
    texts = ((n, line.get("text")) for n, line in _lines(path, "words")) if is_json else _text_lines(path, "words")
    found = []
    for number, text in texts:
        words = text.split() if isinstance(text, str) else []
        if not isinstance(text, str) or len(words) < 2:
            raise ArgumentError("words", f"{source}:{number}", "should hold a text of two words or more")
        context = text.rstrip()[: -len(words[-1])].rstrip()
        found.append(Passage(context, words[-1]))
    if not found:
        raise ArgumentError("words", str(source), "holds no passages; give JSON lines, or a text with one a line")
    return found[:limit]


def _lines(file: Path, argument: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _text_lines(file, argument):
        try:
            held = json.loads(line)
        except json.JSONDecodeError as error:
            raise ArgumentError(argument, f"{file}:{number}", f"isn't JSON ({error.msg}); mend the line") from error
        if not isinstance(held, dict):
            raise ArgumentError(argument, f"{file}:{number}", "should hold an object; mend the line")
        yield number, held


def _text_lines(file: Path, argument: str) -> Iterator[tuple[int, str]]:
    """The lines that aren't blank, each with its number; a line ends at a newline and nowhere else."""
    if not file.is_file():
        raise ArgumentError(argument, str(file), "no such file; check the path")
    try:
        with one_line_errors(file, "read", argument):
            text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(argument, str(file), "isn't UTF-8 text; convert it") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line
