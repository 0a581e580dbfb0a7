"""`ropewalk train`: train one model an encoding and seed on a task, and compare them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ropewalk.cli.options import given_command, plain_console, prepared_folder, text_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ropewalk.training.compare import Comparison


def train_models(
    ctx: typer.Context,
    task: Annotated[str, typer.Option(help="What to learn, such as indexing or language; `ropewalk list` has all.")],
    encoding: Annotated[str | None, typer.Option(help="Encodings by name, with commas; default: the recipe's.")] = None,
    size: Annotated[str, typer.Option(help="The recipe: small, or paper for the paper's own sizes.")] = "small",
    seeds: Annotated[int, typer.Option(help="Runs of each encoding.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for runs, summary.md and .json, curves.*, report.html.")] = Path(
        "train-out"
    ),
    data: Annotated[str, typer.Option(help="The task's data: a file, a folder, or hf:NAME for texts.")] = "",
    tokenizer: Annotated[str, typer.Option(help="For language: a Hugging Face tokenizer, or characters.")] = "",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe, such as model.layers=4; repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each run; 0: as the recipe says.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave GPUs alone.")] = False,
) -> None:
    """Train a model for each encoding and seed, all else equal, and compare them.

    Under `torchrun` or `accelerate launch` all processes train together. Run it again to go on where it was stopped.
    """
    from ropewalk.training.config import parse_changes
    from ropewalk.training.presets import split_names

    asked = None if encoding is None else split_names(encoding)
    wanted = parse_changes(changes or [])
    if steps:
        wanted["steps"] = steps

    from ropewalk.report.training import write_report
    from ropewalk.training.compare import Comparison, compare
    from ropewalk.training.config import build_task, read_recipe

    recipe = read_recipe(task, size, wanted)
    names = asked or recipe.encodings
    comparison = Comparison(recipe, build_task(recipe, data or None, tokenizer or None), names, seeds, out)
    command = given_command(ctx, "train", renamed={"changes": "set"})
    with together(out) as console:
        with _watch(console, comparison) as watch:
            comparison = compare(
                comparison,
                watch,
                cpu,
                done=lambda so_far: write_report(so_far, command),
                ready=lambda: _tell_left_out(console, comparison),
            )
        _print(console, comparison)


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def together(out: Path) -> Iterator[Console]:
    """What all processes of a run share: the folder, and a console that is silent in all but the first.

    The folder is made if it isn't there, and taken away again when nothing came into it. At the end the processes part.
    """
    is_first, was_there = is_first_process(), out.is_dir()
    console = plain_console()
    console.quiet = not is_first
    if is_first:
        prepared_folder(out)
    try:
        yield console
    except BaseException:
        if is_first and not was_there:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise
    if "RANK" in os.environ:
        from accelerate import PartialState

        PartialState().destroy_process_group()


@contextlib.contextmanager
def _watch(console: Console, comparison: Comparison) -> Iterator[Any]:
    from ropewalk.cli.steps import Steps

    steps = Steps(console, len(comparison.names) * comparison.seeds, comparison.task.metric)
    with steps.shown() as watch:
        yield watch


def _tell_left_out(console: Console, comparison: Comparison) -> None:
    from ropewalk.training.runner import left_out

    problems = left_out(comparison.task)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        place = comparison.out / "summary.json"
        console.print(f"skipped: {problems[0]}{more}; {place} names every file left out", soft_wrap=True)


def _print(console: Console, comparison: Comparison) -> None:
    from ropewalk.report.training import header, rows, title

    # What runs cost is in summary.md, and brackets have lines of their own: so three seeds fit into 80 columns.
    shown, before = comparison.seeds + 2, "\n[" if console.is_terminal else " ["
    cells = [[cell.replace(" [", before) for cell in row[:shown]] for row in rows(comparison)]
    console.print(text_table(header(comparison)[:shown], cells, title(comparison)))
    out = comparison.out
    made = "summary.md", "summary.json", "curves.jsonl", "curves.png", "report.html", "ENCODING/seed-N"
    console.print(f"Saved: {', '.join(f'{out}/{name}' for name in made)}", markup=False)
