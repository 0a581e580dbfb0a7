"""The main job: how far does a model read, and which length rule and DoPE plan make it read further?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ropewalk.data.splits import split_text
from ropewalk.data.text import Text, draw_window
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.evaluation.budget import Clock, unit_seconds
from ropewalk.evaluation.calibration import calibrate
from ropewalk.evaluation.candidates import (
    Candidate,
    dope_candidates,
    is_remap,
    plain_candidate,
    rotation_to_stretch,
    serving_scope,
)
from ropewalk.evaluation.halving import halve
from ropewalk.evaluation.identity import content_hash
from ropewalk.evaluation.likelihood import short_cost, short_lengths
from ropewalk.evaluation.needle_count import NeedleCount, fitting_counts, needle_count
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.records import Store
from ropewalk.evaluation.remaps import search_candidates
from ropewalk.evaluation.statistics import Answer, PairedDifference, paired_difference
from ropewalk.evaluation.sweep import Done, Sweep, mean_nll
from ropewalk.tasks.needle import NeedleTask, Wording

# Shares of the time that is left after the first measurements.
RULES_SHARE, DOPE_SHARE = 0.40, 0.27
DOPE_FIRST, FINAL_FIRST = 100, 1000
# DoPE is tried where there is time for its calibration and some plans, in measurements.
LEAST_DOPE_MEASUREMENTS = 6
DOPE = ("auto", "always", "never")
# Nats a token by which the plain model must be behind every other arm on the first fresh prompt, with nothing right,
# to be left out on the others: their time decides more.
HOPELESS = 1.0
# Nats a token. With many prompts even a difference that nobody would notice is beyond chance.
LEAST_GAIN = 0.01
MOST_FINAL_PROMPTS, LEAST_FINAL_MEASUREMENTS, LEAST_SEARCHED = 24, 6, 3


@dataclass(frozen=True)
class Job:
    """What is asked for: lengths in tokens, the budget in seconds.

    `dope` says whether DoPE plans are tried: `always`, `never`, or `auto`, where the budget has room for them.
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
    dope: str = "auto"

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
        if self.dope not in DOPE:
            raise unknown_name("dope", self.dope, DOPE)
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
            "wording": content_hash(dataclasses.asdict(Wording())),
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
    """All that was found; answers by candidate name. `job.depths` is as decided, if `needle_count` was.

    `best` is the best length rule or remap of the search; `other` the best of the other of the two families, if any was
    tried; `best_dope` the best DoPE plan on `best`, None where none was tried.
    """

    job: Job
    needle_count: NeedleCount | None = None
    at_original: list[Answer] = field(default_factory=list)
    rules: list[tuple[Candidate, list[Answer]]] = field(default_factory=list)
    dope: list[tuple[Candidate, list[Answer]]] = field(default_factory=list)
    final: dict[str, list[Answer]] = field(default_factory=dict)
    short: dict[str, dict[int, tuple[float, float, float]]] = field(default_factory=dict)
    plain: Candidate | None = None
    best: Candidate | None = None
    other: Candidate | None = None
    best_dope: Candidate | None = None
    winner: Candidate | None = None

    def against(self, one: Candidate, other: Candidate) -> PairedDifference:
        """The paired difference of two candidates on the final prompts that both have seen."""
        return _on_shared_prompts(self.final[one.name], self.final[other.name])

    def in_search(self) -> PairedDifference:
        """The paired difference of the best DoPE plan to what it is on, on the search's prompts that both have seen."""
        answers = {candidate.name: found for candidate, found in self.dope}
        assert self.best_dope is not None and self.best is not None
        return _on_shared_prompts(answers[self.best_dope.name], answers[self.best.name])


def _on_shared_prompts(one: Sequence[Answer], other: Sequence[Answer]) -> PairedDifference:
    shared = {a.prompt for a in one} & {a.prompt for a in other}
    return paired_difference([a for a in one if a.prompt in shared], [a for a in other if a.prompt in shared])


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
    tried = search_candidates(model, own, job.original_length, job.target_length, stretched)
    sweep.measure("rules", tried[:1], task, [0])
    unit = unit_seconds(store, "rules", tried[0].name)
    reserve = LEAST_FINAL_MEASUREMENTS * unit + short_cost_seconds(store, job)

    units = int((clock.left - reserve) * RULES_SHARE / unit)
    outcome.rules = halve(sweep, "rules", tried, task, max(LEAST_SEARCHED, units))
    outcome.best = outcome.rules[0][0]
    outcome.other = _best_of_other_family(outcome)
    if tries_dope(job, clock.left - reserve, unit, store):
        search_dope(sweep, model, tokenizer, search_text, clock.left - reserve, unit, outcome, on_start)

    arms = [plain, outcome.best, *([outcome.other] if outcome.other else [])]
    # A plan that is behind what it is on, on the prompts that chose it, isn't worth the judgement's time.
    arms += [outcome.best_dope] if outcome.best_dope and outcome.in_search().difference.mean < 0 else []
    judge(sweep, arms, job.task(final_text), clock, unit, short_cost_seconds(store, job), outcome)
    outcome.winner = decide(outcome)
    arms = [plain, outcome.winner]
    outcome.short = short_cost(model, tokenizer, held_out, job.original_length, arms, store, on_start)
    return outcome


def _best_of_other_family(outcome: Outcome) -> Candidate | None:
    """The best length rule where a remap is best, the best remap where a rule is; None if the search had none."""
    assert outcome.best is not None
    family = is_remap(outcome.best.encoding)
    return next((c for c, _ in outcome.rules if is_remap(c.encoding) != family), None)


def tries_dope(job: Job, left: float, unit: float, store: Store) -> bool:
    """Whether DoPE plans are tried; decided once, so that a run that goes on decides as the first one did."""
    key = f"decision/dope stage/{job.dope}/{job.budget:g}"
    known = next((record["tried"] for record in store.records() if record["key"] == key), None)
    if known is None:
        known = job.dope == "always" or (job.dope == "auto" and left >= LEAST_DOPE_MEASUREMENTS * unit)
        store.append({"key": key, "kind": "decision", "stage": "dope stage", "tried": known})
    return bool(known)


def search_dope(
    sweep: Sweep,
    model: nn.Module,
    tokenizer: Any,
    text: Text,
    left: float,
    unit: float,
    outcome: Outcome,
    on_start: Callable[[str, str, str], None],
) -> None:
    """Head statistics under the best rule or remap, and DoPE plans on it."""
    job, base = outcome.job, outcome.best
    assert base is not None
    statistics = calibrate(model, tokenizer, text, job.target_length, base, sweep.store, on_start)
    scope = serving_scope(model, base, statistics)
    plans = dope_candidates(base, statistics, job.original_length, scope=scope)
    units = int(left * DOPE_SHARE / (1 - RULES_SHARE) / unit)
    outcome.dope = halve(sweep, "dope", [base, *plans], job.task(text), max(LEAST_SEARCHED, units), DOPE_FIRST)
    outcome.best_dope = next(c for c, _ in outcome.dope if c is not base)


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

    The first arm, plain, is asked about the first prompt alone where that leaves it no hope. How many prompts there
    were is kept, so that a finished run stays as it is unless it is given more time.
    """
    store, budget = sweep.store, outcome.job.budget
    decisions = [r for r in store.records() if r["kind"] == "decision" and r["stage"] == "final"]
    decided = max((r["prompts"] for r in decisions if r["budget"] >= budget), default=0)
    outcome.final = {arm.name: [] for arm in arms}
    measured = 0
    for number in range(decided or MOST_FINAL_PROMPTS):
        asked = arms[1:] if number and is_hopeless(outcome) else arms
        known = decided or sweep.is_measured("final", asked, task, FINAL_FIRST + number)
        is_enough = measured >= LEAST_FINAL_MEASUREMENTS
        if is_enough and not known and clock.left < kept_back + unit * len(asked):
            break
        measured += len(asked)
        for name, answers in sweep.measure("final", asked, task, [FINAL_FIRST + number]).items():
            outcome.final[name] += answers
    key = f"decision/final/{budget:g}"
    if not store.has(key):
        prompts = len({answer.prompt for answer in outcome.final[arms[1].name]})
        store.append({"key": key, "kind": "decision", "stage": "final", "budget": budget, "prompts": prompts})


def is_hopeless(outcome: Outcome) -> bool:
    """Whether the plain model answered nothing of the first fresh prompt and is far behind every other arm there.

    Beyond chance among that prompt's answers too, as the verdict will rest on them: one answer can't show it.
    """
    assert outcome.plain is not None
    plain = outcome.final[outcome.plain.name]
    on_first = {name: [a for a in found if a.prompt == plain[0].prompt] for name, found in outcome.final.items()}
    mine = on_first.pop(outcome.plain.name)
    if any(a.is_exact for a in mine) or mean_nll(mine) <= max(map(mean_nll, on_first.values())) + HOPELESS:
        return False
    return all(is_gain(paired_difference(found, mine)) for found in on_first.values())


def decide(outcome: Outcome) -> Candidate:
    """What is saved: the best rule or remap of the search, unless another arm gains on it beyond chance.

    A DoPE plan must gain on plain too; where one does, the best of the other family must gain on that plan.
    """
    best, plain, dope, other = outcome.best, outcome.plain, outcome.best_dope, outcome.other
    assert best is not None and plain is not None
    judged = dope if dope is not None and dope.name in outcome.final else None
    winner = best
    if judged is not None and all(is_gain(outcome.against(judged, baseline)) for baseline in (best, plain)):
        winner = judged
    if other is not None and is_gain(outcome.against(other, winner)):
        winner = other
    return winner


def is_gain(difference: PairedDifference) -> bool:
    """Whether a difference is an improvement beyond chance, and large enough to matter."""
    return difference.is_better and difference.difference.mean <= -LEAST_GAIN


def short_cost_seconds(store: Store, job: Job) -> float:
    """What the cost on short inputs will take for two arms, judged by the first measurement."""
    tokens = sum(length * windows for length, windows in short_lengths(job.original_length).items())
    return 2 * unit_seconds(store, "at original length", "plain") * tokens / job.original_length
