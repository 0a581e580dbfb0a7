"""One training run from scratch: an encoding, a seed and a recipe, from the first step to the test set's figures."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.provenance import provenance
from ropewalk.evaluation.statistics import Estimate, proportion_interval
from ropewalk.training.batches import Clock, Collator, Rows, rows_of
from ropewalk.training.config import Course, Recipe
from ropewalk.training.metrics import finite
from ropewalk.training.models import build_model, shape, sizes, spelling
from ropewalk.training.presets import Named, named
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.tasks.base import SequenceTask
from ropewalk.training.trainer import Curve, SequenceTrainer, Watch, arguments, started_processes


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of a run.

    Args:
        encoding: its short name.
        seed: of weights and data order.
        metric: what the task is judged by, `accuracy` or `nll`.
        value: the metric on the test set; None when it isn't a number.
        test: all figures on the test set.
        steps: the steps trained: fewer than the recipe's when it diverged.
        parameters: numbers that the model learned; `own_parameters` of them the encoding's.
        seconds: the time of the whole run, evaluation included.
        waiting: the share of the steps' time that was spent waiting for data, 0 to 1.
        diverged: the step at which the loss was no longer a number, if it was.
    """

    encoding: str
    seed: int
    metric: str
    value: float | None
    test: dict[str, float | None]
    steps: int
    parameters: int
    own_parameters: int
    seconds: float
    waiting: float
    diverged: int | None = None

    @property
    def interval(self) -> Estimate | None:
        """An accuracy with Wilson's interval over the test sequences; None for nats, whose spread isn't kept."""
        if self.metric != "accuracy" or self.value is None:
            return None
        count = int(self.test["sequences"] or 0)
        right = round(self.value * count)
        return proportion_interval([i < right for i in range(count)], [0] * count)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """Out of a result.json, whatever else is in it."""
        return cls(**{f.name: data.get(f.name) for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Data:
    """A task and the rows of its splits, the same for all runs of a comparison."""

    task: SequenceTask
    rows: dict[str, Rows]


def prepared(task: SequenceTask, course: Course) -> Data:
    """A task's splits, as much of each as the course wants; ArgumentError for data that can't be used."""
    most = {"train": None, "validation": course.validation, "test": course.test}
    return Data(task, {split: rows_of(task.dataset(split), split, count) for split, count in most.items()})


def identity(recipe: Recipe, task: SequenceTask, chosen: Named, seed: int) -> dict[str, Any]:
    """What makes a run this one and no other, JSON-ready; a rate for what an encoding learns counts where one does."""
    learns = next(chosen.encoding.module().parameters(), None) is not None
    course = recipe.identity() if learns else dataclasses.replace(recipe, own_rate=1.0).identity()
    return {**chosen.to_dict(), "task": task.to_dict(), **data_facts(task), "recipe": course, "seed": seed}


def data_facts(task: SequenceTask) -> dict[str, str]:
    """`{"data_sha256": ...}` for a task that reads a file, a folder or a text; nothing for others."""
    found = getattr(task, "sha256", None)
    return {} if found is None else {"data_sha256": found}


def left_out(task: SequenceTask) -> tuple[str, ...]:
    """A line for each file of a task's folder that can't be used; none for tasks that read no folder."""
    found: tuple[str, ...] = getattr(task, "problems", ())
    return found


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


class _FromScratch(Run):
    """A model of a recipe's sizes, with new weights."""

    course: Recipe

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        chosen: Named,
        seed: int,
        out: Path,
        callbacks: tuple[TrainerCallback, ...],
    ):
        folder, about = RunFolder.of(out, chosen.name, seed), identity(recipe, data.task, chosen, seed)
        super().__init__(f"{chosen.name}, seed {seed}", folder, about, recipe, seed, data.task.metric)
        self._data, self._chosen, self._callbacks = data, chosen, callbacks
        self._sizes: dict[str, int] = {}

    def build(self, args: TrainingArguments, watch: Watch | None) -> SequenceTrainer:
        task, rows = self._data.task, self._data.rows
        model: Any = build_model(self.course.model, task.vocabulary_size, task.longest, self._chosen, self.seed)
        model.config.use_cache = False  # while it trains: a cache of each batch would be made for nothing
        self._sizes = sizes(model)
        dropping = [] if self._chosen.drop is None else [self._chosen.drop.callback()]
        return SequenceTrainer(
            model,
            self.course,
            rows,
            Collator(task.padding, task.vocabulary_size),
            args=args,
            eval_dataset=rows["validation"],
            callbacks=[*dropping, *self._callbacks],
        )

    def judge(self, trainer: SequenceTrainer, curve: Curve, watch: Watch | None) -> dict[str, Any]:
        found = trainer.figures("test")
        result = Result(
            encoding=self._chosen.name,
            seed=self.seed,
            metric=self.metric,
            value=finite(found.metric(self.metric)),
            test={key: finite(figure) for key, figure in dataclasses.asdict(found).items()},
            steps=trainer.state.global_step,
            seconds=round(curve.seconds, 3),
            waiting=round(trainer.clock.share, 5),
            diverged=curve.diverged,
            **self._sizes,
        )
        return dataclasses.asdict(result)

    def tokenizer(self) -> Any:
        return spelling(self._data.task)


# Between the seeds of two processes, so that no run's second process draws what another run's first does.
_OTHER_PROCESS = 1_000_003


def train(
    recipe: Recipe,
    data: Data,
    name: str,
    seed: int,
    out: Path,
    watch: Watch | None = None,
    use_cpu: bool = False,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> Result:
    """Train a model with an encoding, or go on where an earlier call was stopped; a finished run is only read.

    The run is in OUT/ENCODING/seed-N. All processes of a distributed run call this.

    Args:
        recipe: sizes and schedule.
        data: the task with its rows, from `prepared`.
        name: the encoding's short name.
        seed: of weights, data order and dropout.
        out: the comparison's folder.
        watch: who is told of the progress.
        use_cpu: whether to leave GPUs alone.
        callbacks: further callbacks for the Trainer.

    Raises:
        ArgumentError: the folder holds another run, the sizes don't fit the encoding, or the data can't be used.
    """
    chosen = named(name, shape(recipe.model, data.task.longest))
    return Result.from_dict(finished(_FromScratch(recipe, data, chosen, seed, out, callbacks), watch, use_cpu))


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
