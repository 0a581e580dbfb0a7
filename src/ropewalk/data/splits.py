"""A text in three parts, so that nothing is judged on what chose it."""

from __future__ import annotations

from typing import Any

from ropewalk.data.text import Text, characters_per_token, text_of
from ropewalk.errors import ArgumentError, unknown_name


def split_text(text: Text, tokenizer: Any, target_length: int, original_length: int) -> tuple[Text, Text, Text]:
    """Three parts of a text: for the search, for the judgement, and for the cost on short inputs.

    Raises ArgumentError when the text is too short to give each its own.
    """
    per_token = 1.25 * characters_per_token(text.text, tokenizer)
    size = len(text.text)
    last = max(int(0.1 * size), int(original_length * per_token) + 2000)
    half = (size - last) // 2
    if half < target_length * per_token + 2000:
        needed = int(2 * target_length + original_length + 4000 / per_token)
        found = int(size / per_token)
        remedy = (
            f"has about {found:,} tokens but {needed:,} are needed (two parts of {target_length:,} and one of "
            f"{original_length:,}, so that nothing is judged on what chose it); give a longer text"
        )
        raise ArgumentError("text", text.name, remedy)
    parts = text.text[:half], text.text[half : 2 * half], text.text[2 * half :]
    first, second, third = (text_of(part, f"{text.name}, part {i + 1} of 3") for i, part in enumerate(parts))
    return first, second, third


SPLITS = ("train", "validation", "test")


def check_split(split: Any) -> None:
    """Refuse a split that isn't train, validation or test."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
