"""`ropewalk list`: the names that other commands and the library take, one line each."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def list_names(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: {group: {name: summary}}.")] = False,
) -> None:
    """List the encodings, those that `train` takes, length rules, head scores and tasks."""
    groups = summaries()
    if as_json:
        print(json.dumps(groups, indent=2))
    else:
        _print_tables(groups)


def summaries() -> dict[str, dict[str, str]]:
    """One line on every encoding, rule, score and task from the registries: {group: {name: summary}}."""
    from ropewalk.analysis.head_scores import SCORES
    from ropewalk.encodings.base import encodings
    from ropewalk.scaling import rules
    from ropewalk.tasks.registry import reading_tasks
    from ropewalk.training.config import trainable
    from ropewalk.training.presets import summaries as to_train

    return {
        "encodings": {name: kind.summary for name, kind in sorted(encodings().items())},
        "encodings to train": to_train(),
        "rules": {name: rule.summary for name, rule in sorted(rules().items())},
        "scores": {name: score.summary for name, score in sorted(SCORES.items())},
        "reading tasks": {name: task.summary for name, task in reading_tasks().items()},
        "training tasks": {name: task.summary for name, task in trainable().items()},
    }


def _print_tables(groups: dict[str, dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [row for entries in groups.values() for row in entries.items()]
    # One width for all first columns, so that the tables read as one.
    width = max((len(name) for name, _ in rows), default=0)
    console = Console()
    if not console.is_terminal:  # into a pipe or a file each entry stays on one line, whatever its length
        console.width = width + max((len(summary) for _, summary in rows), default=0) + 8
    for group, entries in groups.items():
        table = Table(title=group, title_justify="left", title_style="bold", box=None, show_header=False)
        table.add_column(min_width=width, no_wrap=True)
        table.add_column()
        for name, summary in entries.items():
            table.add_row(Text(name), Text(summary))
        console.print(table)
