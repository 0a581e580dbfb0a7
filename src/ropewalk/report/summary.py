"""What a run of the main job found, in words and tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.evaluation.candidates import Candidate, is_remap
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


HEADER = ("encoding", "answers right", "answer NLL, nats per token", "against the best of the search")
BREAKS_HEADER = ("tokens", "answers right, plain", "answer NLL, plain")
SEARCH_HEADER = ("prompts", "answers right", "answer NLL")  # after the column of names
SHORT_COST = (
    'Mean nats per token of held-out text (lower is better); the plan can be installed with `when="long"`, which keeps '
    "short inputs plain."
)


def final_rows(outcome: Outcome) -> list[Row]:
    """The judgement on fresh prompts, a row an arm; first, for comparison, the plain model at its training length."""
    best, at = _best(outcome), outcome.at_original
    rows = [Row(f"plain at {outcome.job.original_length:,} tokens, its training length", right(at), nll(at), "")]
    for arm in _arms(outcome):
        answers = outcome.final[arm.name]
        against = "" if arm == best else difference(outcome.against(arm, best))
        rows.append(Row(arm.name, right(answers), nll(answers), against))
    return rows


def search_rows(found: Sequence[tuple[Candidate, Sequence[Answer]]]) -> list[tuple[str, str, str, str]]:
    """The search on its own prompts, best first: name, prompts, answers right, NLL."""
    return [(c.name, str(len({a.prompt for a in answers})), right(answers), nll(answers)) for c, answers in found]


def verdict(outcome: Outcome) -> str:
    """Which encoding is saved, what it gains on plain and on the best of the other family, and whether DoPE adds."""
    winner, plain = outcome.winner, outcome.plain
    assert winner is not None and plain is not None
    prompts = len({a.prompt for a in outcome.final[winner.name]})
    said = [
        f"{winner.name} is saved. On {prompts} prompts that no choice had seen it answers {_share(outcome, winner)}"
    ]
    gain = outcome.against(winner, plain)
    how = "better than plain" if gain.is_better else "worse than plain" if gain.is_worse else "not told from plain"
    said[0] += f", plain {_share(outcome, plain)}: {how} beyond chance (answer NLL {difference(gain)})."
    if gain.is_worse:
        said.append("Use neither at this length.")
    rival = outcome.other if winner != outcome.other else outcome.best
    if rival is not None and rival != winner:
        said.append(f"Against {rival.name}, {_kind(rival)}: {_told(outcome.against(winner, rival))}.")
    return " ".join([*said, _dope_verdict(outcome)])


def _dope_verdict(outcome: Outcome) -> str:
    """Whether DoPE adds to the best rule or remap."""
    best, dope = _best(outcome), outcome.best_dope
    if dope is None:
        return "DoPE plans weren't tried; a larger --budget, or --dope always, tries them."
    if dope.name not in outcome.final:
        ahead = difference(outcome.in_search())
        return (
            f"No DoPE plan tried was ahead of {best.name} in the search (the best, {dope.name}: answer NLL {ahead}), "
            "so none was judged."
        )
    gain = outcome.against(dope, best)
    figures = f"answer NLL {difference(gain)}"
    if outcome.winner == dope:
        return f"Without DoPE, {best.name} is behind it beyond chance ({figures})."
    if gain.is_better and not is_gain(gain):
        return f"{dope.name} is better by less than {LEAST_GAIN} nats, too little to matter ({figures})."
    if gain.is_better:
        assert outcome.plain is not None and outcome.winner is not None
        said, against_plain = (
            f"{dope.name} is better than {best.name} ({figures}), but",
            outcome.against(dope, outcome.plain),
        )
        if is_gain(against_plain):
            ahead = difference(outcome.against(outcome.winner, dope))
            return f"{said} {outcome.winner.name} is better than it ({ahead}) beyond chance."
        return f"{said} not than plain ({difference(against_plain)}) beyond chance."
    return f"No DoPE plan tried is better than {best.name} beyond chance (the best of them, {dope.name}: {figures})."


def _told(paired: PairedDifference) -> str:
    """'better beyond chance (answer NLL -0.1 [-0.2, -0.0])'."""
    how = "better" if paired.is_better else "worse" if paired.is_worse else "no difference"
    return f"{how} beyond chance (answer NLL {difference(paired)})"


def _share(outcome: Outcome, arm: Candidate) -> str:
    """'7 of 10 right'."""
    answers = outcome.final[arm.name]
    return f"{sum(a.is_exact for a in answers)} of {len(answers)} right"


def _kind(candidate: Candidate) -> str:
    return "the best remap" if is_remap(candidate.encoding) else "the best length rule"


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
    prompts = len({a.prompt for a in outcome.final[_best(outcome).name]})
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
    return (
        "Length rules and remaps, best first; those that were dropped earlier have fewer prompts.",
        f"DoPE plans on top of {_best(outcome).name}, best first.",
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
    arms = [outcome.plain, outcome.best, outcome.other, outcome.best_dope]
    return [arm for arm in arms if arm is not None and arm.name in outcome.final]


def _best(outcome: Outcome) -> Candidate:
    assert outcome.best is not None
    return outcome.best
