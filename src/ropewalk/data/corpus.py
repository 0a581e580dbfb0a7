"""A text of any size, read from its file a block at a time: no more of it is in memory than is looked at."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.data.dataset_cache import cache_folder
from ropewalk.data.splits import SPLITS
from ropewalk.data.text import DEMO, dataset_texts, no_text, opened, read_text
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.io import one_line_errors, write_parts_atomically

_BLOCK = 1 << 20
# So many characters lie between two known places of a file, which reading can start from.
_STRIDE = 16 * _BLOCK


@dataclass(frozen=True)
class Corpus:
    """The first `characters` characters of a UTF-8 file: its name, and the SHA-256 (hex) of their UTF-8 bytes.

    newline: as `open` takes it. places: where in the file every 16,777,216th character is, the first one included.
    """

    path: str
    newline: str | None
    name: str
    characters: int
    fingerprint: str
    places: tuple[int, ...]

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[str]:
        """The characters from `start` to before `end`, in blocks of at most 1,048,576."""
        end = self.characters if end is None else min(end, self.characters)
        if start >= end:
            return
        with opened(self.path, self.newline) as file:
            file.seek(self.places[start // _STRIDE])
            left = start % _STRIDE
            while left:
                left -= len(file.read(min(left, _BLOCK)))
            while start < end and (block := file.read(min(end - start, _BLOCK))):
                start += len(block)
                yield block

    def read(self, start: int = 0, end: int | None = None) -> str:
        """The same as one string."""
        return "".join(self.blocks(start, end))

    def part(self, split: str) -> Iterator[str]:
        """The first 90 % for training, the next 5 % for validation or the last 5 % for the test, in blocks."""
        yield from self.blocks(*bounds(self.characters, split))

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps of the text: name, fingerprint and number of characters."""
        return {"name": self.name, "fingerprint": self.fingerprint, "characters": self.characters}

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {self.characters:,} characters, sha256 {self.fingerprint[:12]})"


def bounds(size: int, split: str) -> tuple[int, int]:
    """Where the characters for training, for validation or for the test begin and end in a text of `size`."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    train, validation = size * 90 // 100, size * 95 // 100
    return {"train": (0, train), "validation": (train, validation), "test": (validation, size)}[split]


def corpus_of(source: str, characters: int) -> Corpus:
    """At most `characters` of a source that `read_text` takes; looked at again when its file has changed.

    A Hugging Face data set is read from the network once and kept as a text file in the folder `texts` of the cache;
    so is the demo text. Raises ArgumentError for a source that is missing, empty or isn't text, or when the cache
    can't be written.
    """
    try:
        status = os.stat(source)
        seen = (status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):
        seen = (0, 0)  # no file: a data set, the demo, or an error that reading tells
    return _corpus(source, characters, seen)


@functools.lru_cache(maxsize=8)
def _corpus(source: str, characters: int, seen: tuple[int, int]) -> Corpus:
    if source == DEMO:
        text = read_text(DEMO, characters)
        return _measured(_kept(text.fingerprint, iter((text.text,))), "", DEMO, characters)
    if source.startswith("hf:"):
        named = hashlib.sha256(f"{source}\n{characters}".encode()).hexdigest()
        return _measured(_kept(named, dataset_texts(source, characters)), "", source, characters)
    return _measured(Path(source), None, source, characters)


def _kept(name: str, parts: Iterator[str]) -> Path:
    """A text's file in the cache; the parts are asked for only if it isn't there."""
    path = Path(cache_folder()) / "texts" / f"{name[:32]}.txt"
    with one_line_errors(path, "read", "ROPEWALK_CACHE"):
        there = path.is_file()
    if not there:
        write_parts_atomically(path, parts, argument="ROPEWALK_CACHE")
    return path


def _measured(path: Path, newline: str | None, name: str, most: int) -> Corpus:
    """Read a file once: how many characters there are, up to `most`, their SHA-256 and their places."""
    digest, places, size, has_text = hashlib.sha256(), [], 0, False
    with opened(path, newline) as file:
        while size < most:
            if size % _STRIDE == 0:
                places.append(file.tell())
            block = file.read(min(_BLOCK, most - size))
            if "\0" in block:
                raise ArgumentError("text", name, "is a binary file; give a text file")
            digest.update(block.encode("utf-8", "surrogatepass"))
            size, has_text = size + len(block), has_text or bool(block.strip())
            if not block:
                break
    if not has_text:
        raise no_text(name)
    return Corpus(str(path), newline, name, size, digest.hexdigest(), tuple(places))
