"""One training run from scratch: an encoding, a seed and a recipe, from the first step to the test set's figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ropewalk.evaluation.score import Estimate, proportion_interval
from ropewalk.tasks.sequences import SequenceTask
from ropewalk.training.course import Course
from ropewalk.training.data import Collator, Rows, rows_of
from ropewalk.training.figures import finite
from ropewalk.training.folder import RunFolder
from ropewalk.training.models import build_model, shape, sizes
from ropewalk.training.named import Named, named
from ropewalk.training.recipe import Recipe
from ropewalk.training.resumable import Run, finished
from ropewalk.training.spelling import spelling
from ropewalk.training.trainer import Curve, SequenceTrainer, Watch


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
