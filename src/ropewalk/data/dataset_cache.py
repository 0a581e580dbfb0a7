"""Data sets that are made once, kept in Arrow, and read from there by later runs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.errors import ArgumentError, RopewalkError
from ropewalk.io import one_line_errors

if TYPE_CHECKING:
    from datasets import Dataset

# Raised whenever a task's data change while its arguments don't, so that old entries aren't taken for new ones.
_VERSION = 1
_BLOCK = 1 << 20


def arrow_dataset(
    rows: Callable[..., Iterator[dict[str, Any]]], columns: Mapping[str, str], none: RopewalkError, **depends_on: Any
) -> Dataset:
    """The rows as a data set, cached under everything that they depend on.

    rows: a function of a module; called with `depends_on` unless an entry for just these values is kept already.
    columns: the type of each column's values by its name; a type in brackets, such as `[int32]`, is a list. none:
    raised if there are no rows. The cache is `tasks` in the folder $ROPEWALK_CACHE if that is set, else the one that
    `datasets` uses. An error raised in `rows` comes out as it is, and leaves no entry. Raises ArgumentError when the
    cache can't be written.
    """
    from datasets import Dataset, Features
    from datasets.exceptions import DatasetGenerationError

    features = Features({name: _feature(kind) for name, kind in columns.items()})
    cache = cache_folder()
    with one_line_errors(Path(cache), argument="ROPEWALK_CACHE"), _no_bars():
        try:
            made_from = {"rows": rows, "version": _VERSION} | depends_on
            return Dataset.from_generator(_some, features=features, cache_dir=cache, gen_kwargs=made_from)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, _NoRows):
                raise none from None
            if isinstance(error.__cause__, (RopewalkError, OSError)):
                raise error.__cause__ from None
            raise


def sequences(
    rows: Callable[..., Iterator[dict[str, Any]]], vocabulary_size: int, none: RopewalkError, **depends_on: Any
) -> Dataset:
    """A training task's split: `input_ids` and `labels`, in the smallest type that holds the vocabulary."""
    width = "[int16]" if vocabulary_size <= 1 << 15 else "[int32]"
    return arrow_dataset(rows, {"input_ids": width, "labels": width}, none, **depends_on)


def pieces(tokens: Sequence[int], length: int) -> Iterator[dict[str, Any]]:
    """Cut tokens into sequences of `length`, all labelled but the first, which has nothing before it to tell it from.

    The last one is shorter; it is left out if it has no label.
    """
    for start in range(0, len(tokens), length):
        piece = list(tokens[start : start + length])
        if len(piece) > 1:
            yield _labelled(piece)


def packed(stretches: Iterable[Sequence[int]], length: int) -> Iterator[dict[str, Any]]:
    """Cut tokens that come in stretches into sequences of exactly `length`; what is left over is left out."""
    held: list[int] = []
    for stretch in stretches:
        held.extend(stretch)
        whole = len(held) // length * length
        for start in range(0, whole, length):
            yield _labelled(held[start : start + length])
        del held[:whole]


def _labelled(piece: list[int]) -> dict[str, Any]:
    return {"input_ids": piece, "labels": [NO_LABEL, *piece[1:]]}


def sha256_of(path: str, argument: str) -> str:
    """The SHA-256 (hex) of a file's bytes; read again only if the file's size or time changed."""
    try:
        status = os.stat(path)
        return _sha256(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError as error:
        raise ArgumentError(argument, path, "no such file; give the path of one") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ArgumentError(argument, path, f"can't be read ({reason}); give a readable file") from error


@functools.lru_cache(maxsize=65536)
def _sha256(path: str, size: int, time: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class _NoRows(Exception):
    """An empty data set, which `datasets` can't read back."""


def _some(rows: Callable[..., Iterator[dict[str, Any]]], version: int, **depends_on: Any) -> Iterator[dict[str, Any]]:
    found = False
    for row in rows(**depends_on):
        found = True
        yield row
    if not found:
        raise _NoRows


def cache_folder() -> str:
    """Where what is made once is kept."""
    if given := os.environ.get("ROPEWALK_CACHE"):
        return str(Path(given) / "tasks")
    from datasets import config

    return str(config.HF_DATASETS_CACHE)


def _feature(kind: str) -> Any:
    from datasets import Sequence, Value

    return Sequence(_feature(kind[1:-1])) if kind.startswith("[") else Value(kind)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from datasets.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# A label that counts for nothing, in the loss and in the figure: what transformers' models take for it.
NO_LABEL = -100
