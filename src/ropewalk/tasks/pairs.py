"""Minimal pairs and last words: files of sentences that a language model should find likely."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError


@dataclass(frozen=True)
class Pair:
    """A good sentence and a bad one that differ in what is tested; `test_set` names the phenomenon."""

    test_set: str
    good: str
    bad: str


@dataclass(frozen=True)
class Passage:
    """A text whose last word is to be found from all before it."""

    context: str
    word: str


def read_pairs(source: str | Path) -> list[Pair]:
    """Minimal pairs from a JSON lines file, or from all `*.jsonl` of a folder, a file a test set.

    Each line holds `sentence_good` and `sentence_bad`, as BLiMP's files do. Raises ArgumentError for a line without
    them, or a source without pairs.
    """
    path = Path(source)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = []
    for file in files:
        for number, line in _lines(file):
            if not all(isinstance(line.get(name), str) for name in ("sentence_good", "sentence_bad")):
                remedy = "should hold the texts sentence_good and sentence_bad"
                raise ArgumentError("pairs", f"{file}:{number}", remedy)
            found.append(Pair(file.stem, line["sentence_good"], line["sentence_bad"]))
    if not found:
        raise ArgumentError("pairs", str(source), "holds no pairs; give a JSON lines file or a folder of them")
    return found


def read_passages(source: str | Path) -> list[Passage]:
    """Passages from a JSON lines file with `text`, as LAMBADA's files have; their last words are asked for."""
    found = []
    for number, line in _lines(Path(source)):
        words = str(line.get("text", "")).split()
        if len(words) < 2:
            raise ArgumentError("last_words", f"{source}:{number}", "should hold a text of two words or more")
        text = str(line["text"]).rstrip()
        found.append(Passage(text[: -len(words[-1])].rstrip(), words[-1]))
    if not found:
        raise ArgumentError("last_words", str(source), "holds no passages; give a JSON lines file")
    return found


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not file.is_file():
        raise ArgumentError("file", str(file), "no such file; check the path")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            held = json.loads(line)
        except json.JSONDecodeError as error:
            raise ArgumentError("file", f"{file}:{number}", f"isn't JSON ({error.msg}); mend the line") from error
        if not isinstance(held, dict):
            raise ArgumentError("file", f"{file}:{number}", "should hold an object; mend the line")
        yield number, held
