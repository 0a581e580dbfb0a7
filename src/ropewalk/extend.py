"""The main job: how far does a model read, and which length rule and DoPE plan make it read further?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.budget import Clock, unit_seconds
from ropewalk.evaluation.calibration import calibrate
from ropewalk.evaluation.candidates import (
    Candidate,
    dope_candidates,
    plain_candidate,
    rotation_to_stretch,
    rule_candidates,
    serving_scope,
)
from ropewalk.evaluation.halving import halve
from ropewalk.evaluation.likelihood import short_cost, short_lengths
from ropewalk.evaluation.needle_count import NeedleCount, fitting_counts, needle_count
from ropewalk.evaluation.read import Reader
from ropewalk.evaluation.remaps import is_rotation, remap_candidates
from ropewalk.evaluation.score import Answer, PairedDifference, paired_difference
from ropewalk.evaluation.store import Store
from ropewalk.evaluation.sweep import Done, Sweep
from ropewalk.evaluation.text_parts import split_text
from ropewalk.tasks.haystack import Text, draw_window
from ropewalk.tasks.needle import NeedleTask

# Shares of the time that is left after the first measurements.
RULES_SHARE, DOPE_SHARE = 0.40, 0.27
DOPE_FIRST, FINAL_FIRST = 100, 1000
# The position remaps come after so many rules and factors: they take longer, having no kernel of torch's.
REMAPS_AT = 6
# Nats a token. With many prompts even a difference that nobody would notice is beyond chance.
LEAST_GAIN = 0.01
MOST_FINAL_PROMPTS, LEAST_FINAL_MEASUREMENTS = 24, 6


@dataclass(frozen=True)
class Job:
    """What is asked for: lengths in tokens, the budget in seconds.

    `depths` 0 lets the model decide how many needles a haystack has (`needle_count`); with the protocol `single`, whose
    haystacks have one each, it is 10 depths.
    """

    target_length: int
    original_length: int
    text: Text
    setting: str = "original"
    protocol: str = "multi"
    depths: int = 0
    seed: int = 0
    budget: float = 1800.0
    noise_tokens: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.original_length, int) or self.original_length < 1:
            remedy = "give the training length in tokens; the model's config doesn't tell it"
            raise ArgumentError("original_length", self.original_length, remedy)
        if self.target_length <= self.original_length:
            raise ArgumentError(
                "length",
                self.target_length,
                f"must be above the training length, {self.original_length} tokens",
            )
        if self.budget <= 0:
            raise ArgumentError("budget", self.budget, "must be above 0 seconds")
        if self.protocol == "single" and self.depths == 0:
            object.__setattr__(self, "depths", 10)

    def settings(self, model: Mapping[str, Any], identity: Mapping[str, str | None]) -> dict[str, Any]:
        """What must be the same for a run to go on, `model` being what `describe` tells; the budget may grow."""
        return {
            "model": {name: model[name] for name in ("name", "revision", "fingerprint")} | dict(identity),
            "text": self.text.to_dict(),
            "target_length": self.target_length,
            "original_length": self.original_length,
            "setting": self.setting,
            "protocol": self.protocol,
            "depths": self.depths,
            "seed": self.seed,
            "noise_tokens": self.noise_tokens,
        }

    def task(self, text: Text, length: int | None = None) -> NeedleTask:
        """The needle task on a part of the text, at the target length unless another is given."""
        return NeedleTask(
            text,
            length or self.target_length,
            depths=self.depths,
            protocol=self.protocol,
            setting=self.setting,
            seed=self.seed,
            noise_tokens=self.noise_tokens,
        )

    def count_task(self, text: Text) -> NeedleTask:
        """The task that decides the number of needles; its depths are a placeholder."""
        job = dataclasses.replace(self, depths=1, setting="original")
        return job.task(text, self.original_length // 2)


@dataclass
class Outcome:
    """All that was found; answers by candidate name. `job.depths` is as decided, if `needle_count` was."""

    job: Job
    needle_count: NeedleCount | None = None
    at_original: list[Answer] = field(default_factory=list)
    rules: list[tuple[Candidate, list[Answer]]] = field(default_factory=list)
    dope: list[tuple[Candidate, list[Answer]]] = field(default_factory=list)
    final: dict[str, list[Answer]] = field(default_factory=dict)
    short: dict[str, dict[int, tuple[float, float, float]]] = field(default_factory=dict)
    plain: Candidate | None = None
    best_rule: Candidate | None = None
    dope_rule: Candidate | None = None
    best_dope: Candidate | None = None
    winner: Candidate | None = None

    def against(self, one: Candidate, other: Candidate) -> PairedDifference:
        """The paired difference of two candidates on the final prompts."""
        return paired_difference(self.final[one.name], self.final[other.name])

    def in_search(self) -> PairedDifference:
        """The paired difference of the best DoPE plan to its rule, on the search's prompts that both have seen."""
        answers = {candidate.name: found for candidate, found in self.dope}
        assert self.best_dope is not None and self.dope_rule is not None
        plan, rule = answers[self.best_dope.name], answers[self.dope_rule.name]
        shared = {a.prompt for a in plan} & {a.prompt for a in rule}
        return paired_difference([a for a in plan if a.prompt in shared], [a for a in rule if a.prompt in shared])


def extend(
    model: nn.Module,
    tokenizer: Any,
    job: Job,
    store: Store,
    on_start: Callable[[str, str, str], None] = lambda *_: None,
    on_done: Callable[[Done], None] = lambda _: None,
    saved: RoPE | PerLayer | None = None,
    on_needle_count: Callable[[NeedleCount], None] = lambda _: None,
) -> Outcome:
    """Measure the model at and past its training length, search rules and DoPE plans, and judge on fresh prompts.

    The search uses the first part of the text, the judgement the second, the cost on short inputs the third: no
    choice has seen what it is judged on. Everything measured is in `store`, the head statistics in a file beside
    it; a run that was stopped goes on there.

    `saved` is the rotation that the model was saved with and that `as_saved` took off it; None for its architecture's.
    `on_needle_count` is called when the number of needles is decided.
    """
    clock = Clock(job.budget, sum(r.get("seconds", 0.0) for r in store.records()))
    search_text, final_text, held_out = prepared_text(job, tokenizer)
    sweep = Sweep(Reader(model, tokenizer), store, on_start, on_done)
    own, stretched = rotation_to_stretch(model, job.original_length, saved)
    plain = plain_candidate(own)
    job, count = decided(job, sweep, plain, search_text, on_needle_count)
    task = job.task(search_text)
    outcome = Outcome(job, count, plain=plain)

    at_original = sweep.measure("at original length", [plain], job.task(search_text, job.original_length), [0])
    outcome.at_original = at_original["plain"]
    beyond = sweep.measure("rules", [plain], task, [0])
    unit = unit_seconds(store, "rules", "plain")
    reserve = 2 * unit + short_cost_seconds(store, job)

    rules = rule_candidates(own, job.original_length, job.target_length, stretched)
    rules[REMAPS_AT:REMAPS_AT] = remap_candidates(model, own, job.original_length, job.target_length, stretched)
    units = int((clock.left - reserve) * RULES_SHARE / unit)
    found = halve(sweep, "rules", rules, task, max(3, units))
    outcome.rules = [*found, (plain, beyond["plain"])]
    outcome.best_rule = found[0][0]
    # DoPE takes rotations away, so it needs a rule on one rotation; a remap has several.
    rule = next(c for c, _ in found if is_rotation(c.encoding))
    outcome.dope_rule = rule

    statistics = calibrate(model, tokenizer, search_text, job.target_length, rule, store, on_start)
    scope = serving_scope(model, rule, statistics)
    plans = dope_candidates(rule, statistics, job.original_length, scope=scope)
    units = int((clock.left - reserve) * DOPE_SHARE / (1 - RULES_SHARE) / unit)
    outcome.dope = halve(sweep, "dope", [rule, *plans], task, max(3, units), DOPE_FIRST)
    outcome.best_dope = next(c for c, _ in outcome.dope if c is not rule)

    arms = [plain, outcome.best_rule]
    # A plan that is behind its rule on the prompts that chose it isn't worth the judgement's time.
    arms += [outcome.best_dope] if outcome.in_search().difference.mean < 0 else []
    judge(sweep, arms, job.task(final_text), clock, unit, short_cost_seconds(store, job), outcome)
    outcome.winner = decide(outcome)
    arms = [plain, outcome.winner]
    outcome.short = short_cost(model, tokenizer, held_out, job.original_length, arms, store, on_start)
    return outcome


def decided(
    job: Job, sweep: Sweep, plain: Candidate, text: Text, on_needle_count: Callable[[NeedleCount], None]
) -> tuple[Job, NeedleCount | None]:
    """The job with its number of needles, and how that was decided; a job that tells it stays as it is."""
    if job.depths != 0:
        return job, None
    count = needle_count(sweep, plain, job.count_task(text))
    on_needle_count(count)
    return dataclasses.replace(job, depths=count.count), count


def prepared_text(job: Job, tokenizer: Any) -> tuple[Text, Text, Text]:
    """The text's three parts, after making sure that every kind of prompt can be cut from them.

    Raises ArgumentError for anything in the job that would stop it later.
    """
    parts = split_text(job.text, tokenizer, job.target_length, job.original_length)
    search_text, final_text, held_out = parts
    if job.depths == 0:
        fitting = fitting_counts(job.count_task(search_text), tokenizer)
        job = dataclasses.replace(job, depths=max(fitting))
    job.task(search_text, job.original_length).prompts(tokenizer, 1)
    job.task(search_text).prompts(tokenizer, 1)
    job.task(final_text).prompts(tokenizer, 1, first=FINAL_FIRST)
    draw_window(held_out, tokenizer, job.original_length, 0.0)
    return parts


def judge(
    sweep: Sweep,
    arms: Sequence[Candidate],
    task: NeedleTask,
    clock: Clock,
    unit: float,
    kept_back: float,
    outcome: Outcome,
) -> None:
    """Measure the arms on prompts that no choice has seen: as many as the time allows, but six measurements at least.

    How many there were is kept, so that a finished run stays as it is unless it is given more time.
    """
    store, budget = sweep.store, outcome.job.budget
    decisions = [r for r in store.records() if r["kind"] == "decision" and r["stage"] == "final"]
    decided = max((r["prompts"] for r in decisions if r["budget"] >= budget), default=0)
    outcome.final = {arm.name: [] for arm in arms}
    for number in range(decided or MOST_FINAL_PROMPTS):
        known = decided or sweep.is_measured("final", arms, task, FINAL_FIRST + number)
        if number >= LEAST_FINAL_MEASUREMENTS // len(arms) and not known and clock.left < kept_back + unit * len(arms):
            break
        for name, answers in sweep.measure("final", arms, task, [FINAL_FIRST + number]).items():
            outcome.final[name] += answers
    key = f"decision/final/{budget:g}"
    if not store.has(key):
        prompts = len({answer.prompt for answer in outcome.final[arms[0].name]})
        store.append({"key": key, "kind": "decision", "stage": "final", "budget": budget, "prompts": prompts})


def decide(outcome: Outcome) -> Candidate:
    """DoPE where it gains on its rule, and on plain, beyond chance; else the rule."""
    assert outcome.best_dope is not None and outcome.best_rule is not None and outcome.plain is not None
    baselines = outcome.best_rule, outcome.plain
    if outcome.best_dope.name not in outcome.final:
        return outcome.best_rule
    if all(is_gain(outcome.against(outcome.best_dope, baseline)) for baseline in baselines):
        return outcome.best_dope
    return outcome.best_rule


def is_gain(difference: PairedDifference) -> bool:
    """Whether a difference is an improvement beyond chance, and large enough to matter."""
    return difference.is_better and difference.difference.mean <= -LEAST_GAIN


def short_cost_seconds(store: Store, job: Job) -> float:
    """What the cost on short inputs will take for two arms, judged by the first measurement."""
    tokens = sum(length * windows for length, windows in short_lengths(job.original_length).items())
    return 2 * unit_seconds(store, "at original length", "plain") * tokens / job.original_length
