"""The command `ropewalk`: loads the command asked for, and turns every error into one line and an exit code.

Exit codes: 0 done, 1 a fault in ropewalk itself, 2 something the user can mend, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from ropewalk.errors import RopewalkError, unknown_name

# Every command: module:function, and what it is for in a list of all. `--help` imports all these modules, so their top
# imports nothing heavy: torch and transformers belong inside the function.
COMMANDS = {
    "extend": ("ropewalk.cli.extend:extend_model", "Make a trained model read further, and save how"),
    "train": ("ropewalk.cli.train:train_models", "Compare encodings by training models with them"),
    "recalibrate": ("ropewalk.cli.recalibrate:recalibrate_model", "Swap a trained model's encoding, train it on"),
    "inspect": ("ropewalk.cli.inspect:inspect_model", "See what each head does with position"),
    "sweep": ("ropewalk.cli.sweep:sweep_plans", "Compare many plans on the same prompts"),
    "needle": ("ropewalk.cli.needle:measure_needles", "Hide numbers in a long text, ask for them"),
    "perplexity": ("ropewalk.cli.perplexity:measure_perplexity", "Measure text past the training length"),
    "downstream": ("ropewalk.cli.downstream:measure_downstream", "Ask for the likelier sentence, the last word"),
    "lm-eval": ("ropewalk.cli.lm_eval:run_harness", "Run lm-evaluation-harness with a plan"),
    "list": ("ropewalk.cli.listing:list_names", "List encodings, rules, scores and tasks"),
}
# Commands that hand all their options, --help too, on to another program.
PASSED_ON = {"lm-eval"}
_AS_IT_IS = {"allow_extra_args": True, "ignore_unknown_options": True}

OK, FAULT, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

_DISK_REMEDIES = {
    errno.ENOSPC: "no room left on the disk; free some or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some room or choose another folder",
    errno.EACCES: "permission denied; choose a folder or file that you may use",
    errno.EPERM: "permission denied; choose a folder or file that you may use",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "no such file or folder; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "this is a folder, a file is wanted",
    errno.EEXIST: "there is a file in the way; choose another path",
}


@dataclass
class Settings:
    """What the options before the command set, for `main` and for the commands (as `ctx.obj`)."""

    debug: bool = False


class CommandTable(typer.core.TyperGroup):
    """The group of all commands, each built from `COMMANDS` when it is first needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; an unknown one is refused with the nearest known names."""
        if cmd_name not in COMMANDS:
            raise unknown_name("command", cmd_name, COMMANDS)
        place, purpose = COMMANDS[cmd_name]
        module, function = place.split(":")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        passed_on = cmd_name in PASSED_ON
        build = single.command(
            cmd_name,
            short_help=purpose,
            context_settings=_AS_IT_IS if passed_on else None,
            add_help_option=not passed_on,
        )
        build(getattr(importlib.import_module(module), function))
        return typer.main.get_command(single)


app = typer.Typer(cls=CommandTable, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ropewalk {importlib.metadata.version('ropewalk')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def options(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Positional encodings for Transformers, measured on your model.

    `ropewalk COMMAND --help` explains a command.
    """
    ctx.obj.debug = debug
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), file=sys.stderr)
        raise typer.Exit(USER_ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    settings = Settings()
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments), settings)
        sys.stdout.flush()
    except typer.Exit as finished:
        return finished.exit_code
    except BrokenPipeError:
        # The reader went away (`ropewalk list | head`); Python's flush at exit mustn't complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except KeyboardInterrupt:
        return _report("stopped; finished work is kept", INTERRUPTED, settings)
    except Exception as error:
        return _report(f"error: {_one_line(error)}", _exit_code(error), settings)
    return OK


def _run(arguments: list[str], settings: Settings) -> None:
    # Not through the command's own `main`, which would print usage errors and Ctrl-C in its own way.
    command = typer.main.get_command(app)
    with command.make_context("ropewalk", arguments, obj=settings) as ctx:
        command.invoke(ctx)


def _report(line: str, code: int, settings: Settings) -> int:
    """Print the line on stderr, with --debug after the traceback of the error at hand; return the code."""
    if settings.debug:
        traceback.print_exc()
    print(line, file=sys.stderr)
    return code


def _is_usage_error(error: Exception) -> bool:
    # typer has moved the class between packages; all its versions give it this method.
    return callable(getattr(error, "format_message", None))


def _exit_code(error: Exception) -> int:
    mendable = isinstance(error, (RopewalkError, OSError)) or _is_usage_error(error)
    return USER_ERROR if mendable else FAULT


def _one_line(error: Exception) -> str:
    """The error's text without line breaks, with a remedy where the error itself brings none."""
    if isinstance(error, OSError) and error.errno in _DISK_REMEDIES:
        place = f"{error.filename}: " if error.filename else ""
        text = place + _DISK_REMEDIES[error.errno]
    elif _is_usage_error(error):
        text = error.format_message()  # type: ignore[attr-defined]
    elif isinstance(error, (RopewalkError, OSError)):
        text = str(error) or type(error).__name__
    else:
        text = f"unexpected {type(error).__name__}: {error}; `ropewalk --debug ...` shows where"
    return " ".join(text.split())
