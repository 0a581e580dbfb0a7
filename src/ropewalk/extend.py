"""The main job: how far does a model read, and which length rule and DoPE plan make it read further?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
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
from ropewalk.evaluation.read import Reader
from ropewalk.evaluation.remaps import is_rotation, remap_candidates
from ropewalk.evaluation.score import Answer, PairedDifference, paired_difference
from ropewalk.evaluation.store import Store
from ropewalk.evaluation.sweep import Done, Sweep
from ropewalk.tasks.haystack import Text, characters_per_token, draw_window, text_of
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
    """What is asked for: lengths in tokens, the budget in seconds."""

    target_length: int
    original_length: int
    text: Text
    setting: str = "original"
    protocol: str = "multi"
    depths: int = 10
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


@dataclass
class Outcome:
    """All that was found; answers by candidate name."""

    job: Job
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


class Clock:
    """The budget: seconds spent, by earlier runs too, and seconds left."""

    def __init__(self, budget: float, spent_before: float):
        self._budget, self._spent_before, self._began = budget, spent_before, time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left of the budget; below 0 once it is overdrawn."""
        return self._budget - self._spent_before - (time.monotonic() - self._began)


def extend(
    model: nn.Module,
    tokenizer: Any,
    job: Job,
    store: Store,
    on_start: Callable[[str, str, str], None] = lambda *_: None,
    on_done: Callable[[Done], None] = lambda _: None,
    saved: RoPE | PerLayer | None = None,
) -> Outcome:
    """Measure the model at and past its training length, search rules and DoPE plans, and judge on fresh prompts.

    The search uses the first part of the text, the judgement the second, the cost on short inputs the third: no
    choice has seen what it is judged on. Everything measured is in `store`, the head statistics in a file beside
    it; a run that was stopped goes on there.

    `saved` is the rotation that the model was saved with and that `as_saved` took off it; None for its architecture's.
    """
    clock = Clock(job.budget, sum(r.get("seconds", 0.0) for r in store.records()))
    search_text, final_text, held_out = prepared_text(job, tokenizer)
    sweep = Sweep(Reader(model, tokenizer), store, on_start, on_done)
    own, stretched = rotation_to_stretch(model, job.original_length, saved)
    task = job.task(search_text)
    outcome = Outcome(job, plain=plain_candidate(own))
    assert outcome.plain is not None

    at_original = sweep.measure("at original length", [outcome.plain], job.task(search_text, job.original_length), [0])
    outcome.at_original = at_original["plain"]
    beyond = sweep.measure("rules", [outcome.plain], task, [0])
    unit = unit_seconds(store, "rules", "plain")
    reserve = 2 * unit + short_cost_seconds(store, job)

    rules = rule_candidates(own, job.original_length, job.target_length, stretched)
    rules[REMAPS_AT:REMAPS_AT] = remap_candidates(model, own, job.original_length, job.target_length, stretched)
    units = int((clock.left - reserve) * RULES_SHARE / unit)
    found = halve(sweep, "rules", rules, task, max(3, units))
    outcome.rules = [*found, (outcome.plain, beyond["plain"])]
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

    arms = [outcome.plain, outcome.best_rule]
    # A plan that is behind its rule on the prompts that chose it isn't worth the judgement's time.
    arms += [outcome.best_dope] if outcome.in_search().difference.mean < 0 else []
    judge(sweep, arms, job.task(final_text), clock, unit, short_cost_seconds(store, job), outcome)
    outcome.winner = decide(outcome)
    arms = [outcome.plain, outcome.winner]
    outcome.short = short_cost(model, tokenizer, held_out, job.original_length, arms, store, on_start)
    return outcome


def prepared_text(job: Job, tokenizer: Any) -> tuple[Text, Text, Text]:
    """The text's three parts, after making sure that every kind of prompt can be cut from them.

    Raises ArgumentError for anything in the job that would stop it later.
    """
    parts = split_text(job.text, tokenizer, job)
    search_text, final_text, held_out = parts
    job.task(search_text, job.original_length).prompts(tokenizer, 1)
    job.task(search_text).prompts(tokenizer, 1)
    job.task(final_text).prompts(tokenizer, 1, first=FINAL_FIRST)
    draw_window(held_out, tokenizer, job.original_length, 0.0)
    return parts


def split_text(text: Text, tokenizer: Any, job: Job) -> tuple[Text, Text, Text]:
    """Three parts of a text: for the search, for the judgement, and for the cost on short inputs.

    Raises ArgumentError when the text is too short to give each its own.
    """
    per_token = 1.25 * characters_per_token(text.text, tokenizer)
    size = len(text.text)
    last = max(int(0.1 * size), int(job.original_length * per_token) + 2000)
    half = (size - last) // 2
    if half < job.target_length * per_token + 2000:
        needed = int(2 * job.target_length + job.original_length + 4000 / per_token)
        found = int(size / per_token)
        remedy = (
            f"has about {found:,} tokens but {needed:,} are needed (two parts of {job.target_length:,} and one of "
            f"{job.original_length:,}, so that nothing is judged on what chose it); give a longer text"
        )
        raise ArgumentError("text", text.name, remedy)
    parts = text.text[:half], text.text[half : 2 * half], text.text[2 * half :]
    first, second, third = (text_of(part, f"{text.name}, part {i + 1} of 3") for i, part in enumerate(parts))
    return first, second, third


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


def unit_seconds(store: Store, stage: str, candidate: str) -> float:
    """Seconds of one measurement, from the first one made."""
    return next(
        float(r["seconds"])
        for r in store.records()
        if r.get("kind") == "answers" and r["stage"] == stage and r["candidate"] == candidate
    )


def short_cost_seconds(store: Store, job: Job) -> float:
    """What the cost on short inputs will take for two arms, judged by the first measurement."""
    tokens = sum(length * windows for length, windows in short_lengths(job.original_length).items())
    return 2 * unit_seconds(store, "at original length", "plain") * tokens / job.original_length
