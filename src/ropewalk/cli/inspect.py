"""`ropewalk inspect`: what a model's heads do with position, and where their attention goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ropewalk.cli.options import given_command, plain_console, prepared_folder, text_table

if TYPE_CHECKING:
    from ropewalk.analysis.inspect import Inspection

# Tokens that are read unless told otherwise, where the model was trained on more.
LENGTH = 4096


def inspect_model(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A Hugging Face id, a folder, a .gguf file, or smollm2.")],
    text: Annotated[
        str, typer.Option(help="Text to read: a file, hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN], or kjv.")
    ] = "kjv",
    length: Annotated[int, typer.Option(help="Tokens; 0: the model's training length, 4096 at most.")] = 0,
    plan: Annotated[str, typer.Option(help="A saved plan, to see the needle with it: a folder or an id.")] = "",
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, inspect.json, inspect.safetensors, pictures.")
    ] = Path("inspect-out"),
    queries: Annotated[int, typer.Option(help="Queries looked at for sinks, evenly spread; 0: all.")] = 0,
    revision: Annotated[str, typer.Option(help="Revision of a Hugging Face id.")] = "",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that a model brings along.")] = False,
) -> None:
    """See what a model's heads do with position: sinks, entropies, frequencies, and how they find a needle.

    The text holds one needle in its middle and ends with the question about it.
    """
    console = plain_console()
    folder = prepared_folder(out)

    from ropewalk.analysis.inspect import inspect
    from ropewalk.data.text import read_text
    from ropewalk.errors import ArgumentError
    from ropewalk.hub.loading import load_model
    from ropewalk.hub.plan import Plan
    from ropewalk.patching.input_limits import check_reach, reach
    from ropewalk.report.inspect import write_inspection
    from ropewalk.tasks.needle import NeedleTask

    if queries < 0:
        raise ArgumentError("queries", queries, "give 1 or more, or 0 for all")
    saved = Plan.from_pretrained(plan) if plan else None
    haystack = read_text(text)
    loaded, tokenizer = load_model(model, revision=revision or None, trust_remote_code=trust_remote_code)
    tokens = length or _default_length(loaded)
    check_reach(model, reach(loaded), "length", tokens, tokens)
    task = NeedleTask(haystack, tokens, depths=1, protocol="single")
    prompt = task.prompts(tokenizer, 1)[0]
    question = prompt.questions[0]
    ids = _tensor((*prompt.haystack_ids, *question.ids))
    with _progress(console) as progress:
        bar = progress.add_task("reading", total=None)

        def moved(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        found = inspect(loaded, ids, question.needle_span, saved, queries=queries or None, on_layer=moved)
    command = given_command(ctx, "inspect", argument="model")
    found = _described(found, tokenizer, {"command": command, "task": task.to_dict(), "text": haystack.to_dict()})
    with console.status("drawing"):
        write_inspection(found, command, folder)
    _print(console, found, folder)


def _default_length(model: Any) -> int:
    from ropewalk.errors import ArgumentError
    from ropewalk.hub.fingerprint import describe

    trained = describe(model)["original_length"]
    if trained is None:
        raise ArgumentError("length", 0, "give it in tokens; the model's config doesn't tell its training length")
    return min(int(trained), LENGTH)


def _tensor(ids: tuple[int, ...]) -> Any:
    import torch

    return torch.tensor(ids)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("layers"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _described(found: Inspection, tokenizer: Any, how: dict[str, Any]) -> Inspection:
    """The inspection with what is known here about how it was made, and the texts of the tokens it points at."""
    import dataclasses

    from ropewalk.data.text import spelled
    from ropewalk.evaluation.provenance import provenance

    places = sorted(set(found["sinks.largest_at"].flatten().tolist()))
    texts = {str(place): spelled(tokenizer, int(found["tokens"][place])) for place in places}
    more = {"token_texts": texts} | provenance()
    return dataclasses.replace(found, about={**found.about, **how, **more})


def _print(console: Console, found: Inspection, folder: Path) -> None:
    from ropewalk.report.inspect import TOP_HEADER, top_rows, verdict

    console.print(
        text_table(
            TOP_HEADER, top_rows(found), f"The ten heads with the largest sinks, {len(found['tokens']):,} tokens"
        )
    )
    console.print(verdict(found), soft_wrap=True)
    console.print(f"Saved: {folder}/report.html, inspect.json, inspect.safetensors and pictures", soft_wrap=True)
