"""A whole sweep, told top-down: for each model and length build the plans, pick, measure, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.data.text import Text, draw_window, read_text
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.as_saved import AsSaved, as_saved
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.comparison import Comparison, compare
from ropewalk.evaluation.grid import Engine, Job, Unit, check_prompts, job_of
from ropewalk.evaluation.identity import identity, prompts_a_draw, reference
from ropewalk.evaluation.plans import Target, build_plan, check_plans, distinct
from ropewalk.evaluation.search import Pick, best_of, search_plan
from ropewalk.evaluation.sweep_config import PLAIN, ModelEntry, SweepConfig
from ropewalk.hub.loading import load_model
from ropewalk.patching.input_limits import check_reach, encoding_reach
from ropewalk.patching.install import check_install
from ropewalk.tasks.base import REPORT_FIRST


class Watch:
    """What a sweep tells whoever watches; nobody does."""

    def calibrating(self, model: str, length: int) -> None:
        """Head statistics are being measured, in one pass."""

    def expect(self, units: Sequence[Unit], cells: Cells) -> None:
        """These units come next."""

    def start(self, unit: Unit) -> None:
        """A unit begins."""

    def done(self, unit: Unit, number: int, cell: Cell) -> None:
        """A cell is measured."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with what `as_saved` tells of it and its `identity`."""

    entry: ModelEntry
    model: Any
    tokenizer: Any
    saved: AsSaved
    identity: Mapping[str, str | None]


@dataclass
class Outcome:
    """All that a report tells of a sweep."""

    config: SweepConfig
    models: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    cells: dict[tuple[str, str, int], dict[str, list[Cell]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def run_sweep(
    config: SweepConfig, cells: Cells, engine_of: Callable[[Loaded], Engine], watch: Watch | None = None
) -> Outcome:
    """Measure whatever of a config isn't in the folder yet, and compare all of it.

    What picks (the best rule, a search's plans) sees prompts of its own; the comparisons see the others only.

    Raises:
        ArgumentError: a model, plan, task or length that can't be had; of a model nothing has been measured then.
    """
    watch = watch or Watch()
    outcome = Outcome(config)
    text = read_text(config.calibration) if _calibrates(config) else None
    if text is not None:
        outcome.texts[text.name] = text.fingerprint
    for entry in config.models:
        model, tokenizer = load_model(entry.name, dtype=entry.dtype, revision=entry.revision)
        saved = as_saved(model, entry.name)
        loaded = Loaded(entry, model, tokenizer, saved, identity(model, tokenizer))
        check_plans(config, entry.name, loaded.saved)
        outcome.models.append(loaded.saved.about)
        jobs = [_checked(config, loaded, length, text) for length in config.lengths]
        targets = [_target(config, loaded, length, text, cells, watch) for length in config.lengths]
        engine = engine_of(loaded)
        for job, target in zip(jobs, targets, strict=True):
            _run_length(config, job, target, engine, watch, outcome)
        del model, loaded, jobs, targets, engine, target  # before the next one needs the room
    return outcome


def report_indices(config: SweepConfig) -> range:
    """The prompts that plans are compared on."""
    return range(REPORT_FIRST, REPORT_FIRST + config.prompts)


def _run_length(config: SweepConfig, job: Job, target: Target, engine: Engine, watch: Watch, outcome: Outcome) -> None:
    cells = target.cells
    built = [(entry, build_plan(entry, target)) for entry in config.plans]
    rules = distinct([plan for entry, plan in built if entry.is_rule])
    candidates = distinct([plan for _, plan in built])
    for candidate in candidates:  # refused before anything is measured
        check_install(target.model, candidate.encoding)

    def measure(plans: Sequence[Candidate], indices: Sequence[int]) -> None:
        units = job.units(plans, indices)
        watch.expect(units, cells)
        engine.run(units)

    search = range(config.search.prompts)
    pick = best_of(rules, job, cells, measure, search)
    if config.search.trials:
        pick = search_plan(config, target, job, measure, pick)
        candidates = distinct([*candidates, *pick.plans])
    pick = _called(pick, rules, candidates)
    outcome.picks.append(pick)
    measure(candidates, report_indices(config))
    names = {plan.name for plan in candidates}
    baselines = [name for name in (PLAIN, pick.rule) if name in names]
    draws = {reference(content): prompts_a_draw(content) for content in job.task_contents()}
    for entry in config.tasks:
        condition = job.condition(entry)
        found = job.cells(cells, entry, candidates, report_indices(config))
        outcome.comparisons.append(compare(condition, found, baselines, draws))
        outcome.cells[condition.model, condition.task, condition.length] = found
    for _, _, task in job.tasks:
        content = task.to_dict()
        for about in (content.get("text"), content.get("problems")):
            if isinstance(about, dict):
                outcome.texts[about["name"]] = about["fingerprint"]


def _called(pick: Pick, rules: Sequence[Candidate], candidates: Sequence[Candidate]) -> Pick:
    """The pick, its rule by its name among the candidates: a saved plan of the same encoding has a name of its own."""
    rule = next((rule for rule in rules if rule.name == pick.rule), None)
    if rule is None:
        return pick
    return dataclasses.replace(pick, rule=next(c.name for c in candidates if c.encoding == rule.encoding))


def _calibrates(config: SweepConfig) -> bool:
    return config.search.trials > 0 or any(plan.dope is not None for plan in config.plans)


def _checked(config: SweepConfig, loaded: Loaded, length: int, text: Text | None) -> Job:
    """The job of one length, after making sure that the model's positions, prompts and calibration text reach it."""
    check_reach(loaded.entry.name, encoding_reach(loaded.saved.encoding), "lengths", length, length)
    job = job_of(config, loaded.entry.name, {"name": loaded.saved.about["name"], **loaded.identity}, length)
    check_prompts(job, loaded.tokenizer, report_indices(config))
    if config.search.trials or len([plan for plan in config.plans if plan.is_rule]) > 1:
        check_prompts(job, loaded.tokenizer, range(config.search.prompts))
    if text is not None:
        draw_window(text, loaded.tokenizer, length, 0.0)
    return job


def _target(config: SweepConfig, loaded: Loaded, length: int, text: Text | None, cells: Cells, watch: Watch) -> Target:
    original = config.original_length or loaded.saved.about["original_length"]
    if not original:
        remedy = f"{loaded.entry.name} doesn't tell its training length; give it in tokens"
        raise ArgumentError("original_length", None, remedy)

    def calibrating() -> None:
        watch.calibrating(loaded.entry.name, length)

    return Target(
        loaded.model, loaded.tokenizer, loaded.saved, loaded.identity, original, length, text, cells, calibrating
    )
