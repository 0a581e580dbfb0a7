"""`ropewalk downstream`: minimal pairs and last words, for any models, length rules and plans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ropewalk.cli.options import RULES, given_command, plain_console, prepared_folder, tell_damage, text_table
from ropewalk.cli.several import Counted

if TYPE_CHECKING:
    from ropewalk.report.downstream import Judgement


def measure_downstream(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(help="Hugging Face ids, folders, .gguf files, smollm2, or runs of `ropewalk train`."),
    ],
    pairs: Annotated[str, typer.Option(help="Minimal pairs: JSON lines as BLiMP's, a file or a folder.")] = "",
    words: Annotated[str, typer.Option(help="Last words: JSON lines with text, or a text with a passage a line.")] = "",
    rules: Annotated[str, typer.Option(help=RULES)] = "",
    furthest: Annotated[int, typer.Option(help="For rules: the length they are for, in training lengths.")] = 10,
    factor: Annotated[float, typer.Option(help="The rules' factor; 0: the furthest length's.")] = 0.0,
    training_length: Annotated[int, typer.Option(help="For rules, in tokens; 0: as the models say.")] = 0,
    plan: Annotated[list[str] | None, typer.Option(help="Saved plans, a row each: folders or hub ids.")] = None,
    limit: Annotated[int, typer.Option(help="Pairs of each test set, and passages, at most; 0: all.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for results.jsonl, summary.md, summary.json, downstream.png.")
    ] = Path("downstream-out"),
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that a model brings along.")] = False,
) -> None:
    """Ask which of two sentences a model finds likelier, and for the last word of passages; nothing is trained.

    Run it again to go on where it was stopped; with more models or questions, only those are measured.
    """
    from ropewalk.data.minimal_pairs import read_pairs, read_passages
    from ropewalk.errors import ArgumentError
    from ropewalk.evaluation.arms import arms, split_rules
    from ropewalk.evaluation.downstream import blocks, check, measure
    from ropewalk.evaluation.evaluated_model import Subjects
    from ropewalk.evaluation.perplexity import training_length as common_length
    from ropewalk.evaluation.records import Store
    from ropewalk.evaluation.shares import groups
    from ropewalk.report.downstream import Judgement, write_report

    if not pairs and not words:
        raise ArgumentError("pairs", pairs, "give a file or folder of minimal pairs, or passages as words, or both")
    if limit < 0:
        raise ArgumentError("limit", limit, "give 1 or more, or 0 for all")
    if furthest < 1:
        raise ArgumentError("furthest", furthest, "give 1 or more")
    names = split_rules(rules)
    held = read_pairs(pairs, limit or None) if pairs else []
    passages = read_passages(words, limit or None) if words else []
    subjects = Subjects(models, trust_remote_code)
    length = (training_length or common_length(subjects.all)) if names else 0
    rows = arms(subjects.all, names, length, furthest * length, factor or None, plan or [])
    work = blocks(held, passages)
    unknown = check(rows, work)
    console = plain_console()
    folder = prepared_folder(out)
    progress = Counted(console, len(work), [row.name for row in rows])
    with Store(folder / "results.jsonl", {"kind": "downstream"}) as store, progress.shown():
        tell_damage(console, store)
        found = measure(rows, subjects, work, store, progress.start, progress.done)
    sources = {name: source for name, source in (("pairs", pairs), ("words", words)) if source}
    judgement = Judgement(sources, tuple(rows), tuple(groups(found, held)), unknown)
    write_report(judgement, folder, given_command(ctx, "downstream", argument="models"))
    _print(console, judgement, folder)


def _print(console: Console, judgement: Judgement, folder: Path) -> None:
    from ropewalk.report.downstream import HEADER, rows, title

    for group in judgement.groups:
        if group.kind == "all":
            console.print(f"{title(group)}:")
            console.print(text_table(HEADER, rows(group)))
    names = ("results.jsonl", "summary.md", "summary.json", "downstream.png", "report.html")
    console.print(f"Saved: {', '.join(f'{folder}/{name}' for name in names)}")
