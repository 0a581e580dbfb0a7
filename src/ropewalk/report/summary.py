"""What a run of the main job found, in words and tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.provenance import made_with
from ropewalk.evaluation.score import (
    Answer,
    Estimate,
    PairedDifference,
    mean_interval,
    proportion_interval,
)
from ropewalk.extend import LEAST_GAIN, Outcome, is_gain
from ropewalk.report.rounded import ALIKE, rounded, signed


@dataclass(frozen=True)
class Row:
    """One candidate's line of a table; the last column is empty for the candidate compared with."""

    name: str
    right: str
    nll: str
    against: str

    def cells(self) -> tuple[str, str, str, str]:
        """The row as text."""
        return self.name, self.right, self.nll, self.against


HEADER = ("encoding", "answers right", "answer NLL, nats a token", "against the best rule")
BREAKS_HEADER = ("tokens", "answers right, plain", "answer NLL, plain")
SEARCH_HEADER = ("prompts", "answers right", "answer NLL")  # after the column of names
SHORT_COST = (
    'Mean nats a token of held-out text (lower is better); the plan can be installed with `when="long"`, which keeps '
    "short inputs plain."
)


def final_rows(outcome: Outcome) -> list[Row]:
    """The judgement on fresh prompts, a row an arm."""
    rows = []
    for arm in _arms(outcome):
        answers = outcome.final[arm.name]
        is_reference = arm == outcome.best_rule
        against = "" if is_reference else difference(outcome.against(arm, _best_rule(outcome)))
        rows.append(Row(arm.name, right(answers), nll(answers), against))
    return rows


def search_rows(found: Sequence[tuple[Candidate, Sequence[Answer]]]) -> list[tuple[str, str, str, str]]:
    """The search on its own prompts, best first: name, prompts, answers right, NLL."""
    return [(c.name, str(len({a.prompt for a in answers})), right(answers), nll(answers)) for c, answers in found]


def verdict(outcome: Outcome) -> str:
    """One sentence: is a DoPE plan better than the best length rule, beyond chance? And what is saved."""
    rule, dope = _best_rule(outcome), outcome.best_dope
    assert dope is not None and outcome.plain is not None
    rule_gain = outcome.against(rule, outcome.plain)
    if rule_gain.is_better:
        over = f"the rule itself is better than plain beyond chance ({difference(rule_gain)})"
    elif rule_gain.is_worse:
        over = f"the rule is worse than plain beyond chance ({difference(rule_gain)}): use neither at this length"
    else:
        over = f"nor is the rule better than plain beyond chance ({difference(rule_gain)})"
    if dope.name not in outcome.final:
        return (
            f"No DoPE plan tried was ahead of the best length rule, {rule.name}, in the search (the best of them, "
            f"{dope.name}: answer NLL {difference(outcome.in_search())}), so none was judged; {over}; the rule is "
            "saved."
        )
    gain = outcome.against(dope, rule)
    prompts = len({a.prompt for a in outcome.final[rule.name]})
    figures = f"answer NLL {difference(gain)} on {prompts} prompts that no choice had seen"
    if outcome.winner == dope:
        return f"{dope.name} is better than the best length rule, {rule.name}, beyond chance ({figures}): it is saved."
    if gain.is_better and not is_gain(gain):
        return (
            f"{dope.name} is better than the best length rule, {rule.name}, beyond chance ({figures}), but by less "
            f"than {LEAST_GAIN} nats, too little to matter; the rule is saved."
        )
    if gain.is_better:
        return (
            f"{dope.name} is better than the best length rule, {rule.name} ({figures}), but not than plain "
            f"({difference(outcome.against(dope, outcome.plain))}) beyond chance; the rule is saved."
        )
    return (
        f"No DoPE plan tried is better than the best length rule, {rule.name}, beyond chance (the best of them, "
        f"{dope.name}: {figures}); {over}; the rule is saved."
    )


def evidence(outcome: Outcome) -> dict[str, Any]:
    """The judgement as JSON-ready figures, to be kept inside a plan."""
    return {
        name: {
            "prompts": len({a.prompt for a in answers}),
            "exact": proportion_interval([a.is_exact for a in answers], [a.prompt for a in answers]).to_dict(),
            "nll": mean_interval([a.nll for a in answers], [a.prompt for a in answers]).to_dict(),
        }
        for name, answers in outcome.final.items()
    } | {"verdict": verdict(outcome)}


def title(outcome: Outcome, model: dict[str, Any]) -> str:
    """Which model, from which length to which."""
    job = outcome.job
    return f"{model.get('name') or 'The model'}: from {job.original_length:,} to {job.target_length:,} tokens"


def setup(outcome: Outcome) -> str:
    """How it was measured, and what the brackets are."""
    job = outcome.job
    return (
        f"Needles: {job.protocol} protocol, {job.setting} setting, {job.depths} depths, text {job.text.name}. "
        "Brackets are 95 % intervals; haystacks, not questions, count as independent."
    )


def few_prompts(outcome: Outcome) -> str:
    """A warning where the intervals are of little use; else nothing."""
    prompts = len({a.prompt for a in outcome.final["plain"]})
    return (
        ""
        if prompts >= 5
        else f"With {prompts} haystacks the intervals are wide; a larger `--budget` buys more prompts."
    )


def where_it_breaks(outcome: Outcome) -> list[tuple[str, str, str]]:
    """The plain model at its training length and past it, a row each; see BREAKS_HEADER."""
    job, beyond = outcome.job, outcome.final["plain"]
    at_original = outcome.at_original
    return [
        (f"{job.original_length:,} (training length)", right(at_original), nll(at_original)),
        (f"{job.target_length:,}", right(beyond), nll(beyond)),
    ]


def short_header(outcome: Outcome) -> tuple[str, ...]:
    """The columns of the cost on short inputs: lengths."""
    lengths = next(iter(outcome.short.values()))
    return ("encoding", *(f"{length:,} tokens" for length in lengths))


def short_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The cost on short inputs, a row an arm."""
    rows = []
    for name, by_length in outcome.short.items():
        cells = [
            f"{mean:.3f}" if low == float("-inf") else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
            for mean, low, high in by_length.values()
        ]
        rows.append((name, *cells))
    return rows


def search_titles(outcome: Outcome) -> tuple[str, str]:
    """What stands above the table of rules, and above that of DoPE plans."""
    beneath = (outcome.dope_rule or _best_rule(outcome)).name
    return (
        "Length rules, best first, then plain; those that were dropped earlier have fewer prompts.",
        f"DoPE plans on top of {beneath}, best first.",
    )


def facts(outcome: Outcome, model: dict[str, Any]) -> dict[str, str]:
    """What else than the command decides the figures."""
    text = outcome.job.text
    return {
        "seed": f"{outcome.job.seed}; text: {text.name}, SHA-256 {text.fingerprint[:16]}",
        "model fingerprint": str(model.get("fingerprint"))[:16],
        **made_with(),
    }


def right(answers: Sequence[Answer]) -> str:
    """'7 of 10 [0.35, 0.93]'."""
    share = proportion_interval([a.is_exact for a in answers], [a.prompt for a in answers])
    return f"{sum(a.is_exact for a in answers)} of {len(answers)} [{share.low:.2f}, {share.high:.2f}]{_mark(share)}"


def nll(answers: Sequence[Answer]) -> str:
    """'0.24 [0.11, 0.37]'."""
    estimate = mean_interval([a.nll for a in answers], [a.prompt for a in answers])
    # A t-interval of few haystacks can reach below 0, where no NLL is.
    estimate = dataclasses.replace(estimate, low=max(0.0, estimate.low))
    return f"{estimate.mean:.3f} {_interval(estimate)}"


def difference(paired: PairedDifference) -> str:
    """'-0.350 [-0.410, -0.290]'."""
    return f"{signed(paired.difference.mean)} {_interval(paired.difference)}"


def _interval(estimate: Estimate) -> str:
    if math.isinf(estimate.high):
        return ALIKE if estimate.is_clustered else "[one value: no interval]"
    return f"[{rounded(estimate.low)}, {rounded(estimate.high)}]{_mark(estimate)}"


def _mark(estimate: Estimate) -> str:
    return "" if estimate.is_clustered else " within one haystack"


def _arms(outcome: Outcome) -> list[Candidate]:
    arms = [outcome.plain, outcome.best_rule, outcome.best_dope]
    return [arm for arm in arms if arm is not None and arm.name in outcome.final]


def _best_rule(outcome: Outcome) -> Candidate:
    assert outcome.best_rule is not None
    return outcome.best_rule
