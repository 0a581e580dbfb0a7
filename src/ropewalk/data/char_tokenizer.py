"""Tokenizers by name: a Hugging Face tokenizer, or the characters of a text called as one is."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.data.corpus import Corpus, corpus_of
from ropewalk.data.text import AT_MOST, DEMO
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_sequence_length, check_whole_field

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS = "characters"


class Characters:
    """The characters of `alphabet` as tokens from 1 on, in its order, and 0 for any other, as `language` has them."""

    name_or_path = CHARACTERS
    bos_token_id = None
    unk_token_id = 0

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self._places = {character: place for place, character in enumerate(alphabet, start=1)}

    def __len__(self) -> int:
        return 1 + len(self.alphabet)

    def get_vocab(self) -> dict[str, int]:
        """Each character's token."""
        return dict(self._places)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """{"input_ids": a token for each character}; nothing is added, whatever else is asked for."""
        return {"input_ids": [self._places.get(character, self.unk_token_id) for character in text]}

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; an unknown character as a replacement character."""
        return "".join(self.alphabet[token - 1] if token else "\ufffd" for token in ids)


@dataclass(frozen=True)
class TokenizedText:
    """A text, the tokens it is read in, and the length of its sequences, as `ropewalk train` keeps them in run.json.

    text: a source that `read_text` takes: a UTF-8 file, `hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN]` or `kjv`.
    tokenizer: a Hugging Face tokenizer's folder or name on the hub, or `characters`: those of the training part, from
    1 on, in the order of Unicode, and 0 for any other. length: tokens of each sequence. characters: how many are read
    of the text at most. Raises ArgumentError for values that can't be used.
    """

    text: str = DEMO
    tokenizer: str = CHARACTERS
    length: int = 512
    characters: int = AT_MOST

    def __post_init__(self) -> None:
        for name in ("text", "tokenizer"):
            if not isinstance(getattr(self, name), (str, Path)):
                raise ArgumentError(name, getattr(self, name), "must be a text: the name of a source")
            object.__setattr__(self, name, str(getattr(self, name)))
        check_sequence_length(self.length)
        check_whole_field(self, "characters", 1)

    @property
    def corpus(self) -> Corpus:
        """The text, as far as it is read."""
        return corpus_of(self.text, self.characters)

    def load_tokenizer(self) -> Any:
        """What makes its tokens; reads the text when they are characters."""
        return (
            Characters(characters_of(self.corpus)) if self.tokenizer == CHARACTERS else tokenizer_named(self.tokenizer)
        )


@functools.lru_cache(maxsize=2)
def characters_of(corpus: Corpus) -> str:
    """The characters of a text's training part, in the order of Unicode."""
    return "".join(sorted(set().union(*corpus.part("train"))))


@functools.lru_cache(maxsize=2)
def tokenizer_named(name: str) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer by its folder or its name on the hub, loaded once."""
    from transformers import AutoTokenizer

    from ropewalk.hub.loading import quiet

    try:
        with quiet():
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = f"can't be loaded ({reason}); give a tokenizer's folder, its name on the hub, or {CHARACTERS}"
        raise ArgumentError("tokenizer", name, remedy) from error
    return loaded


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A SHA-256 (hex) of how a tokenizer spells; a length to cut or fill up to, set by a call before, doesn't count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = repr(sorted(tokenizer.get_vocab().items()))
    else:
        held = json.loads(backend.to_str())
        rules = json.dumps({name: rule for name, rule in held.items() if name not in ("truncation", "padding")})
    return hashlib.sha256(rules.encode("utf-8", "surrogatepass")).hexdigest()
