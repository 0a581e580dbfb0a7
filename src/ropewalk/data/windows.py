"""Long windows of held-out text, to be read from their first token to their last."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from ropewalk.data.corpus import Corpus, bounds
from ropewalk.data.splits import SPLITS
from ropewalk.data.text import Text, characters_per_token, draw_window, text_of
from ropewalk.errors import ArgumentError, unknown_name

WHOLE = "all"
PARTS = (WHOLE, *SPLITS)


@dataclass(frozen=True)
class Books:
    """Windows of a long text that share no token, as a value: equal books have equal windows.

    text: where they come from. length: tokens of each window. windows: how many. seed: of their places. part: `all` of
    the text, or `train`, `validation` or `test`, cut as the task `language` cuts it. The part is cut into as many equal
    stretches as there are windows; each has one window, at a place drawn with the seed. Raises ArgumentError for values
    that can't be used.
    """

    text: Text | Corpus
    length: int
    windows: int = 8
    seed: int = 0
    part: str = WHOLE

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("windows", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ArgumentError(name, value, f"must be a whole number, at least {least}")
        if self.part not in PARTS:
            raise unknown_name("part", self.part, PARTS)

    def draw(self, tokenizer: Any) -> list[list[int]]:
        """The windows, each exactly `length` token ids; ArgumentError for a text with too few tokens for them."""
        whole = _characters(self.text, self.part)
        size = len(whole) // self.windows
        drawn = []
        for number in range(self.windows):
            place = random.Random(f"{self.seed}/{number}").random()
            try:
                stretch = text_of(whole[number * size : (number + 1) * size], self.text.name)
                drawn.append(draw_window(stretch, tokenizer, self.length, place))
            except ArgumentError as error:
                raise self._too_short(whole, tokenizer) from error
        return drawn

    def describe(self) -> str:
        """What is read, in a few words: `the test part of kjv`."""
        return f"all of {self.text.name}" if self.part == WHOLE else f"the {self.part} part of {self.text.name}"

    def to_dict(self) -> dict[str, Any]:
        """All that the windows depend on but the tokenizer, JSON-ready; of the text its name and fingerprint."""
        return {
            "text": self.text.to_dict(),
            "part": self.part,
            "length": self.length,
            "windows": self.windows,
            "seed": self.seed,
        }

    def _too_short(self, whole: str, tokenizer: Any) -> ArgumentError:
        tokens = int(len(whole) / characters_per_token(whole, tokenizer)) if whole.strip() else 0
        asked = f"{self.windows} of {self.length:,}" if self.windows > 1 else f"a window of {self.length:,}"
        remedy = (
            f"{self.describe()} has about {tokens:,} tokens, too few for {asked}; give a longer text, or ask "
            "for fewer windows or a shorter length"
        )
        return ArgumentError("text", self.text.name, remedy)


def _characters(text: Text | Corpus, part: str) -> str:
    size = text.characters if isinstance(text, Corpus) else len(text.text)
    start, end = (0, size) if part == WHOLE else bounds(size, part)
    return text.read(start, end) if isinstance(text, Corpus) else text.text[start:end]
