"""What a model can read: where its positions end, and which tokens it has a vector for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.model_rotation import model_config
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError
from ropewalk.patching.handle import handle_of


def encoding_reach(encoding: Encoding) -> int | None:
    """How many tokens an encoding can count to; None for no end."""
    if isinstance(encoding, XPos):
        return encoding.last_position + 1
    return encoding.max_positions if isinstance(encoding, Learned) else None


def reach(model: Any) -> int | None:
    """How many tokens a model can read, by its installed encoding or by its own table; None for no end."""
    handle = handle_of(model)
    if handle is not None and handle.encoding is not None:
        return encoding_reach(handle.encoding)
    trained: int | None = getattr(model_config(model), "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not tokens]
    # Some tables begin with two places that aren't positions.
    has_table = trained is not None and any(trained <= m.num_embeddings <= trained + 2 for m in tables)
    return trained if has_table else None


def check_reach(name: str, longest: int | None, argument: str, value: Any, length: int) -> None:
    """Refuse lengths past the end of a model's positions, in tokens; `argument` and `value` say what asked for them.

    Raises:
        ArgumentError: `length` is more than `longest`; the model is called by `name`.
    """
    if longest is not None and length > longest:
        has = f"{name} has positions for {longest:,} tokens, {length:,} are wanted"
        raise ArgumentError(argument, value, f"{has}; ask for less, or take a model that reaches further")


def check_vocabulary(model: Any, ids: Iterable[int]) -> None:
    """Refuse tokens that the model has no vector for, which a tokenizer of another model can make.

    Raises:
        ArgumentError: a token id at or above the number of the model's token vectors.
    """
    get = getattr(model, "get_input_embeddings", None)
    known: int | None = getattr(get(), "num_embeddings", None) if get else None  # other modules don't tell
    highest = max(ids, default=0)
    if known is not None and highest >= known:
        has = f"makes the token {highest:,}, but the model has vectors for 0 to {known - 1:,}"
        raise ArgumentError("tokenizer", highest, f"{has}; give the model the tokenizer it was trained with")
