from __future__ import annotations

import json

import pytest
from tests.report.outcomes import DOPE, PLAIN, RULE, answers, outcome

from ropewalk.evaluation.score import Answer
from ropewalk.extend import decide
from ropewalk.report.summary import HEADER, evidence, final_rows, nll, right, search_rows, verdict


def test_the_verdict_when_dope_is_better() -> None:
    said = verdict(outcome(plain=2.2, rule=0.95, dope=0.60))
    assert said == (
        f"{DOPE.name} is better than the best length rule, {RULE.name}, beyond chance (answer NLL -0.350 "
        "[-0.350, -0.350] on 6 prompts that no choice had seen): it is saved."
    )


def test_the_verdict_when_dope_is_not_better_but_the_rule_is() -> None:
    said = verdict(outcome(plain=2.2, rule=0.95, dope=0.95))
    assert said.startswith("No DoPE plan tried is better than the best length rule, ntk x2.69, beyond chance (")
    assert DOPE.name in said and "+0.000" in said
    assert "the rule itself is better than plain beyond chance (-1.250 [-1.250, -1.250])" in said
    assert said.endswith("; the rule is saved.")


def test_the_verdict_when_dope_gains_too_little_to_matter() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.945)
    assert made.winner == RULE
    assert "but by less than 0.01 nats, too little to matter; the rule is saved." in verdict(made)


def test_the_verdict_when_no_plan_got_to_the_judgement() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=1.2)
    made.dope = [(RULE, answers(0.95, 8, 2, "search")), (DOPE, answers(1.2, 8, 1, "search"))]
    del made.final[DOPE.name]
    assert decide(made) == RULE
    said = verdict(made)
    assert said.startswith("No DoPE plan tried was ahead of the best length rule, ntk x2.69, in the search (")
    assert "+0.2" in said and "better than plain beyond chance (-1.250" in said and said.endswith("the rule is saved.")
    assert [row.name for row in final_rows(made)] == [PLAIN.name, RULE.name]


def test_the_verdict_when_nothing_helps() -> None:
    said = verdict(outcome(plain=0.95, rule=0.95, dope=0.95))
    assert "nor is the rule better than plain beyond chance" in said and said.endswith("the rule is saved.")


def test_the_verdict_when_the_rule_harms() -> None:
    said = verdict(outcome(plain=0.5, rule=0.95, dope=0.95))
    assert "the rule is worse than plain beyond chance (+0.450 [0.450, 0.450])" in said
    both = verdict(outcome(plain=0.5, rule=0.95, dope=0.7))
    assert "better than the best length rule" in both and "but not than plain (+0.200" in both
    assert both.endswith("the rule is saved.")


def test_two_prompts_can_bear_no_verdict_out_of_noise() -> None:
    """One prompt says much better, the other a little worse: with two haystacks that proves nothing."""
    made = outcome(plain=2.0, rule=1.0, dope=1.0, prompts=2)
    by_prompt = {"final/0": -1.5, "final/1": 0.2}
    made.final[DOPE.name] = [
        Answer(**(a.to_dict() | {"nll": a.nll + by_prompt[a.prompt]})) for a in made.final[RULE.name]
    ]
    assert verdict(made).startswith("No DoPE plan")


def test_one_verdict_is_one_line_without_markup_of_tables() -> None:
    for made in (outcome(2.2, 0.95, 0.6), outcome(2.2, 0.95, 0.95), outcome(0.5, 0.95, 0.7)):
        assert "\n" not in verdict(made) and "|" not in verdict(made)


def test_rows() -> None:
    rows = final_rows(outcome(plain=2.2, rule=0.95, dope=0.60))
    assert [row.name for row in rows] == [PLAIN.name, RULE.name, DOPE.name]
    assert all(len(row.cells()) == len(HEADER) for row in rows)
    assert rows[1].against == "" and rows[0].against.startswith("+1.250") and rows[2].against.startswith("-0.350")
    assert rows[0].right.startswith("12 of 60 [")
    searched = search_rows([(RULE, answers(0.5, 8, 2)), (PLAIN, answers(2.0, 1, 1))])
    assert [row[:2] for row in searched] == [("ntk x2.69", "2"), ("plain", "1")]
    assert searched[1][2].startswith("1 of 10")


def test_an_interval_from_one_haystack_says_so() -> None:
    assert nll(answers(0.5, 1, 1)).endswith("within one haystack")
    assert not nll(answers(0.5, 1, 2)).endswith("within one haystack")
    assert nll(answers(0.5, 1, 2)).startswith("0.500 [")
    assert right(answers(0.5, 10, 2)).startswith("20 of 20 [") and right(answers(0.5, 10, 2)).endswith("1.00]")
    assert right(answers(0.5, 10, 1)).endswith("1.00] within one haystack")


def test_the_evidence_is_plain_json() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60)
    kept = json.loads(json.dumps(evidence(made), allow_nan=False))
    assert kept["verdict"] == verdict(made)
    assert kept["plain"]["prompts"] == 6
    assert kept["plain"]["exact"]["mean"] == pytest.approx(0.2)
    assert kept[RULE.name]["nll"]["mean"] == pytest.approx(0.95)


def test_one_answer_has_no_interval() -> None:
    assert nll(answers(0.5, 1, 1, depths=2)[:1]).endswith("[one value: no interval]")
