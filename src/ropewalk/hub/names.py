"""Names on the Hugging Face Hub, and other people's long errors as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ropewalk.errors import ArgumentError, RopewalkError


def is_hub_id(name: str) -> bool:
    """Whether a name can be `owner/name` or a bare name on the hub, and isn't written as a path."""
    return bool(name) and name.count("/") <= 1 and not name.startswith((".", "/", "~")) and "\\" not in name


@contextlib.contextmanager
def one_line_hub_errors(repo_id: str, what: str) -> Iterator[None]:
    """Turns whatever the hub's client raises into one line about the repository."""
    try:
        yield
    except RopewalkError:
        raise
    except Exception as error:  # besides its own, the client raises those of its HTTP library, which varies
        remedy = f"{what} the Hugging Face Hub ({first_line(error)})"
        raise ArgumentError("repo_id", repo_id, remedy) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, cut to 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
