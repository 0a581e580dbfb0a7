"""Language modelling: any text, in any tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ropewalk.data.char_tokenizer import CHARACTERS, TokenizedText, characters_of, tokenizer_hash, tokenizer_named
from ropewalk.data.corpus import corpus_of
from ropewalk.data.dataset_cache import packed, sequences
from ropewalk.data.splits import check_split
from ropewalk.data.text import encode_all
from ropewalk.errors import ArgumentError
from ropewalk.training.tasks.base import SequenceTask

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_UNKNOWN = 0
# A text is tokenized in stretches, a few at a time: a tokenizer keeps much more of a text than its ids.
_STRETCH, _TOGETHER = 1_000_000, 4


@dataclass(frozen=True)
class Language(TokenizedText, SequenceTask):
    """The next token of a text.

    The arguments are those of `TokenizedText`. The first 90 % of the characters are for training, the next 5 % for
    validation and the last 5 % for the test; each part's tokens are cut into sequences of exactly `length`, and what is
    left over is left out. All tokens but a sequence's first are labelled. Raises ArgumentError when the data are read,
    for a source or a tokenizer that can't be, and for a part too short for one sequence.
    """

    name: ClassVar[str] = "language"
    summary: ClassVar[str] = "Language modelling: the next token of a text"
    metric: ClassVar[str] = "nll"

    @property
    def sha256(self) -> str:
        """The SHA-256 (hex) of the text, as far as it is read."""
        return self.corpus.fingerprint

    @property
    def vocabulary_size(self) -> int:
        if self.tokenizer == CHARACTERS:
            return 1 + len(characters_of(self.corpus))
        return 1 + max(tokenizer_named(self.tokenizer).get_vocab().values())

    @property
    def longest(self) -> int:
        return self.length

    def dataset(self, split: str) -> Dataset:
        check_split(split)
        spelled = CHARACTERS if self.tokenizer == CHARACTERS else tokenizer_hash(tokenizer_named(self.tokenizer))
        depends_on = {"sha256": self.sha256, "spelling": spelled, "length": self.length, "split": split}
        source = {"text": self.text, "tokenizer": self.tokenizer, "characters": self.characters}
        remedy = f"its {split} part is too short for {self.length} tokens; give a longer text, or a shorter length"
        return sequences(_rows, self.vocabulary_size, ArgumentError("text", self.text, remedy), **source, **depends_on)


def _rows(text: str, tokenizer: str, characters: int, length: int, split: str, **rest: Any) -> Iterator[dict[str, Any]]:
    corpus = corpus_of(text, characters)
    if tokenizer == CHARACTERS:
        places = {character: place for place, character in enumerate(characters_of(corpus), start=_UNKNOWN + 1)}
        tokens = ([places.get(character, _UNKNOWN) for character in block] for block in corpus.part(split))
        yield from packed(tokens, length)
    else:
        yield from packed(_encoded(tokenizer_named(tokenizer), corpus.part(split)), length)


def _encoded(tokenizer: PreTrainedTokenizerBase, blocks: Iterable[str]) -> Iterator[list[int]]:
    stretches = _stretches(blocks)
    while several := list(itertools.islice(stretches, _TOGETHER)):
        yield from encode_all(tokenizer, several)


def _stretches(blocks: Iterable[str]) -> Iterator[str]:
    """The text in stretches that end with a line, where hardly any tokenizer joins what is left and right."""
    held = ""
    for block in blocks:
        held += block
        while len(held) > _STRETCH:
            end = (held.rfind("\n", 0, _STRETCH) + 1) or _STRETCH
            yield held[:end]
            held = held[end:]
    if held:
        yield held
