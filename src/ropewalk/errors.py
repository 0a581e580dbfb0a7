"""Every error a user can cause: one line that names the argument, the value seen and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class RopewalkError(ValueError):
    """The root of all errors that ropewalk raises on purpose; its text is one line."""


class ArgumentError(RopewalkError):
    """An argument has a value that can't be used."""

    def __init__(self, argument: str, value: Any, remedy: str):
        super().__init__(f"{argument}={value!r}: {remedy}")
        self.argument, self.value, self.remedy = argument, value, remedy

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, Any, str]]:
        """Made again from its parts: a worker process sends its errors to the one that shows them."""
        return type(self), (self.argument, self.value, self.remedy)


class TooShortError(ArgumentError):
    """A length in which a prompt has no room; `needed` tokens would do for it, which the text says too."""

    def __init__(self, argument: str, value: int, reason: str, needed: int):
        super().__init__(argument, value, f"{reason}; use at least {needed}")
        self.reason, self.needed = reason, needed

    def __reduce__(self) -> tuple[type[TooShortError], tuple[str, int, str, int]]:  # type: ignore[override]
        return type(self), (self.argument, self.value, self.reason, self.needed)


class UnsupportedModelError(RopewalkError, TypeError):
    """A model whose attention the seam can't serve; says which part and why."""


class DamagedFileError(RopewalkError):
    """A file of ours that can't be read back: truncated, of another kind, or with a wrong field."""


class MismatchedModelError(RopewalkError):
    """A plan or selection made for another model; says what differs."""


def unknown_name(argument: str, value: str, known: Iterable[str]) -> ArgumentError:
    """The error for a name that isn't in a registry, with the nearest known names."""
    known = sorted(known)
    near = difflib.get_close_matches(str(value), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return ArgumentError(argument, value, hint)
