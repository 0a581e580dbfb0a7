"""`ropewalk perplexity`: how well models predict held-out text, up to many times their training length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ropewalk.cli.options import RULES, given_command, plain_console, prepared_folder, tell_damage, text_table
from ropewalk.cli.several import Counted

if TYPE_CHECKING:
    from ropewalk.evaluation.perplexity import Study


def measure_perplexity(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(help="Hugging Face ids, folders, .gguf files, smollm2, or runs of `ropewalk train`."),
    ],
    text: Annotated[
        str, typer.Option(help="Held-out text: a file, hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN], or kjv.")
    ],
    training_length: Annotated[int, typer.Option(help="Tokens; 0: as the models say.")] = 0,
    furthest: Annotated[int, typer.Option(help="The longest length, in training lengths.")] = 10,
    windows: Annotated[int, typer.Option(help="Windows of text, the independent units of the intervals.")] = 8,
    rules: Annotated[str, typer.Option(help=RULES)] = "",
    factor: Annotated[float, typer.Option(help="The rules' factor; 0: the furthest length's.")] = 0.0,
    plan: Annotated[list[str] | None, typer.Option(help="Saved plans, a row each: folders or hub ids.")] = None,
    way: Annotated[str, typer.Option(help="full: each window once; sliding: one text at every context.")] = "full",
    stride: Annotated[int, typer.Option(help="For sliding, in tokens; 0: half the training length.")] = 0,
    part: Annotated[
        str, typer.Option(help="all, train, validation or test; default: test of a text trained on, else all.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the windows' places.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for results.jsonl, summary.md, summary.json, perplexity.png.")
    ] = Path("perplexity-out"),
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that a model brings along.")] = False,
) -> None:
    """Measure perplexity at 1, 2, ... times the training length, every model on the same windows of text.

    Run it again to go on where it was stopped; with more models, only those are measured.
    """
    from ropewalk.data.windows import Books
    from ropewalk.evaluation.arms import arms, split_rules
    from ropewalk.evaluation.evaluated_model import Subjects
    from ropewalk.evaluation.likelihood import Reading
    from ropewalk.evaluation.perplexity import Study, held_out, measure, windows_of
    from ropewalk.evaluation.perplexity import training_length as common_length
    from ropewalk.evaluation.records import Store
    from ropewalk.report.perplexity import write_report

    names = split_rules(rules)
    subjects = Subjects(models, trust_remote_code)
    length = training_length or common_length(subjects.all)
    reading = Reading(length, furthest, way, stride or None)
    for subject in subjects.all:
        subject.check_length("furthest", furthest, reading.longest)
    rows = arms(subjects.all, names, length, reading.longest, factor or None, plan or [])
    source, chosen, trained = held_out(text, subjects.all, part)
    books = Books(source, reading.window, windows, seed, chosen)
    drawn = windows_of(books, subjects.all)
    console = plain_console()
    folder = prepared_folder(out)
    settings = {"books": books.to_dict(), "reading": reading.to_dict(), "tokens": drawn.fingerprint}
    progress = Counted(console, windows, [row.name for row in rows])
    with Store(folder / "results.jsonl", settings) as store, progress.shown():
        tell_damage(console, store)
        found = measure(rows, subjects, reading, drawn, store, progress.start, progress.done)
    study = Study(books, reading, drawn.unknown, tuple(s.name for s in trained), tuple(found))
    write_report(study, folder, given_command(ctx, "perplexity", argument="models"))
    _print(console, study, folder)


def _print(console: Console, study: Study, folder: Path) -> None:
    from ropewalk.report.perplexity import header, perplexity_rows, title, verdict, what_was_read

    console.print(f"{title(study)}:")
    console.print(text_table(header(study), perplexity_rows(study)))
    console.print(verdict(study))
    console.print(what_was_read(study))
    names = ("results.jsonl", "summary.md", "summary.json", "perplexity.png", "report.html")
    console.print(f"Saved: {', '.join(f'{folder}/{name}' for name in names)}")
