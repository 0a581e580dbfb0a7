"""One training run: an encoding, a seed and a recipe, from the first step to the figures on the test set."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ropewalk.evaluation.provenance import machine, versions
from ropewalk.tasks.sequences import SequenceTask
from ropewalk.training.data import Clock, Collator, Rows, rows_of
from ropewalk.training.figures import Figures, finite
from ropewalk.training.folder import RunFolder
from ropewalk.training.models import build_model, own_parameters, shape
from ropewalk.training.named import Named, named
from ropewalk.training.recipe import Recipe
from ropewalk.training.trainer import Curve, SequenceTrainer, Watch, arguments


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

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """Out of a result.json, whatever else is in it."""
        return cls(**{f.name: data.get(f.name) for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Data:
    """A task and the rows of its splits, the same for all runs of a comparison."""

    task: SequenceTask
    rows: dict[str, Rows]


def prepared(task: SequenceTask, recipe: Recipe) -> Data:
    """A task's splits, as much of each as the recipe wants; ArgumentError for data that can't be used."""
    most = {"train": None, "validation": recipe.validation, "test": recipe.test}
    return Data(task, {split: rows_of(task.dataset(split), split, count) for split, count in most.items()})


def identity(recipe: Recipe, task: SequenceTask, chosen: Named, seed: int) -> dict[str, Any]:
    """What makes a run this one and no other, JSON-ready."""
    return {**chosen.to_dict(), "task": task.to_dict(), "recipe": recipe.identity(), "seed": seed}


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

    The run is in OUT/ENCODING/seed-N. All processes of a distributed run call this; the first one writes, in a folder
    that all of them see.

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
    folder = RunFolder(out, name, seed)
    about = identity(recipe, data.task, chosen, seed)
    folder.check(about)
    args = arguments(recipe, folder.path, seed, use_cpu)
    finished, checkpoint = folder.result(), folder.last_checkpoint()
    _wait_for_all(args)  # nobody writes before everybody has looked
    is_first = args.process_index == 0
    watch = watch if is_first else None
    if finished is not None:
        return _told(Result.from_dict(finished), watch)
    with _calm():
        trainer = _trainer(recipe, data, chosen, args, callbacks)
        points = _start(folder, about, checkpoint[1] if checkpoint else 0) if is_first else []
        last = points[-1] if points else {"seconds": 0.0, "stepping": 0.0, "waiting": 0.0}
        trainer.clock = Clock(last["stepping"], last["waiting"])
        curve = Curve(trainer, folder, data.task.metric, last["seconds"], watch)
        trainer.add_callback(curve)
        if watch is not None:
            watch.began(_run_name(name, seed), checkpoint[1] if checkpoint else 0, recipe.steps)
        model: Any = trainer.model
        sizes = {"parameters": model.num_parameters(), "own_parameters": own_parameters(model)}
        trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
        result = _result(trainer, curve, data.task, name, seed, sizes)
        _save_model(trainer, folder)
    if is_first:
        folder.finish(dataclasses.asdict(result) | {"run": about, "versions": versions(), "machine": machine()})
    _wait_for_all(args)
    return _told(result, watch)


def _trainer(
    recipe: Recipe, data: Data, chosen: Named, args: TrainingArguments, callbacks: tuple[TrainerCallback, ...]
) -> SequenceTrainer:
    """The model with its encoding, in a Trainer."""
    task = data.task
    model: Any = build_model(recipe.model, task.vocabulary_size, task.longest, chosen, args.seed)
    model.config.use_cache = False  # while it trains: a cache of each batch would be made for nothing
    collator = Collator(task.padding, task.vocabulary_size)
    dropping = [] if chosen.drop is None else [chosen.drop.callback()]
    return SequenceTrainer(
        model,
        recipe,
        data.rows,
        collator,
        args=args,
        eval_dataset=data.rows["validation"],
        callbacks=[*dropping, *callbacks],
    )


def _start(folder: RunFolder, about: dict[str, Any], step: int) -> list[dict[str, Any]]:
    """The folder made ready to go on after a step; the curve so far."""
    folder.begin(about)
    return folder.cut_curve(step)


def _result(
    trainer: SequenceTrainer, curve: Curve, task: SequenceTask, name: str, seed: int, sizes: dict[str, int]
) -> Result:
    found: Figures = trainer.figures("test")
    value = found.metric(task.metric)
    return Result(
        encoding=name,
        seed=seed,
        metric=task.metric,
        value=finite(value),
        test={key: finite(figure) for key, figure in dataclasses.asdict(found).items()},
        steps=trainer.state.global_step,
        seconds=round(curve.seconds, 3),
        waiting=round(trainer.clock.share, 5),
        diverged=curve.diverged,
        **sizes,
    )


def _save_model(trainer: SequenceTrainer, folder: RunFolder) -> None:
    """The trained model with its encoding, for `ropewalk.load`; a sharded one is put together first."""
    whole: Any = trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.model)
    whole.config.use_cache = True
    if trainer.args.process_index == 0:
        whole.save_pretrained(folder.model, state_dict=weights)


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


def _run_name(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


def _wait_for_all(args: Any) -> None:
    if args.world_size > 1:
        args.distributed_state.wait_for_everyone()


def _told(result: Result, watch: Watch | None) -> Result:
    if watch is not None:
        watch.ended(_run_name(result.encoding, result.seed), result.value, result.seconds)
    return result
