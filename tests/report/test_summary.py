from __future__ import annotations

import dataclasses
import json
import re

import pytest
from tests.report.outcomes import DOPE, PLAIN, REMAP, RULE, SECOND, answers, outcome

from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.extend import decide
from ropewalk.evaluation.statistics import Answer
from ropewalk.report.summary import HEADER, evidence, final_rows, nll, readable, right, search_rows, verdict

NTK_269 = "NTK with a factor of 2.69"
SELF_EXTEND = "Self-Extend with a window of 2,048 tokens and groups of 3"
PLAIN_IS = "where the model as it is answers 12 of 60."


def first_sentence(said: str) -> str:
    return re.split(r"(?<=\.) (?=[A-Z])", said)[0]


def test_the_verdict_when_dope_is_better() -> None:
    assert verdict(outcome(plain=2.2, rule=0.95, dope=0.60)) == (
        f"Use {NTK_269}, and DoPE on 5 heads: at 11,000 tokens it answers 54 of 60 questions right, {PLAIN_IS} "
        "On 6 prompts that no choice had seen it is better than the model as it is beyond chance (answer NLL -1.600 "
        f"[-1.600, -1.600]). Without DoPE, {NTK_269} is behind it beyond chance (answer NLL -0.350 [-0.350, -0.350]). "
        f"{DOPE.name} is saved."
    )


def test_the_verdict_when_dope_is_not_better_but_the_rule_is() -> None:
    said = verdict(outcome(plain=2.2, rule=0.95, dope=0.95))
    assert first_sentence(said) == (f"Use {NTK_269}: at 11,000 tokens it answers 48 of 60 questions right, {PLAIN_IS}")
    assert "it is better than the model as it is beyond chance (answer NLL -1.250 [-1.250, -1.250])" in said
    assert said.endswith(
        f"Not shown: that DoPE adds to {NTK_269}: no DoPE plan tried is better than it beyond chance (the best of "
        f"them, {DOPE.name}: answer NLL +0.000 [0.000, 0.000])."
    )


def test_the_verdict_when_dope_gains_too_little_to_matter() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.945)
    assert made.winner == RULE
    said = verdict(made)
    assert first_sentence(said).startswith(f"Use {NTK_269}: ")
    assert f"{DOPE.name} is better than {NTK_269} by less than 0.01 nats, too little to matter (" in said
    assert "Not shown" not in said


def test_the_verdict_when_no_plan_got_to_the_judgement() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=1.2)
    made.dope = [(RULE, answers(0.95, 8, 2, "search")), (DOPE, answers(1.2, 8, 1, "search"))]
    del made.final[DOPE.name]
    assert decide(made) == RULE
    said = verdict(made)
    assert first_sentence(said).startswith(f"Use {NTK_269}: ")
    assert f"Not shown: whether DoPE adds to {NTK_269} on these prompts: none tried was ahead of it in the" in said
    assert f"(the best, {DOPE.name}: answer NLL +0.2" in said and said.endswith("so none was judged.")
    assert "better than the model as it is beyond chance (answer NLL -1.250" in said
    assert [row.name for row in final_rows(made)][1:] == [PLAIN.name, RULE.name]


@pytest.mark.parametrize(
    ("dope", "said"),
    [
        ("auto", "(the budget had no room for them); a larger --budget, or --dope always, tries them."),
        ("never", "(--dope never); --dope always tries them."),
    ],
)
def test_the_verdict_when_no_plan_was_tried(dope: str, said: str) -> None:
    made = outcome(plain=2.2, rule=0.95, dope=None)
    made.job = dataclasses.replace(made.job, dope=dope)
    assert made.winner == RULE
    assert first_sentence(verdict(made)).startswith(f"Use {NTK_269}: ")
    assert verdict(made).endswith(f"Not shown: whether DoPE adds to {NTK_269}: DoPE plans weren't tried {said}")
    assert [row.name for row in final_rows(made)][1:] == [PLAIN.name, RULE.name]


KEEP = (
    "Keep the model as it is: at 11,000 tokens it answers 12 of 60 questions right and "
    f"{NTK_269}, the best encoding found, 48 of 60, which is not a gain beyond chance in answer NLL."
)


def test_the_verdict_when_nothing_helps() -> None:
    said = verdict(outcome(plain=0.95, rule=0.95, dope=0.95))
    assert first_sentence(said) == KEEP and "ntk x2.69 is saved all the same." in said
    assert f"{NTK_269} is not different from the model as it is beyond chance (answer NLL +0.000" in said
    assert (
        "Not shown: that the model as it is can be used at 11,000 tokens (it answers 4 of 10 at its training length, "
        "8,192 tokens); that DoPE adds" in said
    )


def test_the_verdict_when_nothing_saved_helps_but_the_other_family_might() -> None:
    made = outcome(plain=0.95, rule=0.95, dope=None, remap=0.945)
    said = verdict(made)
    assert made.winner == RULE and first_sentence(said).startswith("Keep the model as it is: ")
    assert f"It is worse than {SELF_EXTEND}, the best remap, beyond chance, but by less than 0.01 nats (" in said
    noisy = {f"final/{i}": (-1.2, 0.9)[i % 2] for i in range(6)}
    made.final[RULE.name] = [dataclasses.replace(a, nll=a.nll + noisy[a.prompt]) for a in made.final[PLAIN.name]]
    made.final[REMAP.name] = [dataclasses.replace(a, nll=a.nll - 0.3) for a in made.final[PLAIN.name]]
    assert decide(made) == RULE
    said = verdict(made)
    assert f"{SELF_EXTEND}, the best remap, is better than the model as it is beyond chance (answer NLL -0.300" in said
    assert f"a difference beyond chance between {NTK_269} and {SELF_EXTEND}, the best remap (" in said


def test_the_verdict_when_the_rule_harms() -> None:
    said = verdict(outcome(plain=0.5, rule=0.95, dope=0.95))
    assert first_sentence(said) == KEEP
    assert f"{NTK_269} is worse than the model as it is beyond chance (answer NLL +0.450 [0.450, 0.450])." in said
    assert "Not shown: that the model as it is can be used at 11,000 tokens (it answers 4 of 10 at its train" in said
    both = verdict(outcome(plain=0.5, rule=0.95, dope=0.7))
    assert f"{DOPE.name} is better than {NTK_269} (" in both and "but not than the model as it is (+0.200" in both
    assert first_sentence(both) == KEEP and "ntk x2.69 is saved all the same." in both


@pytest.mark.parametrize(
    ("remap", "dope", "wins", "said"),
    [
        (0.80, None, REMAP, f"It is better than {NTK_269}, the best length rule, beyond chance (answer NLL -0.150 ["),
        (0.945, None, RULE, f"It is worse than {SELF_EXTEND}, the best remap, beyond chance, but by less than 0.01 n"),
        (0.945, None, RULE, "ats (answer NLL +0.005 ["),
        (1.20, None, RULE, f"It is better than {SELF_EXTEND}, the best remap, beyond chance (answer NLL -0.250 ["),
        (0.95, None, RULE, f"Not shown: a difference beyond chance between {NTK_269} and {SELF_EXTEND}, the best re"),
        (0.80, 0.60, DOPE, f"It is better than {SELF_EXTEND}, the best remap, beyond chance (answer NLL -0.200 ["),
        (0.60, 0.80, REMAP, f"{DOPE.name} is better than {NTK_269} (answer NLL -0.150 [-0.150, -0.150]), but Self-Ex"),
        (0.60, 0.80, REMAP, "groups of 3 is better than it (-0.200 [-0.200, -0.200]) beyond chance."),
        (0.60, 0.95, REMAP, f"that DoPE adds to {NTK_269}: no DoPE plan tried is better than it beyond chance"),
    ],
)
def test_the_best_of_the_other_family_is_judged_too(
    remap: float, dope: float | None, wins: Candidate, said: str
) -> None:
    made = outcome(plain=2.2, rule=0.95, dope=dope, remap=remap)
    assert made.winner == wins
    right_ones = {REMAP: "42", RULE: "48", DOPE: "54"}[wins]
    assert first_sentence(verdict(made)) == (
        f"Use {readable(wins)}: at 11,000 tokens it answers {right_ones} of 60 questions right, {PLAIN_IS}"
    )
    assert f" {wins.name} is saved." in verdict(made) and said in verdict(made)
    arms = [PLAIN, RULE, REMAP, *([DOPE] if dope else [])]
    assert [row.name for row in final_rows(made)][1:] == [arm.name for arm in arms]


@pytest.mark.parametrize("prompts", [1, 2, 4, 5])
def test_the_verdict_on_few_haystacks_says_that_small_differences_are_not_shown(prompts: int) -> None:
    said = verdict(outcome(plain=2.2, rule=0.95, dope=None, prompts=prompts))
    assert first_sentence(said).startswith(f"Use {NTK_269}: ")
    haystacks = "1 haystack" if prompts == 1 else f"{prompts} haystacks"
    warning = f"small differences (with {haystacks} the intervals are wide; a larger --budget buys more prompts)."
    assert said.endswith(warning) == (prompts < 5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("yarn x3", "YaRN with a factor of 3"),
        ("own llama3 x16", "the model's own Llama-3 rule with a factor of 16"),
        ("own longrope", "the model's own LongRoPE"),
        ("resonance+yarn x3", "Resonance on YaRN with a factor of 3"),
        ("cope", "CoPE"),
        ("rerope 4096", "ReRoPE with a window of 4,096 tokens"),
        ("rerope 4096/0.1", "ReRoPE with a window of 4,096 tokens and a leak of 0.1"),
        ("dual_chunk 6144/2048", "dual chunk attention with chunks of 6,144 tokens and a local window of 2,048"),
        ("self_extend 1024/4", "Self-Extend with a window of 1,024 tokens and groups of 4"),
        ("something x2", "something x2"),
    ],
)
def test_names_in_words(name: str, words: str) -> None:
    assert readable(Candidate(name, PLAIN.encoding)) == words


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
    said = verdict(made)
    assert first_sentence(said).endswith("54 of 60 questions right, where the model as it is answers 2 of 10.")
    assert "it is better than the model as it is beyond chance (answer NLL -3.4" in said
    assert said.endswith("how the model as it is does on the others of the 6 prompts (it was asked about 1 prompt).")
    row = final_rows(made)[1]
    assert row.name == PLAIN.name and row.against.startswith("+3.09") and row.against.endswith("within one haystack")


def test_two_prompts_can_bear_no_verdict_out_of_noise() -> None:
    """One prompt says much better, the other a little worse: with two haystacks that proves nothing."""
    made = outcome(plain=2.0, rule=1.0, dope=1.0, prompts=2)
    by_prompt = {"final/0": -1.5, "final/1": 0.2}
    made.final[DOPE.name] = [
        Answer(**(a.to_dict() | {"nll": a.nll + by_prompt[a.prompt]})) for a in made.final[RULE.name]
    ]
    assert "no DoPE plan tried is better" in verdict(made)


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
