"""Values of a configuration file, each refused by the place where it stands if it can't be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.errors import ArgumentError, unknown_name


def section(content: Any, where: str, known: Sequence[str] | None) -> Mapping[str, Any]:
    """A section of `key: value` whose keys are all known."""
    if not isinstance(content, Mapping):
        raise ArgumentError(where, content, "must be a section of `key: value`")
    for key in content:
        if not isinstance(key, str) or (known is not None and key not in known):
            raise unknown_name(where, key, known or ())
    return content


def field_names(kind: type) -> tuple[str, ...]:
    """The keys of a section that becomes this dataclass."""
    return tuple(f.name for f in dataclasses.fields(kind))


def as_list(value: Any, where: str) -> list[Any]:
    """A list as it is, if anything is in it; anything else as a list of one."""
    if value == []:
        raise ArgumentError(where, value, "is empty; give at least one")
    return value if isinstance(value, list) else [value]


def whole(value: Any, where: str, least: int = 1) -> int:
    """A whole number of at least so much."""
    if type(value) is not int or value < least:
        raise ArgumentError(where, value, f"must be a whole number, {least} or more")
    return value


def number(value: Any, where: str) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ArgumentError(where, value, "must be a number above 0")
    return float(value)


def text(value: Any, where: str) -> str:
    """A text with something in it."""
    if not isinstance(value, str) or not value:
        raise ArgumentError(where, value, "must be a text")
    return value
