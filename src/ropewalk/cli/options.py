"""Command line values that several commands read the same way."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from ropewalk.errors import ArgumentError

if TYPE_CHECKING:
    from ropewalk.evaluation.records import Store

RULES = "Length rules and remaps with commas, such as yarn,self_extend:2048/5: a row each for every model that rotates."
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def duration(text: str) -> float:
    """Seconds in `90s`, `30m`, `1.5h` or a bare number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise ArgumentError("budget", text, "give a time above 0, such as 90s, 30m or 4h")
    return float(found[1]) * _UNITS[found[2]]


def plain_console() -> Console:
    """A console that prints brackets as they are, and whole lines into a pipe or a file, whatever their length."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000
    return console


def text_table(header: Iterable[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table for a console: a column for each word of the header, a line for each row."""
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    return table


def tell_damage(console: Console, store: Store) -> None:
    """Say which lines of a file of records are damaged, in one line; nothing where all are whole."""
    if store.damage:
        console.print(store.damage, soft_wrap=True)


def prepared_folder(path: Path) -> Path:
    """The folder, made if it isn't there; refused before any work when it can't be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:  # a name of its own would follow a link that stands there
            probe.write(b"ropewalk")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ArgumentError("out", str(path), f"can't write there ({reason}); choose another folder") from error
    return path


def given_command(
    ctx: typer.Context, command: str, argument: str | None = None, renamed: Mapping[str, str] | None = None
) -> str:
    """The command line as it was given; defaults stay unsaid.

    `argument` is the parameter that has no option's name before it, one value or several; `renamed` says which options
    have another name than their parameter.
    """
    given = [] if argument is None else ctx.params[argument]
    words = ["ropewalk", command, *(str(one) for one in (given if isinstance(given, list) else [given]))]
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        if name == argument or source is None or source.name != "COMMANDLINE":
            continue
        option = f"--{(renamed or {}).get(name, name).replace('_', '-')}"
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += [option] if one is True else [option, str(one)]
    return shlex.join(words)
