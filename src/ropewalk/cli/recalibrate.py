"""`ropewalk recalibrate`: another encoding, or another length, for a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ropewalk.cli.options import given_command, text_table
from ropewalk.cli.train import is_first_process, together

if TYPE_CHECKING:
    from ropewalk.training.recalibrate import Outcome, Recalibration


def recalibrate_model(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A Hugging Face id, a folder, a .gguf file, smollm2, or a run of `train`.")
    ],
    encoding: Annotated[
        str, typer.Option(help="pope, nope, ...; own: as it is; yarn, ntk, ...: its rotation with that length rule.")
    ],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")],
    length: Annotated[int, typer.Option(help="Tokens of each sequence.")],
    text: Annotated[str, typer.Option(help="A file, hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN], or kjv.")] = "kjv",
    factor: Annotated[float, typer.Option(help="Of a length rule; 0: LENGTH over the training length.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak; 0: 6e-5 for own and length rules, else 3e-4.")] = 0.0,
    warmup: Annotated[float, typer.Option(help="Steps of warm-up, or below 1 their fraction.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the data's order and of what the encoding draws.")] = 0,
    characters: Annotated[int, typer.Option(help="How many are read of the text at most.")] = 20_000_000,
    held_out: Annotated[
        int, typer.Option(help="Tokens of held-out text that a measurement reads at LENGTH, and as many past it.")
    ] = 32_768,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute layers again instead of keeping them: less memory.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the run, model/, summary.md, curves.png.")] = Path(
        "recalibrate-out"
    ),
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave GPUs alone.")] = False,
) -> None:
    """Put another encoding into a trained model, train it on, and measure what the swap cost and what came back.

    Under `torchrun` or `accelerate launch` all processes train together. Run it again to go on where it was stopped.
    """
    from ropewalk.training.recalibrate import Recalibration

    wanted = Recalibration(
        model=model,
        encoding=encoding,
        steps=steps,
        length=length,
        text=text,
        factor=factor or None,
        batch=batch,
        learning_rate=learning_rate or None,
        warmup=int(warmup) if warmup >= 1 and warmup.is_integer() else warmup,
        seed=seed,
        characters=characters,
        held_out=held_out,
        checkpointing=checkpointing,
    )

    from ropewalk.cli.steps import Steps
    from ropewalk.training.recalibrate import recalibrate

    command = given_command(ctx, "recalibrate", argument="model")
    with together(out) as console:
        with Steps(console, 1, "nll").shown() as watch:
            outcome = recalibrate(wanted, out, watch, cpu)
        if is_first_process():
            _report(console, wanted, outcome, out, command)


def _report(console: Console, wanted: Recalibration, outcome: Outcome, out: Path, command: str) -> None:
    from ropewalk.report.recalibration import header, held_out, rows, verdict, write_report

    write_report(wanted, outcome, out, command)
    title = f"nats a token of parts of the text that {held_out(outcome)}; 95 % intervals"
    console.print(text_table(header(wanted, outcome), rows(outcome), title))
    console.print(verdict(wanted, outcome), markup=False, highlight=False)
    console.print(
        f"Saved: {out}/model, {out}/result.json, {out}/summary.md, {out}/curves.png, {out}/report.html", markup=False
    )
