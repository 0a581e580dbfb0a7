"""`ropewalk sweep`: models x plans x tasks x lengths x seeds, measured, kept and compared."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ropewalk.cli.options import given_command, plain_console, prepared_folder, text_table

if TYPE_CHECKING:
    from ropewalk.evaluation.cells import Cells
    from ropewalk.evaluation.sweep_run import Outcome

ENGINES = ("local", "ray")
# Of damaged lines that many are named; the rest are counted.
_NAMED = 5
# Seconds between two looks of a further process at whether the first is still there.
_LOOK = 1.0


def sweep_plans(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="A YAML file; docs/sweep.md says what can be in it.")],
    out: Annotated[Path, typer.Option(help="Folder for cells, summary.md, summary.json and report.html.")] = Path(
        "sweep-out"
    ),
    engine: Annotated[str, typer.Option(help="local: on this machine; ray: spread over a Ray cluster.")] = "local",
    address: Annotated[str, typer.Option(help="For ray: host:port or auto; none: a cluster made here.")] = "",
    workers: Annotated[int, typer.Option(help="Processes that measure; 0: one, under ray one a machine.")] = 0,
) -> None:
    """Measure plans on prompts and compare them; what is finished is never measured again."""
    from ropewalk.errors import ArgumentError, unknown_name
    from ropewalk.evaluation.cells import Cells
    from ropewalk.evaluation.sweep_config import read_config
    from ropewalk.evaluation.sweep_run import run_sweep
    from ropewalk.report.sweep import write_report

    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if address and engine != "ray":
        raise ArgumentError("address", address, "is for --engine ray alone; leave it out")
    if workers < 0:
        raise ArgumentError("workers", workers, "must be 0 or more")
    wanted = read_config(config)
    command = given_command(ctx, "sweep", argument="config")
    console = plain_console()
    with Cells(out) as cells, contextlib.ExitStack() as stack:
        _tell_damage(console, cells)
        ray: Any = None
        if engine == "ray":
            from ropewalk.evaluation.ray_engine import connected

            ray = stack.enter_context(connected(address))
        prepared_folder(out)
        if ray is None and workers > 1:
            stack.enter_context(_others(config, out, workers))
        watch = stack.enter_context(_watch(console).shown())
        outcome = run_sweep(wanted, cells, _engine_of(ray, cells, workers, watch), watch)
        stack.close()
        write_report(outcome, cells, command, out)
        _print(console, outcome, out)


def _engine_of(ray: Any, cells: Cells, workers: int, watch: Any) -> Any:
    """What makes the engine for a loaded model."""
    from ropewalk.evaluation.local_engine import Local
    from ropewalk.evaluation.reader import Reader

    def make(loaded: Any) -> Any:
        if ray is None:
            return Local(Reader(loaded.model, loaded.tokenizer), cells, watch.start, watch.done)
        from ropewalk.evaluation.ray_engine import RayEngine

        return RayEngine(ray, loaded.entry, loaded.identity, cells, workers, watch.start, watch.done)

    return make


@contextlib.contextmanager
def _others(config: Path, out: Path, workers: int) -> Iterator[None]:
    """Further processes that run the same sweep in the same folder; they end with this one."""
    import torch

    threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    spawn = multiprocessing.get_context("spawn")
    given = config, out, threads, os.getpid()
    processes = [spawn.Process(target=_work, args=given, daemon=True) for _ in range(workers - 1)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(config: Path, out: Path, threads: int, parent: int) -> None:
    """One of several processes: whatever stops it, the first process meets too, and tells."""
    import torch

    from ropewalk.evaluation.cells import Cells
    from ropewalk.evaluation.local_engine import Local
    from ropewalk.evaluation.reader import Reader
    from ropewalk.evaluation.sweep_config import read_config
    from ropewalk.evaluation.sweep_run import run_sweep

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(Exception, KeyboardInterrupt), Cells(out) as cells:
        run_sweep(read_config(config), cells, lambda found: Local(Reader(found.model, found.tokenizer), cells))


def _end_with(parent: int) -> None:
    """End this process soon after its parent, also one that was killed; what is measured is on the disk by then."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _watch(console: Console) -> Any:
    from ropewalk.cli.sweep_watch import SweepWatch

    return SweepWatch(console)


def _tell_damage(console: Console, cells: Cells) -> None:
    for damage in cells.damaged[:_NAMED]:
        console.print(f"skipped: {damage}", soft_wrap=True)
    if len(cells.damaged) > _NAMED:
        console.print(f"skipped: {len(cells.damaged) - _NAMED} damaged lines more")
    if cells.damaged:
        lines = f"{len(cells.damaged)} damaged line{'s' * (len(cells.damaged) > 1)}"
        console.print(f"{lines} in all; what was there is measured again if it is wanted")


def _print(console: Console, outcome: Outcome, out: Path) -> None:
    from ropewalk.report.sweep import header, rows, title, verdict

    for comparison in outcome.comparisons:
        console.print(text_table(header(comparison), rows(comparison), title(comparison)))
    console.print(verdict(outcome))
    console.print(f"Saved: {out}/report.html, {out}/summary.md, {out}/summary.json; cells in {out}/cells")
