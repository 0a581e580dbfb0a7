"""Language modelling: any text, in any tokens."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ropewalk.errors import ArgumentError
from ropewalk.tasks.arrow import check_length, packed, sequences
from ropewalk.tasks.corpus import Corpus, corpus_of
from ropewalk.tasks.drawn import whole_number
from ropewalk.tasks.haystack import AT_MOST, DEMO, encode_all
from ropewalk.tasks.sequences import SequenceTask, check_split

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHARACTERS = "characters"
_UNKNOWN = 0
# A text is tokenized in stretches, a few at a time: a tokenizer keeps much more of a text than its ids.
_STRETCH, _TOGETHER = 1_000_000, 4


@dataclass(frozen=True)
class Language(SequenceTask):
    """The next token of a text.

    text: a source that `read_text` takes: a UTF-8 file, `hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN]` or `kjv`.
    tokenizer: a Hugging Face tokenizer's folder or name on the hub, or `characters`: those of the training part, from
    1 on, in the order of Unicode, and 0 for any other. length: tokens of each sequence. characters: how many are read
    of the text at most. The first 90 % of the characters are for training, the next 5 % for validation and the last 5 %
    for the test; each part's tokens are cut into sequences of exactly `length`, and what is left over is left out. All
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
        for name in ("text", "tokenizer"):
            if not isinstance(getattr(self, name), (str, Path)):
                raise ArgumentError(name, getattr(self, name), "must be a text: the name of a source")
            object.__setattr__(self, name, str(getattr(self, name)))
        check_length(self.length)
        whole_number(self, "characters", 1)

    @property
    def sha256(self) -> str:
        """The SHA-256 (hex) of the text, as far as it is read."""
        return corpus_of(self.text, self.characters).fingerprint

    @property
    def vocabulary_size(self) -> int:
        if self.tokenizer == CHARACTERS:
            return 1 + len(characters_of(corpus_of(self.text, self.characters)))
        return 1 + max(tokenizer_named(self.tokenizer).get_vocab().values())

    @property
    def longest(self) -> int:
        return self.length

    def dataset(self, split: str) -> Dataset:
        check_split(split)
        spelled = CHARACTERS if self.tokenizer == CHARACTERS else spelling(tokenizer_named(self.tokenizer))
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


@functools.lru_cache(maxsize=2)
def characters_of(corpus: Corpus) -> str:
    """The characters of a text's training part, in the order of Unicode."""
    return "".join(sorted(set().union(*corpus.part("train"))))


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


def spelling(tokenizer: PreTrainedTokenizerBase) -> str:
    """A SHA-256 (hex) of how a tokenizer spells; a length to cut or fill up to, set by a call before, doesn't count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = repr(sorted(tokenizer.get_vocab().items()))
    else:
        held = json.loads(backend.to_str())
        rules = json.dumps({name: rule for name, rule in held.items() if name not in ("truncation", "padding")})
    return hashlib.sha256(rules.encode("utf-8", "surrogatepass")).hexdigest()
