"""A training run in its folder, whatever it starts from: begun, gone on with after a kill, finished once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.provenance import provenance
from ropewalk.training.course import Course
from ropewalk.training.data import Clock
from ropewalk.training.folder import RunFolder
from ropewalk.training.trainer import Curve, SequenceTrainer, Watch, arguments, started_processes

# Between the seeds of two processes, so that no run's second process draws what another run's first does.
_OTHER_PROCESS = 1_000_003


class Run:
    """What is trained, where and how; a subclass says what it starts from and what came out.

    Args:
        name: what the progress display calls it.
        folder: where it goes.
        about: what makes it this run and no other, JSON-ready.
        course: steps, batches, learning rates.
        seed: of data order and dropout.
        metric: what the curve is judged by, `accuracy` or `nll`.
    """

    def __init__(self, name: str, folder: RunFolder, about: dict[str, Any], course: Course, seed: int, metric: str):
        self.name, self.folder, self.about = name, folder, about
        self.course, self.seed, self.metric = course, seed, metric

    def build(self, args: TrainingArguments, watch: Watch | None) -> SequenceTrainer:
        """The model in its trainer, ready for the first step. Nothing is written before: refusals belong here."""
        raise NotImplementedError

    def begun(self) -> None:
        """Called in the first process, when the folder is this run's and before the first step."""

    def judge(self, trainer: SequenceTrainer, curve: Curve, watch: Watch | None) -> dict[str, Any]:
        """What came out, JSON-ready, with the keys `value`, the metric on the test part, and `seconds`."""
        raise NotImplementedError

    def tokenizer(self) -> Any:
        """What is saved beside the model to make its tokens; None for nothing."""
        return None


def joined(use_cpu: bool) -> PartialState:
    """The processes of this run; refuses processes that would each train alone, into one folder."""
    # With FSDP, accelerate would have transformers load weights in the first process alone; here each one measures with
    # its own before they are cut into shards.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    state = PartialState(cpu=True) if use_cpu else PartialState()
    if started_processes() > state.num_processes:
        remedy = f"without a GPU each of the {started_processes()} processes would train alone; add --cpu"
        raise ArgumentError("cpu", use_cpu, remedy)
    return state


def finished(run: Run, watch: Watch | None = None, use_cpu: bool = False) -> dict[str, Any]:
    """Train to the end, or go on where an earlier call was stopped; a finished run is only read.

    All processes of a distributed run call this; the first one writes, in a folder that all of them see.

    Args:
        run: what is trained.
        watch: who is told of the progress.
        use_cpu: whether to leave GPUs alone.

    Returns:
        What `run.judge` told, and what it needs beside it to be believed.

    Raises:
        ArgumentError: the folder holds another run, or what `run.build` refuses.
    """
    run.folder.check(run.about)
    args = arguments(run.course, run.folder.path, run.seed, use_cpu)
    result, checkpoint = run.folder.result(), run.folder.last_checkpoint()
    _wait_for_all(args)  # nobody writes before everybody has looked
    watch = watch if args.process_index == 0 else None
    if result is None:
        with _calm():
            result = _trained(run, args, checkpoint, watch)
    _wait_for_all(args)
    if watch is not None:
        watch.ended(run.name, result["value"], result["seconds"])
    return result


def _trained(
    run: Run, args: TrainingArguments, checkpoint: tuple[Path, int] | None, watch: Watch | None
) -> dict[str, Any]:
    """From the first step, or from a checkpoint, to the result in the folder."""
    trainer = run.build(args, watch)
    if args.process_index:  # the Trainer seeds all processes alike, and dropout would drop the same in each
        torch.manual_seed(run.seed + _OTHER_PROCESS * args.process_index)
    with run.folder.alone() if args.process_index == 0 else contextlib.nullcontext():
        return _to_the_end(run, trainer, checkpoint, watch)


def _to_the_end(
    run: Run, trainer: SequenceTrainer, checkpoint: tuple[Path, int] | None, watch: Watch | None
) -> dict[str, Any]:
    step = checkpoint[1] if checkpoint else 0
    is_first = trainer.args.process_index == 0
    points = _begin(run, checkpoint) if is_first else []
    last = points[-1] if points else {"seconds": 0.0, "stepping": 0.0, "waiting": 0.0}
    trainer.clock = Clock(last["stepping"], last["waiting"])
    curve = Curve(trainer, run.folder, run.metric, step, last["seconds"], watch)
    trainer.add_callback(curve)
    if watch is not None:
        watch.began(run.name, step, run.course.steps)
    trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
    result = run.judge(trainer, curve, watch) | {"run": run.about} | provenance()
    _save_model(trainer, run)
    if is_first:
        run.folder.finish(result)
    return result


def _begin(run: Run, checkpoint: tuple[Path, int] | None) -> list[dict[str, Any]]:
    """The folder made ready to go on after a checkpoint; the curve so far."""
    if run.folder.result() is not None or run.folder.last_checkpoint() != checkpoint:
        raise ArgumentError("out", str(run.folder.path), "another process has just written to it; start again")
    run.folder.begin(run.about)
    run.begun()
    return run.folder.cut_curve(checkpoint[1] if checkpoint else 0)


def _save_model(trainer: SequenceTrainer, run: Run) -> None:
    """The trained model with its encoding, for `ropewalk.load`; a sharded one is put together first."""
    whole: Any = trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.model)
    whole.config.use_cache = True
    if trainer.args.process_index == 0:
        whole.save_pretrained(run.folder.model, state_dict=weights)
        tokenizer = run.tokenizer()
        if tokenizer is not None:
            tokenizer.save_pretrained(run.folder.model)


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """No bars and advice from transformers, for which there is a progress display."""
    from transformers.utils import logging

    own: Any = logging
    level, has_bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity_error()
    own.disable_progress_bar()
    try:
        yield
    finally:
        own.set_verbosity(level)
        if has_bars:
            own.enable_progress_bar()


def _wait_for_all(args: Any) -> None:
    if args.world_size > 1:
        args.distributed_state.wait_for_everyone()
