"""What is picked on prompts of its own: the best length rule, and the best DoPE plan that Optuna finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.encodings.dope import READINGS
from ropewalk.errors import ArgumentError, RopewalkError
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cells
from ropewalk.evaluation.grid import Job
from ropewalk.evaluation.plans import Target, build_plan
from ropewalk.evaluation.sweep_config import PlanEntry, SweepConfig, dope_entry, needs_r
from ropewalk.patching.install import check_install

Measure = Callable[[Sequence[Candidate], Sequence[int]], None]

# What a search chooses from where the config doesn't say; rules are those of the config's plans.
SPACE: Mapping[str, tuple[Any, ...]] = {
    "mode": tuple(READINGS),
    "reading": tuple(reading for readings in READINGS.values() for reading in readings),
    "score": ("truncated_entropy", "truncated_effective_rank"),
    "r": (1, 8, 16, 32),
    "indicator": ("key", "query"),
    "heads": tuple(range(1, 11)),
    "factor": (None,),
}


@dataclass(frozen=True)
class Pick:
    """What was picked at one length of a model, on prompts that no comparison sees.

    rule: the best rule's name, or None without rules. plans: the best plan of a search, if there was one. tried:
    everything tried, best first, with its mean answer NLL; `prompts` is how many prompts of each task that is from,
    0 where a single rule needed no choice.
    """

    model: str
    length: int
    rule: str | None
    plans: tuple[Candidate, ...] = ()
    tried: tuple[tuple[str, float], ...] = ()
    prompts: int = 0


def best_of(rules: Sequence[Candidate], job: Job, cells: Cells, measure: Measure, indices: Sequence[int]) -> Pick:
    """The rule whose right answers are likeliest over all tasks; a single one is the best unmeasured."""
    if len(rules) < 2:
        return Pick(job.model, job.length, rules[0].name if rules else None)
    measure(rules, indices)
    ranked = sorted((mean_nll(rule, job, cells, indices), rule.name) for rule in rules)
    tried = tuple((name, nll) for nll, name in ranked)
    return Pick(job.model, job.length, ranked[0][1], tried=tried, prompts=len(indices))


def mean_nll(candidate: Candidate, job: Job, cells: Cells, indices: Sequence[int]) -> float:
    """What candidates are ranked by: the mean over tasks of the mean answer NLL, in nats a token."""
    means = []
    for entry in dict.fromkeys(entry.label for entry, _, _ in job.tasks):
        task = next(found for found, _, _ in job.tasks if found.label == entry)
        held = job.cells(cells, task, [candidate], indices)[candidate.name]
        means.append(sum(cell.nll for cell in held) / len(held))
    return sum(means) / len(means)


def search_plan(config: SweepConfig, target: Target, job: Job, measure: Measure, pick: Pick) -> Pick:
    """The pick with the best of `trials` plans that Optuna's TPE sampler proposes one after the other.

    Nothing is kept but the cells: the sampler is seeded, so a search that goes on proposes what it did before, and
    what those plans did is read from the folder.

    Raises:
        ArgumentError: optuna isn't installed, or no plan of the space can be had.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ArgumentError("search", "trials", "needs optuna; pip install 'ropewalk[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    indices = range(config.search.prompts)
    space = _space(config)
    found: dict[str, tuple[float, Candidate]] = {}
    refused = ""

    def objective(trial: Any) -> float:
        nonlocal refused
        proposed = _propose(trial, space)
        try:
            candidate = build_plan(proposed, target)
            check_install(target.model, candidate.encoding)
        except RopewalkError as error:  # a reading or a scope that this model can't have
            refused = str(error)
            raise optuna.TrialPruned from error
        measure([candidate], indices)
        nll = mean_nll(candidate, job, target.cells, indices)
        found.setdefault(candidate.name, (nll, candidate))
        return nll

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.search.seed))
    study.optimize(objective, n_trials=config.search.trials)
    if not found:
        raise RopewalkError(f"search: none of {config.search.trials} plans can be had here ({refused})")
    ranked = sorted(found.values(), key=lambda one: (one[0], one[1].name))
    tried = sorted([*pick.tried, *((plan.name, nll) for nll, plan in ranked)], key=lambda one: one[1])
    return dataclasses.replace(pick, plans=(ranked[0][1],), tried=tuple(tried), prompts=len(indices))


def _space(config: SweepConfig) -> dict[str, tuple[Any, ...]]:
    rules = [(plan.rule, plan.factor) for plan in config.plans if plan.rule is not None]
    own = {"rule": tuple(dict.fromkeys(rule for rule, _ in rules)) or (None,)}
    factors = tuple(dict.fromkeys(factor for _, factor in rules)) or (None,)
    return {**SPACE, **own, "factor": factors, **config.search.space}


def _propose(trial: Any, space: Mapping[str, tuple[Any, ...]]) -> PlanEntry:
    """A trial's plan; what depends on another choice (readings, r) is a parameter of its own for each."""

    def choose(name: str, values: Sequence[Any], called: str | None = None) -> Any:
        if len(values) == 1:
            return values[0]
        in_a_row = all(type(v) is int for v in values) and list(values) == list(range(values[0], values[-1] + 1))
        if in_a_row:
            return trial.suggest_int(called or name, values[0], values[-1])
        return trial.suggest_categorical(called or name, list(values))

    mode = choose("mode", space["mode"])
    readings = [reading for reading in space["reading"] if reading in READINGS[mode]] or list(READINGS[mode])
    score = choose("score", space["score"])
    data = {"mode": mode, "reading": choose("reading", readings, f"reading of {mode}"), "score": score}
    if needs_r(score):
        data["r"] = choose("r", space["r"])
    others = [name for name in space if name not in (*data, "rule", "factor", "r")]
    data |= {name: choose(name, space[name]) for name in others}
    rule = choose("rule", space["rule"])
    factor = None if rule is None else choose("factor", space["factor"])
    return PlanEntry(rule, factor, dope_entry(data, "search.space"))
