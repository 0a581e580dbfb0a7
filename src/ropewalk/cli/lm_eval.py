"""`ropewalk lm-eval`: lm-evaluation-harness, in which any model can have a plan."""

from __future__ import annotations

import sys

import typer

from ropewalk.errors import ArgumentError


def run_harness(ctx: typer.Context) -> None:
    """Run lm-evaluation-harness with the model `ropewalk`, whose arguments take a plan; all options are its own.

    ropewalk lm-eval run --model ropewalk --model_args pretrained=MODEL,plan=DIR --tasks TASKS
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        from ropewalk.evaluation.lm_eval import register
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == "ropewalk":
            raise
        remedy = f"isn't there ({error}); pip install 'ropewalk[harness]'"
        raise ArgumentError("lm-eval", "lm_eval", remedy) from error
    register()
    # The harness reads the process's own command line.
    before = sys.argv
    sys.argv = ["lm-eval", *ctx.args]
    try:
        cli_evaluate()
    except SystemExit as finished:
        raise typer.Exit(finished.code if isinstance(finished.code, int) else int(bool(finished.code))) from finished
    finally:
        sys.argv = before
