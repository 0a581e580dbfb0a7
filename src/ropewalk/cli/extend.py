"""`ropewalk extend`: make a RoPE model read further, and show by how much."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ropewalk.cli.options import duration, given_command, plain_console, prepared_folder, tell_damage, text_table

if TYPE_CHECKING:
    from ropewalk.evaluation.as_saved import AsSaved
    from ropewalk.evaluation.extend import Job, Outcome
    from ropewalk.evaluation.needle_count import NeedleCount


_DEPTHS = (
    "Needles a haystack, at depths from 0 to 1; 0: the largest of 10, 4, 2 and 1 that the model answers 0.8 right at "
    "half its training length."
)


def extend_model(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A Hugging Face id, a folder, a .gguf file, or smollm2.")],
    length: Annotated[int, typer.Option(help="The length to reach, in tokens.")],
    text: Annotated[
        str, typer.Option(help="Haystack text: a file, hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN], or kjv.")
    ] = "kjv",
    budget: Annotated[str, typer.Option(help="Time to spend: 90s, 30m, 4h.")] = "30m",
    out: Annotated[Path, typer.Option(help="Folder for plan/, results.jsonl, summary.md and report.html.")] = Path(
        "extend-out"
    ),
    setting: Annotated[str, typer.Option(help="original, or noisy: start tokens after each needle.")] = "original",
    protocol: Annotated[str, typer.Option(help="multi: many needles a haystack; single: one.")] = "multi",
    depths: Annotated[int, typer.Option(help=_DEPTHS)] = 0,
    dope: Annotated[
        str,
        typer.Option(help="Try DoPE plans on the best rule or remap: auto (where the budget has room), always, never."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    original_length: Annotated[int, typer.Option(help="Training length; 0: as the config says.")] = 0,
    when: Annotated[str, typer.Option(help="long: the plan applies past the training length; or always.")] = "long",
    revision: Annotated[str, typer.Option(help="Revision of a Hugging Face id.")] = "",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that a model brings along.")] = False,
) -> None:
    """Find the length rule, remap of positions or DoPE plan with which a model reads LENGTH tokens, and save it."""
    console = plain_console()
    seconds = duration(budget)
    folder = prepared_folder(out)

    from ropewalk.data.text import read_text
    from ropewalk.errors import unknown_name
    from ropewalk.evaluation.as_saved import as_saved
    from ropewalk.evaluation.extend import Job, prepared_text
    from ropewalk.hub.loading import load_model
    from ropewalk.patching.activation import WHEN

    if when not in WHEN:
        raise unknown_name("when", when, WHEN)
    haystack = read_text(text)
    loaded, tokenizer = load_model(model, revision=revision or None, trust_remote_code=trust_remote_code)
    saved = as_saved(loaded, model)
    _check_rotation(loaded, saved, model, when)
    job = Job(
        target_length=length,
        original_length=original_length or saved.about["original_length"],
        text=haystack,
        setting=setting,
        protocol=protocol,
        depths=depths,
        seed=seed,
        budget=seconds,
        dope=dope,
    )
    prepared_text(job, tokenizer)
    outcome = _search(console, loaded, tokenizer, job, saved, folder)
    _save(loaded, saved.about, outcome, when, folder, given_command(ctx, "extend", argument="model"))
    _print(console, outcome, folder)


def _search(console: Console, model: Any, tokenizer: Any, job: Job, saved: AsSaved, folder: Path) -> Outcome:
    """Run the search with its records in the folder, and show how far it is."""
    from ropewalk.cli.progress import Watch
    from ropewalk.evaluation.extend import extend
    from ropewalk.evaluation.identity import identity
    from ropewalk.evaluation.records import Store

    with Store(folder / "results.jsonl", job.settings(saved.about, identity(model, tokenizer))) as store:
        tell_damage(console, store)
        spent = sum(record.get("seconds", 0.0) for record in store.records())
        told = partial(_tell_needle_count, console)
        with Watch(console, job.budget, spent).shown() as watch:
            return extend(model, tokenizer, job, store, watch.start, watch.done, saved.rotation, told)


def _check_rotation(model: Any, saved: AsSaved, name: str, when: str) -> None:
    """Refuse a model that has no rotation to stretch, and a plan under which short inputs wouldn't get the model's."""
    from ropewalk.encodings.model_rotation import own_rotation
    from ropewalk.errors import ArgumentError

    if saved.rotation is None:
        remedy = f"it was saved with {saved.encoding.kind} and has no rotation to stretch; give a model with RoPE"
        raise ArgumentError("model", name, remedy)
    if when == "long" and saved.rotation != own_rotation(model):
        remedy = f"a plan leaves short inputs to the architecture's rotation, and {name} was saved with another"
        raise ArgumentError("when", when, f"{remedy}; give always")


def _tell_needle_count(console: Console, count: NeedleCount) -> None:
    console.print(count.text(), markup=False, highlight=False, soft_wrap=True)


def _save(model: Any, about: dict[str, Any], outcome: Outcome, when: str, folder: Path, command: str) -> None:
    from ropewalk.hub.plan import Plan
    from ropewalk.report.extend_page import write_report
    from ropewalk.report.needle_figures import draw_final
    from ropewalk.report.summary import evidence

    assert outcome.winner is not None
    job = outcome.job
    encoding, lengths = outcome.winner.encoding, (job.target_length, job.original_length)
    Plan.of(model, encoding, *lengths, when=when, evidence=evidence(outcome)).save_pretrained(folder / "plan")
    draw_final(outcome, folder / "depths.png")
    write_report(outcome, command, about, folder)


def _print(console: Console, outcome: Outcome, folder: Path) -> None:
    from ropewalk.report.summary import HEADER, final_rows, verdict

    console.print(
        text_table(
            HEADER,
            [row.cells() for row in final_rows(outcome)],
            f"{outcome.job.target_length:,} tokens, prompts that no choice had seen; 95 % intervals",
        )
    )
    console.print(verdict(outcome), markup=False, highlight=False)
    console.print(
        f"Saved: {folder}/plan, {folder}/results.jsonl, {folder}/summary.md, {folder}/depths.png, {folder}/report.html",
        markup=False,
    )
