"""Characters as tokens, called as a Hugging Face tokenizer is, for models that `ropewalk train` made of characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ropewalk.tasks.corpus import corpus_of
from ropewalk.tasks.language import CHARACTERS, Language, characters_of, tokenizer_named


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


def tokenizer_of(task: Language) -> Any:
    """What makes the tokens of a language task out of text; reads the task's text when its tokens are characters."""
    if task.tokenizer == CHARACTERS:
        return Characters(characters_of(corpus_of(task.text, task.characters)))
    return tokenizer_named(task.tokenizer)
