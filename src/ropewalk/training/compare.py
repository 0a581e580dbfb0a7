"""Encodings side by side: every one with every seed, one run after the other, all else equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.statistics import Estimate, mean_interval
from ropewalk.training.config import ModelSize, Recipe
from ropewalk.training.models import build_model, check_length, shape
from ropewalk.training.presets import check_names, named
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.runner import Result, data_facts, identity, joined, left_out, prepared, train
from ropewalk.training.tasks.base import SequenceTask
from ropewalk.training.trainer import Watch, check_processes


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was compared, and what has come out so far.

    Args:
        recipe: sizes and schedule of all runs.
        task: the task that they learn.
        names: encodings by short name, in the order asked for.
        seeds: how many; they are 0, 1, ...
        out: the folder, with a folder per encoding and seed.
        results: of the runs that are finished, in the order in which they were.
    """

    recipe: Recipe
    task: SequenceTask
    names: tuple[str, ...]
    seeds: int
    out: Path
    results: tuple[Result, ...] = ()

    def of(self, name: str) -> list[Result]:
        """An encoding's results, by seed."""
        return sorted((r for r in self.results if r.encoding == name), key=lambda r: r.seed)

    def estimate(self, name: str) -> Estimate | None:
        """The mean of an encoding's metric with its t-interval over seeds, of a single seed the whole line.

        None without any seed, or when one isn't a number.
        """
        values = [r.value for r in self.of(name)]
        numbers = [value for value in values if value is not None]
        return mean_interval(numbers, range(len(numbers))) if numbers and len(numbers) == len(values) else None

    def mean(self, name: str) -> float | None:
        """The mean of an encoding's metric over its seeds; None where there is no estimate."""
        found = self.estimate(name)
        return None if found is None else found.mean

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready, but for the folder."""
        return {
            "task": self.task.to_dict(),
            **data_facts(self.task),
            "left_out": list(left_out(self.task)),
            "recipe": self.recipe.to_dict(),
            "metric": self.task.metric,
            "results": [dataclasses.asdict(r) for name in self.names for r in self.of(name)],
            "means": {name: self.mean(name) for name in self.names},
            "intervals": {name: _bounds(self.estimate(name)) for name in self.names},
        }


def _bounds(found: Estimate | None) -> tuple[float, float] | None:
    return (found.low, found.high) if found is not None and found.is_clustered else None


def check(comparison: Comparison, use_cpu: bool = False) -> None:
    """Refuse what can't be trained before anything is written: names, sizes, GPUs, and folders of other runs."""
    check_names(comparison.names)
    if comparison.seeds < 1:
        raise ArgumentError("seeds", comparison.seeds, "give an integer of 1 or more")
    recipe, task = comparison.recipe, comparison.task
    check_processes(recipe, use_cpu)
    for name in comparison.names:
        chosen = named(name, shape(recipe.model, task.longest))
        check_length(chosen, recipe.model, task.longest)
        if chosen.drop is not None:
            chosen.drop.drop_step(recipe.steps)
        for seed in range(comparison.seeds):
            RunFolder.of(comparison.out, name, seed).check(identity(recipe, task, chosen, seed))
    check_fit(recipe.model, comparison.names, task.longest)


def check_fit(size: ModelSize, names: Sequence[str], longest: int) -> None:
    """Refuse encodings that can't be installed at a model's sizes, tried on one of a single layer."""
    one_layer = dataclasses.replace(size, layers=1)
    for name in names:
        build_model(one_layer, 8, longest, named(name, shape(size, longest)), seed=0)


def compare(
    comparison: Comparison,
    watch: Watch | None = None,
    use_cpu: bool = False,
    done: Callable[[Comparison], None] | None = None,
    ready: Callable[[], None] | None = None,
) -> Comparison:
    """Train every encoding with every seed; finished runs are read, a killed one goes on.

    All runs of a seed come before those of the next, so that a comparison that is stopped early has all encodings. In
    a distributed run all processes call this.

    Args:
        comparison: what to compare.
        watch: who is told of the progress.
        use_cpu: whether to leave GPUs alone.
        done: called in the first process after each run, with the results so far.
        ready: called in the first process when the data are read, before the first run.

    Raises:
        ArgumentError: as `check` and `train` say.
    """
    check_processes(comparison.recipe, use_cpu)
    state = joined(use_cpu)
    with state.main_process_first():  # the others find the first one's cache, and a text that it has fetched
        check(comparison, use_cpu)
        data = prepared(comparison.task, comparison.recipe)
    if ready is not None and state.is_main_process:
        ready()
    for seed in range(comparison.seeds):
        for name in comparison.names:
            result = train(comparison.recipe, data, name, seed, comparison.out, watch, use_cpu)
            comparison = dataclasses.replace(comparison, results=(*comparison.results, result))
            if done is not None and state.is_main_process:
                done(comparison)
    return comparison
