"""What a sweep measures: models x plans x tasks x lengths x seeds as units of work, each of them several cells."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ropewalk.data.text import DEMO, read_text
from ropewalk.errors import TooShortError
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.halves import WINDOWS, HalvedText, Windows
from ropewalk.evaluation.identity import cell_key, reference
from ropewalk.evaluation.prefix_sharing import SharedReading
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep_config import SweepConfig, TaskEntry
from ropewalk.patching import installed
from ropewalk.tasks.base import PromptTask
from ropewalk.tasks.many_shot import ManyShotTask
from ropewalk.tasks.needle import NeedleTask
from ropewalk.tasks.registry import reading_task
from ropewalk.tasks.tracking import TrackingTask


@dataclass(frozen=True)
class Measured:
    """What came out for one of a unit's candidates, by its number."""

    number: int
    answers: tuple[Answer, ...]
    seconds: float
    nll: float | None = None


@dataclass(frozen=True)
class Unit:
    """One prompt of a task for several plans of a model, which share the work that they can: a cell each.

    `of` are the references of each candidate's model, plan and task, `keys` the hashes of the cells; `contents` says
    what the references stand for, with a name: {(kind, reference): (name, content)}.
    """

    task: PromptTask | Windows
    index: int
    candidates: tuple[Candidate, ...]
    of: tuple[tuple[str, str, str], ...]
    keys: tuple[str, ...]
    contents: Mapping[tuple[str, str], tuple[str, Mapping[str, Any]]]
    name: str

    def put(self, cells: Cells, measured: Measured) -> Cell:
        """Write what came out for a candidate into the folder, and what it refers to."""
        number = measured.number
        for kind, name in zip(("model", "plan", "task"), self.of[number], strict=True):
            called, content = self.contents[kind, name]
            cells.define(kind, name, content, called)
        key, of = self.keys[number], self.of[number]
        return cells.put(key, of, self.index, measured.answers, measured.seconds, nll=measured.nll)


class Engine(Protocol):
    """Where units are measured."""

    def run(self, units: Sequence[Unit]) -> None:
        """Measure what isn't in the folder yet; on return every cell of every unit is."""
        ...


@dataclass(frozen=True)
class Condition:
    """A model, a task and a length: what plans are compared under, on the same prompts of all seeds."""

    model: str
    task: str
    length: int


@dataclass(frozen=True)
class Job:
    """The tasks of a config at one length, for one loaded model."""

    model: str
    content: Mapping[str, Any]
    length: int
    tasks: tuple[tuple[TaskEntry, int, PromptTask | Windows], ...]

    def condition(self, entry: TaskEntry) -> Condition:
        """What a task's cells are compared under."""
        return Condition(self.model, entry.label, self.length)

    def task_contents(self) -> list[dict[str, Any]]:
        """What each task is named by: all that its prompts depend on, JSON-ready."""
        return [{"task": entry.name, **task.to_dict()} for entry, _, task in self.tasks]

    def units(self, candidates: Sequence[Candidate], indices: Sequence[int]) -> list[Unit]:
        """A unit for each prompt, all tasks' first prompts first, so that every comparison grows evenly."""
        model = reference(self.content)
        plans = [candidate.encoding.to_dict() for candidate in candidates]
        names = [reference(plan) for plan in plans]
        contents: dict[tuple[str, str], tuple[str, Mapping[str, Any]]] = {("model", model): (self.model, self.content)}
        for name, candidate, plan in zip(names, candidates, plans, strict=True):
            contents["plan", name] = candidate.name, plan
        tasks = []
        for (entry, seed, task), content in zip(self.tasks, self.task_contents(), strict=True):
            tasks.append((entry, seed, task, reference(content)))
            contents["task", tasks[-1][-1]] = entry.label, content
        found = []
        for index in indices:
            for entry, seed, task, of_task in tasks:
                of = tuple((model, plan, of_task) for plan in names)
                keys = tuple(cell_key(*one, index) for one in of)
                name = f"{entry.label}, {self.length:,} tokens, seed {seed}, prompt {index}"
                found.append(Unit(task, index, tuple(candidates), of, keys, contents, name))
        return found

    def cells(
        self, cells: Cells, entry: TaskEntry, candidates: Sequence[Candidate], indices: Sequence[int]
    ) -> dict[str, list[Cell]]:
        """The measured cells of a task by candidate, over all seeds and these prompts."""
        found: dict[str, list[Cell]] = {candidate.name: [] for candidate in candidates}
        units = dataclasses.replace(self, tasks=tuple(t for t in self.tasks if t[0] == entry))
        for unit in units.units(candidates, indices):
            for candidate, key in zip(unit.candidates, unit.keys, strict=True):
                if key in cells.cells:
                    found[candidate.name].append(cells.cells[key])
        return found


def job_of(config: SweepConfig, model: str, content: Mapping[str, Any], length: int) -> Job:
    """The job of one length; raises ArgumentError for a task that can't be had at it.

    Args:
        model: what the user calls it.
        content: what its cells are named by: its own name and its `identity`.
    """
    seeds = config.seeds
    tasks = [(entry, seed, build_task(entry, length, seed, seeds)) for seed in seeds for entry in config.tasks]
    return Job(model, content, length, tuple(tasks))


def build_task(entry: TaskEntry, length: int, seed: int, seeds: Sequence[int]) -> PromptTask | Windows:
    """The task of an entry at a length, for one of the seeds.

    What chooses and what judges come from other halves of a source; of problems and windows, so do all seeds.
    """
    if entry.name == WINDOWS:
        read = {name: value for name, value in entry.options.items() if name != "text"}
        return Windows(read_text(entry.options.get("text", DEMO)), length, seeds.index(seed), len(seeds), **read)
    task = reading_task(entry.name, length, seed, entry.options)
    if isinstance(task, NeedleTask | TrackingTask) and task.text is not None:
        return HalvedText(task)
    return dataclasses.replace(task, seeds=tuple(seeds)) if isinstance(task, ManyShotTask) else task


def check_prompts(job: Job, tokenizer: Any, indices: Sequence[int]) -> None:
    """Build prompts of each task, so that one that can't be stops a sweep before it starts.

    Of most tasks the first and the last tell of all; many-shot problems are of all lengths, so each of theirs is built,
    and the error is of the prompt that needs the most room.
    """
    for _, _, task in job.tasks:
        short: list[TooShortError] = []
        for index in indices if isinstance(task, ManyShotTask) else {indices[0], indices[-1]}:
            try:
                if isinstance(task, Windows):
                    task.ids(tokenizer, index)
                else:
                    task.prompts(tokenizer, 1, first=index)
            except TooShortError as error:
                short.append(error)
        if short:
            raise max(short, key=lambda error: error.needed)


def measure_unit(reader: Reader, unit: Unit, numbers: Sequence[int]) -> Iterator[Measured]:
    """Measure some of a unit's candidates, by number; plans that agree in their first layers share them."""
    encodings = [unit.candidates[number].encoding for number in numbers]
    if isinstance(unit.task, Windows):
        ids = unit.task.ids(reader.tokenizer, unit.index)
        for number, encoding in zip(numbers, encodings, strict=True):
            began = time.monotonic()
            with installed(reader.model, encoding):
                nll = unit.task.nll(reader.model, ids, reader.tokenizer)
            yield Measured(number, (), time.monotonic() - began, nll)
        return
    prompt = unit.task.prompts(reader.tokenizer, 1, first=unit.index)[0]
    shared = SharedReading(reader.model, prompt.haystack_ids, encodings)
    for index in shared.order:
        began = time.monotonic()
        with installed(reader.model, encodings[index]):
            cache = shared.read(index)
            with shared.asking():
                answers = tuple(reader.questions(prompt, unit.task.setting, cache))
        del cache  # so that only its shared layers are there during the next reading
        yield Measured(numbers[index], answers, time.monotonic() - began)
