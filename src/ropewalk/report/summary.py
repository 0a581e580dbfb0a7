"""What a run of the main job found, in words and tables."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.evaluation.candidates import Candidate, is_remap
from ropewalk.evaluation.extend import LEAST_GAIN, Outcome, is_gain
from ropewalk.evaluation.provenance import made_with
from ropewalk.evaluation.statistics import (
    Answer,
    Estimate,
    PairedDifference,
    mean_interval,
    proportion_interval,
)
from ropewalk.report.kit.format import ALIKE, rounded, signed


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
FEW_PROMPTS = 5  # with fewer, the intervals are wide
_RULES = {
    "linear": "linear interpolation",
    "ntk": "NTK",
    "dynamic_ntk": "dynamic NTK",
    "ntk_by_parts": "NTK-by-parts",
    "yarn": "YaRN",
    "llama3": "the Llama-3 rule",
    "longrope": "LongRoPE",
    "resonance": "Resonance",
    "cope": "CoPE",
}


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
    """What to do, why, with figures, and what wasn't shown, in this order; one line."""
    winner, plain = outcome.winner, outcome.plain
    assert winner is not None and plain is not None
    gain = outcome.against(winner, plain)
    prompts = _prompts(outcome, winner)
    length, name = f"{outcome.job.target_length:,} tokens", readable(winner)
    if gain.is_better:
        advice = (
            f"Use {name}: at {length} it answers {_share(outcome, winner)} questions right, where the model as it is "
            f"answers {_share(outcome, plain)}."
        )
        how = "it is better than"
    else:
        advice = (
            f"Keep the model as it is: at {length} it answers {_share(outcome, plain)} questions right and {name}, the "
            f"best encoding found, {_share(outcome, winner)}, which is not a gain beyond chance in answer NLL."
        )
        how = f"{name} is {'worse than' if gain.is_worse else 'not different from'}"
    fresh = f"{prompts} {'prompt' if prompts == 1 else 'prompts'} that no choice had seen"
    why = [f"On {fresh} {how} the model as it is beyond chance (answer NLL {difference(gain)})."]
    open_questions = []
    if not gain.is_better:
        at_original = (
            f"it answers {_count(outcome.at_original)} at its training length, {outcome.job.original_length:,} tokens"
        )
        open_questions.append(f"that the model as it is can be used at {length} ({at_original})")
    for reason, question in (_against_rival(outcome), _dope_verdict(outcome)):
        why += [reason] if reason else []
        open_questions += [question] if question else []
    why.append(f"{winner.name} is saved{'' if gain.is_better else ' all the same'}.")
    if (asked := _prompts(outcome, plain)) < prompts:
        asked_about = "1 prompt" if asked == 1 else f"{asked} prompts"
        open_questions.append(
            f"how the model as it is does on the others of the {prompts} prompts (it was asked about {asked_about})"
        )
    if prompts < FEW_PROMPTS:
        haystacks = "1 haystack" if prompts == 1 else f"{prompts} haystacks"
        open_questions.append(
            f"small differences (with {haystacks} the intervals are wide; a larger --budget buys more prompts)"
        )
    not_shown = f"Not shown: {'; '.join(open_questions)}." if open_questions else ""
    return " ".join([advice, *why, *([not_shown] if not_shown else [])])


def _against_rival(outcome: Outcome) -> tuple[str, str]:
    """How what is saved compares with the best of the other family: a sentence, and what wasn't shown."""
    winner, plain = outcome.winner, outcome.plain
    assert winner is not None and plain is not None
    rival = outcome.other if winner != outcome.other else outcome.best
    if rival is None or rival == winner:
        return "", ""
    gain = outcome.against(winner, rival)
    name, figures = f"{readable(rival)}, {_kind(rival)}", f"answer NLL {difference(gain)}"
    if gain.is_better:
        return f"It is better than {name}, beyond chance ({figures}).", ""
    if gain.is_worse:
        small = f", but by less than {LEAST_GAIN} nats" if gain.difference.mean < LEAST_GAIN else ""
        return f"It is worse than {name}, beyond chance{small} ({figures}).", ""
    on_plain = outcome.against(rival, plain)
    ahead = ""
    if on_plain.is_better and not outcome.against(winner, plain).is_better:
        ahead = f"{name}, is better than the model as it is beyond chance (answer NLL {difference(on_plain)})."
        ahead = ahead[0].upper() + ahead[1:]
    return ahead, f"a difference beyond chance between {readable(winner)} and {name} ({figures})"


def _dope_verdict(outcome: Outcome) -> tuple[str, str]:
    """Whether DoPE adds to the best rule or remap: a sentence, and what wasn't shown; one of them is empty."""
    best, dope = _best(outcome), outcome.best_dope
    name = readable(best)
    if dope is None:
        never = outcome.job.dope == "never"
        why, remedy = ("--dope never", "") if never else ("the budget had no room for them", "a larger --budget, or ")
        tried = f"DoPE plans weren't tried ({why}); {remedy}--dope always{',' if remedy else ''} tries them"
        return "", f"whether DoPE adds to {name}: {tried}"
    if dope.name not in outcome.final:
        ahead = difference(outcome.in_search())
        return "", (
            f"whether DoPE adds to {name} on these prompts: none tried was ahead of it in the search (the best, "
            f"{dope.name}: answer NLL {ahead}), so none was judged"
        )
    gain = outcome.against(dope, best)
    figures = f"answer NLL {difference(gain)}"
    if outcome.winner == dope:
        return f"Without DoPE, {name} is behind it beyond chance ({figures}).", ""
    if gain.is_better and not is_gain(gain):
        small = f"by less than {LEAST_GAIN} nats, too little to matter ({figures})"
        return f"{dope.name} is better than {name} {small}.", ""
    if gain.is_better:
        assert outcome.plain is not None and outcome.winner is not None
        said, against_plain = (
            f"{dope.name} is better than {name} ({figures}), but",
            outcome.against(dope, outcome.plain),
        )
        if is_gain(against_plain):
            ahead = difference(outcome.against(outcome.winner, dope))
            return f"{said} {readable(outcome.winner)} is better than it ({ahead}) beyond chance.", ""
        return f"{said} not than the model as it is ({difference(against_plain)}) beyond chance.", ""
    tried = f"no DoPE plan tried is better than it beyond chance (the best of them, {dope.name}: {figures})"
    return "", f"that DoPE adds to {name}: {tried}"


def readable(candidate: Candidate) -> str:
    """A candidate in words: 'Self-Extend with a window of 1,024 tokens and groups of 4' for self_extend 1024/4."""
    base, _, dope = candidate.name.partition(" + DoPE ")
    if dope:
        heads = re.search(r"(\d+) heads", dope)
        return f"{_in_words(base)}, and DoPE on {heads[1]} heads" if heads else candidate.name
    return _in_words(base)


def _in_words(name: str) -> str:
    """The name of a rule or remap in words; any other name as it is."""
    kind, _, sizes = name.removeprefix("own ").partition(" ")
    one, _, two = sizes.partition("/")
    if kind == SelfExtend.kind:
        return f"Self-Extend with a window of {int(one):,} tokens and groups of {two}"
    if kind == ReRoPE.kind:
        return f"ReRoPE with a window of {int(one):,} tokens" + (f" and a leak of {two}" if two else "")
    if kind == DualChunk.kind:
        return f"dual chunk attention with chunks of {int(one):,} tokens and a local window of {int(two):,}"
    rules = [_RULES.get(rule) for rule in kind.split("+")]
    if None in rules:
        return name
    said = " on ".join(rule for rule in rules if rule) + (f" with a factor of {sizes[1:]}" if sizes else "")
    return f"the model's own {said.removeprefix('the ')}" if name.startswith("own ") else said


def _prompts(outcome: Outcome, arm: Candidate) -> int:
    """How many fresh prompts an arm was asked about."""
    return len({answer.prompt for answer in outcome.final[arm.name]})


def _share(outcome: Outcome, arm: Candidate) -> str:
    return _count(outcome.final[arm.name])


def _count(answers: Sequence[Answer]) -> str:
    """'7 of 10', 'none of 10'."""
    return f"{sum(a.is_exact for a in answers) or 'none'} of {len(answers)}"


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
    prompts = _prompts(outcome, _best(outcome))
    return (
        ""
        if prompts >= FEW_PROMPTS
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
