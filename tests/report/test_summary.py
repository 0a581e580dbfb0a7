from __future__ import annotations

import dataclasses
import json

import pytest
from tests.report.outcomes import DOPE, PLAIN, REMAP, RULE, SECOND, answers, outcome

from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.score import Answer
from ropewalk.extend import decide
from ropewalk.report.summary import HEADER, evidence, final_rows, nll, right, search_rows, verdict


def test_the_verdict_when_dope_is_better() -> None:
    assert verdict(outcome(plain=2.2, rule=0.95, dope=0.60)) == (
        f"{DOPE.name} is saved. On 6 prompts that no choice had seen it answers 54 of 60 right, plain 12 of 60 right: "
        "better than plain beyond chance (answer NLL -1.600 [-1.600, -1.600]). Without DoPE, ntk x2.69 is behind it "
        "beyond chance (answer NLL -0.350 [-0.350, -0.350])."
    )


def test_the_verdict_when_dope_is_not_better_but_the_rule_is() -> None:
    said = verdict(outcome(plain=2.2, rule=0.95, dope=0.95))
    assert said.startswith("ntk x2.69 is saved. On 6 prompts that no choice had seen it answers 48 of 60 right, plain ")
    assert "better than plain beyond chance (answer NLL -1.250 [-1.250, -1.250])" in said
    assert said.endswith(
        f"No DoPE plan tried is better than ntk x2.69 beyond chance (the best of them, {DOPE.name}: answer NLL +0.000 "
        "[0.000, 0.000])."
    )


def test_the_verdict_when_dope_gains_too_little_to_matter() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.945)
    assert made.winner == RULE
    assert f"{DOPE.name} is better by less than 0.01 nats, too little to matter (" in verdict(made)


def test_the_verdict_when_no_plan_got_to_the_judgement() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=1.2)
    made.dope = [(RULE, answers(0.95, 8, 2, "search")), (DOPE, answers(1.2, 8, 1, "search"))]
    del made.final[DOPE.name]
    assert decide(made) == RULE
    said = verdict(made)
    assert "No DoPE plan tried was ahead of ntk x2.69 in the search (the best, " in said
    assert "+0.2" in said and "better than plain beyond chance (answer NLL -1.250" in said
    assert [row.name for row in final_rows(made)][1:] == [PLAIN.name, RULE.name]


def test_the_verdict_when_no_plan_was_tried() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=None)
    assert made.winner == RULE
    assert verdict(made).endswith("DoPE plans weren't tried; a larger --budget, or --dope always, tries them.")
    assert [row.name for row in final_rows(made)][1:] == [PLAIN.name, RULE.name]


def test_the_verdict_when_nothing_helps() -> None:
    said = verdict(outcome(plain=0.95, rule=0.95, dope=0.95))
    assert said.startswith("ntk x2.69 is saved.") and "not told from plain beyond chance (answer NLL +0.000" in said


def test_the_verdict_when_the_rule_harms() -> None:
    said = verdict(outcome(plain=0.5, rule=0.95, dope=0.95))
    assert "worse than plain beyond chance (answer NLL +0.450 [0.450, 0.450]). Use neither at this length." in said
    both = verdict(outcome(plain=0.5, rule=0.95, dope=0.7))
    assert f"{DOPE.name} is better than ntk x2.69 (" in both and "but not than plain (+0.200" in both
    assert both.startswith("ntk x2.69 is saved.")


@pytest.mark.parametrize(
    ("remap", "dope", "wins", "said"),
    [
        (0.80, None, REMAP, "Against ntk x2.69, the best length rule: better beyond chance (answer NLL -0.150 ["),
        (0.945, None, RULE, "Against self_extend 2048/3, the best remap: worse beyond chance (answer NLL +0.005 ["),
        (1.20, None, RULE, "Against self_extend 2048/3, the best remap: better beyond chance (answer NLL -0.250 ["),
        (0.95, None, RULE, "Against self_extend 2048/3, the best remap: no difference beyond chance (answer NLL "),
        (0.80, 0.60, DOPE, "Against self_extend 2048/3, the best remap: better beyond chance (answer NLL -0.200 ["),
        (0.60, 0.80, REMAP, f"{DOPE.name} is better than ntk x2.69 (answer NLL -0.150 [-0.150, -0.150]), but self_ex"),
        (0.60, 0.80, REMAP, "tend 2048/3 is better than it (-0.200 [-0.200, -0.200]) beyond chance."),
        (0.60, 0.95, REMAP, "No DoPE plan tried is better than ntk x2.69 beyond chance"),
    ],
)
def test_the_best_of_the_other_family_is_judged_too(
    remap: float, dope: float | None, wins: Candidate, said: str
) -> None:
    made = outcome(plain=2.2, rule=0.95, dope=dope, remap=remap)
    assert made.winner == wins
    assert verdict(made).startswith(f"{wins.name} is saved.") and said in verdict(made)
    arms = [PLAIN, RULE, REMAP, *([DOPE] if dope else [])]
    assert [row.name for row in final_rows(made)][1:] == [arm.name for arm in arms]


def test_the_other_family_is_taken_only_beyond_chance() -> None:
    """Better by 0.6 nats on the mean of three prompts, but worse on one of them."""
    made = outcome(plain=2.2, rule=0.95, dope=None, remap=0.95, prompts=3)
    by_prompt = {"final/0": -1.5, "final/1": 0.2, "final/2": -0.5}
    made.final[REMAP.name] = [dataclasses.replace(a, nll=a.nll + by_prompt[a.prompt]) for a in made.final[RULE.name]]
    assert made.against(REMAP, RULE).difference.mean == pytest.approx(-0.6)
    assert decide(made) == RULE


def test_plain_is_compared_on_the_prompts_that_it_was_asked_about() -> None:
    made = outcome(plain=4.0, rule=0.95, dope=0.60)
    first = [a for a in made.final[PLAIN.name] if a.prompt == "final/0"]
    made.final[PLAIN.name] = [dataclasses.replace(a, nll=a.nll + 0.01 * i) for i, a in enumerate(first)]
    compared = made.against(RULE, PLAIN).difference
    assert (compared.n, compared.clusters) == (10, 1) and compared.mean == pytest.approx(-3.05 - 0.045)
    assert decide(made) == DOPE
    assert "54 of 60 right, plain 2 of 10 right: better than plain beyond chance (answer NLL -3.4" in verdict(made)
    row = final_rows(made)[1]
    assert row.name == PLAIN.name and row.against.startswith("+3.09") and row.against.endswith("within one haystack")


def test_two_prompts_can_bear_no_verdict_out_of_noise() -> None:
    """One prompt says much better, the other a little worse: with two haystacks that proves nothing."""
    made = outcome(plain=2.0, rule=1.0, dope=1.0, prompts=2)
    by_prompt = {"final/0": -1.5, "final/1": 0.2}
    made.final[DOPE.name] = [
        Answer(**(a.to_dict() | {"nll": a.nll + by_prompt[a.prompt]})) for a in made.final[RULE.name]
    ]
    assert "No DoPE plan tried is better" in verdict(made)


def test_one_verdict_is_one_line_without_markup_of_tables() -> None:
    by_hand = outcome(2.2, 0.95, 0.6), outcome(2.2, 0.95, 0.95), outcome(0.5, 0.95, 0.7), outcome(2.2, 0.95, None)
    for made in (*by_hand, outcome(2.2, 0.95, 0.8, remap=0.6)):
        assert "\n" not in verdict(made) and "|" not in verdict(made)


def test_rows() -> None:
    rows = final_rows(outcome(plain=2.2, rule=0.95, dope=0.60))
    at_original = "plain at 8,192 tokens, its training length"
    assert [row.name for row in rows] == [at_original, PLAIN.name, RULE.name, DOPE.name]
    assert all(len(row.cells()) == len(HEADER) for row in rows)
    assert rows[0].against == rows[2].against == "" and rows[0].right.startswith("4 of 10 [")
    assert rows[1].against.startswith("+1.250") and rows[3].against.startswith("-0.350")
    assert rows[1].right.startswith("12 of 60 [")
    searched = search_rows([(RULE, answers(0.5, 8, 2)), (SECOND, answers(2.0, 1, 1))])
    assert [row[:2] for row in searched] == [("ntk x2.69", "2"), ("linear x1.34", "1")]
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
