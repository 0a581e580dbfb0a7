"""Outcomes made by hand: what a run of the main job could have found."""

from __future__ import annotations

from ropewalk.data.text import text_of
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.extend import Job, Outcome, decide
from ropewalk.evaluation.statistics import Answer
from ropewalk.heads import HeadSelection
from ropewalk.scaling import NTK, Linear

PLAIN = Candidate("plain", RoPE(16))
SECOND = Candidate("linear x1.34", RoPE(16, rule=Linear(1.34)))
RULE = Candidate("ntk x2.69", RoPE(16, rule=NTK(2.69)))
REMAP = Candidate("self_extend 2048/3", SelfExtend(RoPE(16), 2048, 3))
DOPE = Candidate(
    "ntk x2.69 + DoPE all/nope, 5 heads (truncated_entropy-1 key)",
    DoPE(RoPE(16, rule=NTK(2.69)), HeadSelection([(1, 2)])),
)


def answers(nll: float, right: int, prompts: int, name: str = "final", depths: int = 10) -> list[Answer]:
    """Answers whose mean NLL is `nll`, a little different by prompt, the first `right` of each prompt right."""
    found = []
    for prompt in range(prompts):
        shift = 0.01 * (prompt - (prompts - 1) / 2)
        for i in range(depths):
            value = nll + shift + 0.3 * (i - (depths - 1) / 2) / depths
            found.append(Answer(f"{name}/{prompt}", "original", i / (depths - 1), f"k{i}", "1", value, i < right, "1"))
    return found


def outcome(
    plain: float,
    rule: float,
    dope: float | None,
    prompts: int = 6,
    target: int = 11000,
    original: int = 8192,
    remap: float | None = None,
) -> Outcome:
    """An outcome with these mean NLLs in the judgement, whose best of the search is a rule; None: wasn't tried."""
    job = Job(target, original, text_of("Some text.", "kjv"), depths=10)
    made = Outcome(job, plain=PLAIN, best=RULE)
    made.at_original = answers(0.5, 4, 1, "at original")
    made.rules = [(RULE, answers(rule, 8, 2, "search")), (SECOND, answers(rule + 1, 2, 1, "search"))]
    made.final = {PLAIN.name: answers(plain, 2, prompts), RULE.name: answers(rule, 8, prompts)}
    if remap is not None:
        made.other = REMAP
        made.rules.insert(1, (REMAP, answers(remap, 7, 2, "search")))
        made.final[REMAP.name] = answers(remap, 7, prompts)
    if dope is not None:
        made.best_dope = DOPE
        made.dope = [(DOPE, answers(dope, 9, 2, "dope")), (RULE, answers(rule, 8, 1, "dope"))]
        made.final[DOPE.name] = answers(dope, 9, prompts)
    made.winner = decide(made)
    made.short = {
        name: {512: (cost, cost - 0.1, cost + 0.1), original: (cost - 0.2, float("-inf"), float("inf"))}
        for name, cost in ((PLAIN.name, 3.0), (made.winner.name, 3.05))
    }
    return made
