"""Language modelling: any text, in any tokens."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ropewalk.errors import ArgumentError
from ropewalk.tasks.arrow import check_length, pieces, sequences
from ropewalk.tasks.drawn import whole_number
from ropewalk.tasks.haystack import AT_MOST, DEMO, Text, encode, read_text
from ropewalk.tasks.sequences import SequenceTask, check_split

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHARACTERS = "characters"
_UNKNOWN = 0
# A text is tokenized a stretch at a time: a tokenizer keeps much more of a text than its ids.
_STRETCH = 1_000_000


@dataclass(frozen=True)
class Language(SequenceTask):
    """The next token of a text.

    text: a source that `read_text` takes: a UTF-8 file, `hf:NAME[:CONFIG][:SPLIT][#COLUMN]` or `kjv`. tokenizer: a
    Hugging Face tokenizer's folder or name on the hub, or `characters`: those of the training part, from 1 on, in
    the order of Unicode, and 0 for any other. length: tokens of each sequence. characters: how many are read of the
    text at most. The first 90 % of the characters are for training, the next 5 % for validation and the last 5 % for
    the test; each part's tokens are cut into sequences of exactly `length`, and what is left over is left out. All
    tokens but a sequence's first are labelled. Raises ArgumentError for values that can't be used, and when the data
    are read, for a source or a tokenizer that can't be, and for a part too short for one sequence.
    """

    name: ClassVar[str] = "language"
    summary: ClassVar[str] = "Language modelling: the next token of a text"
    metric: ClassVar[str] = "nll"

    text: str = DEMO
    tokenizer: str = CHARACTERS
    length: int = 512
    characters: int = AT_MOST

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", str(self.text))
        object.__setattr__(self, "tokenizer", str(self.tokenizer))
        check_length(self.length)
        whole_number(self, "characters", 1)

    @property
    def sha256(self) -> str:
        """The SHA-256 (hex) of the text, as far as it is read."""
        return whole_text(self.text, self.characters).fingerprint

    @property
    def vocabulary_size(self) -> int:
        if self.tokenizer == CHARACTERS:
            return 1 + len(characters_of(whole_text(self.text, self.characters)))
        return 1 + max(tokenizer_named(self.tokenizer).get_vocab().values())

    @property
    def longest(self) -> int:
        return self.length

    def dataset(self, split: str) -> Dataset:
        check_split(split)
        spelling = CHARACTERS if self.tokenizer == CHARACTERS else _fingerprint(tokenizer_named(self.tokenizer))
        depends_on = {"sha256": self.sha256, "spelling": spelling, "length": self.length, "split": split}
        source = {"text": self.text, "tokenizer": self.tokenizer, "characters": self.characters}
        remedy = f"its {split} part is too short for {self.length} tokens; give a longer text, or a shorter length"
        return sequences(_rows, self.vocabulary_size, ArgumentError("text", self.text, remedy), **source, **depends_on)


def _rows(text: str, tokenizer: str, characters: int, length: int, split: str, **rest: Any) -> Iterator[dict[str, Any]]:
    read = whole_text(text, characters)
    part = part_of(read, split)
    if tokenizer == CHARACTERS:
        places = {character: place for place, character in enumerate(characters_of(read), start=_UNKNOWN + 1)}
        tokens = [places.get(character, _UNKNOWN) for character in part]
    else:
        speller = tokenizer_named(tokenizer)
        tokens = [token for stretch in _stretches(part) for token in encode(speller, stretch)]
    yield from pieces(tokens, length, whole_only=True)


def part_of(text: Text, split: str) -> str:
    """The characters of a text that are for training, for validation or for the test."""
    size = len(text.text)
    train, validation = size * 90 // 100, size * 95 // 100
    starts, ends = {"train": (0, train), "validation": (train, validation), "test": (validation, size)}[split]
    return text.text[starts:ends]


def _stretches(text: str) -> Iterator[str]:
    """The text in stretches that end with a line, where hardly any tokenizer joins what is left and right."""
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > _STRETCH:
            end = (text.rfind("\n", start, start + _STRETCH) + 1) or (start + _STRETCH)
        yield text[start:end]
        start = end


def whole_text(source: str, characters: int) -> Text:
    """At most `characters` of a source that `read_text` takes; read again when its file has changed."""
    try:
        status = os.stat(source)
        seen = (status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):
        seen = (0, 0)  # no file: a data set, the demo, or an error that reading tells
    return _read(source, characters, seen)


@functools.lru_cache(maxsize=2)
def _read(source: str, characters: int, seen: tuple[int, int]) -> Text:
    return read_text(source, characters)


@functools.lru_cache(maxsize=2)
def characters_of(text: Text) -> str:
    """The characters of a text's training part, in the order of Unicode."""
    return "".join(sorted(set(part_of(text, "train"))))


@functools.lru_cache(maxsize=2)
def tokenizer_named(name: str) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer by its folder or its name on the hub, loaded once."""
    from transformers import AutoTokenizer

    from ropewalk.hf.loading import quiet

    try:
        with quiet():
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = f"can't be loaded ({reason}); give a tokenizer's folder, its name on the hub, or {CHARACTERS}"
        raise ArgumentError("tokenizer", name, remedy) from error
    return loaded


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A SHA-256 (hex) of how a tokenizer spells."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(rules.encode("utf-8", "surrogatepass")).hexdigest()
