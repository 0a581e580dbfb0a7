"""`ropewalk needle`: one measurement of how well a model, with or without a plan, finds needles."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ropewalk.cli.options import plain_console, tell_damage


def measure_needles(
    model: Annotated[str, typer.Argument(help="A Hugging Face id, a folder, a .gguf file, or smollm2.")],
    length: Annotated[int, typer.Option(help="Tokens of each prompt; 0: the model's training length.")] = 0,
    plan: Annotated[str, typer.Option(help="A saved plan: a folder or a Hugging Face id.")] = "",
    text: Annotated[
        str, typer.Option(help="Haystack text: a file, hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN], or kjv.")
    ] = "kjv",
    prompts: Annotated[int, typer.Option(help="How many prompts.")] = 1,
    setting: Annotated[str, typer.Option(help="original, or noisy: start tokens after each needle.")] = "original",
    protocol: Annotated[str, typer.Option(help="multi: many needles a haystack; single: one.")] = "multi",
    depths: Annotated[int, typer.Option(help="Depths, from 0 to 1.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    out: Annotated[str, typer.Option(help="A .jsonl file for every prompt and answer; it can be resumed.")] = "",
    revision: Annotated[str, typer.Option(help="Revision of a Hugging Face id.")] = "",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that a model brings along.")] = False,
) -> None:
    """Hide numbers in a long text and ask the model for them."""
    from ropewalk.data.text import read_text
    from ropewalk.errors import ArgumentError
    from ropewalk.evaluation.identity import identity
    from ropewalk.evaluation.reader import Reader
    from ropewalk.hub.fingerprint import describe
    from ropewalk.hub.loading import load_model
    from ropewalk.hub.plan import Plan
    from ropewalk.patching.handle import handle_of
    from ropewalk.patching.input_limits import check_reach, reach
    from ropewalk.tasks.needle import NeedleTask

    saved = Plan.from_pretrained(plan) if plan else None
    haystack = read_text(text)
    loaded, tokenizer = load_model(model, revision=revision or None, trust_remote_code=trust_remote_code)
    about = describe(loaded)
    tokens = length or about["original_length"]
    if not tokens:
        raise ArgumentError("length", length, "give it in tokens; the model's config doesn't tell its training length")
    check_reach(model, reach(loaded), "length", tokens, tokens)
    task = NeedleTask(
        haystack,
        tokens,
        depths=depths,
        protocol=protocol,
        setting=setting,
        seed=seed,
    )
    task.prompts(tokenizer, min(prompts, 1))  # what can't be built is refused before anything is written
    console = plain_console()
    handle = handle_of(loaded)
    encoding = saved.encoding if saved else handle.encoding if handle else None
    content = None if encoding is None else encoding.to_dict()
    settings = {"model": identity(loaded, tokenizer), "encoding": content, "task": task.to_dict()}
    with saved.installed(loaded, when="always") if saved else nullcontext():
        answers = _answers(Reader(loaded, tokenizer), task, prompts, out, settings, console)
    _print(console, answers, f"{model}, {task.length:,} tokens, {'with' if saved else 'without'} a plan")


def _answers(reader: Any, task: Any, number: int, out: str, settings: dict[str, Any], console: Console) -> list[Any]:
    from ropewalk.evaluation.records import Store
    from ropewalk.evaluation.statistics import Answer

    found: list[Any] = []
    with Store(Path(out), settings) if out else nullcontext() as store:
        if store:
            tell_damage(console, store)
        known = {record["key"]: record for record in store.records()} if store else {}
        with console.status("reading") as status:
            for index in range(number):
                prompt = task.prompts(reader.tokenizer, 1, first=index)[0]
                status.update(f"prompt {index + 1} of {number}")
                if prompt.id in known:
                    found += [Answer.from_dict(a) for a in known[prompt.id]["answers"]]
                    continue
                began = time.monotonic()
                answers = reader.answers(prompt, task.setting)
                seconds = round(time.monotonic() - began, 2)
                if store:
                    plain = [answer.to_dict() for answer in answers]
                    store.append({"key": prompt.id, "seconds": seconds, "answers": plain})
                found += answers
    return found


def _print(console: Console, answers: list[Any], title: str) -> None:
    from ropewalk.report.summary import nll, right

    table = Table()
    for name in ("depth", "expected", "answered", "right", "NLL"):
        table.add_column(name)
    for answer in answers:
        mark = "yes" if answer.is_exact else "no"
        answered = " ".join(answer.generated.split())
        table.add_row(f"{answer.depth:.2f}", answer.expected, answered, mark, f"{answer.nll:.3f}")
    console.print(title)
    console.print(table)
    console.print(f"right: {right(answers)}; answer NLL: {nll(answers)} (95 % intervals)", markup=False)
