"""Every length rule and every DoPE mode on one model, at several lengths, in the original and the noisy setting.

    python benchmarks/extend_study.py smollm2 --lengths 11000 16384 --prompts 3 --out results/extend-smollm2

The search sees the original setting's search prompts only: every rule once, the three best on a second prompt, then
every DoPE plan on the best rule. Judged in both settings, on prompts that no choice has seen: first plain, the best
rule and the best plan of each DoPE mode, then the best factor of every other rule. One file of records for each length
and setting; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ropewalk import load_model
from ropewalk.data.text import read_text
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.evaluation.calibration import calibrate
from ropewalk.evaluation.candidates import (
    Candidate,
    dope_candidates,
    plain_candidate,
    rotation_to_stretch,
    rule_candidates,
)
from ropewalk.evaluation.extend import DOPE_FIRST, FINAL_FIRST, Job, prepared_text
from ropewalk.evaluation.identity import identity
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.records import Store
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep import Done, Sweep, mean_nll
from ropewalk.hub.fingerprint import describe

SETTINGS = "original", "noisy"
SECOND_PROMPT = 3


class Condition:
    """One length in one setting: its records, its prompts and its measurements."""

    def __init__(self, model: Any, tokenizer: Any, length: int, setting: str, out: Path):
        about = describe(model)
        self.model, self.tokenizer, self.own_length = model, tokenizer, about["original_length"]
        self.length = length
        self.job = Job(length, self.own_length, read_text("kjv"), setting=setting, depths=10)
        self.search_text, self.final_text, _ = prepared_text(self.job, tokenizer)
        self.store = Store(out / f"{length}-{setting}.jsonl", self.job.settings(about, identity(model, tokenizer)))
        self.sweep = Sweep(Reader(model, tokenizer), self.store, on_done=_say)

    def search(self, rules: int, plans: int) -> None:
        """Measure rules, then DoPE plans on the best of them."""
        own, stretched = rotation_to_stretch(self.model, self.own_length)
        task = self.job.task(self.search_text)
        candidates = rule_candidates(own, self.own_length, self.length, stretched)[:rules]
        self.sweep.measure("rules", [plain_candidate(own), *candidates], task, [0])
        best = sorted(candidates, key=lambda c: self.nll("rules", c.name))[:SECOND_PROMPT]
        self.sweep.measure("rules", best, task, [1])
        rule = min(best, key=lambda c: self.nll("rules", c.name))
        if self.store.has("decision/study"):
            return
        statistics = calibrate(self.model, self.tokenizer, self.search_text, self.length, rule, self.store)
        found = dope_candidates(rule, statistics, self.own_length)[:plans]
        self.sweep.measure("dope", [rule, *found], task, [DOPE_FIRST])
        decision = {"key": "decision/study", "kind": "decision", "stage": "dope", "rule": rule.name}
        self.store.append(decision)

    def arms(self) -> tuple[list[Candidate], list[Candidate]]:
        """What to judge: plain, the best rule and the best plan of each mode; then the best of every other rule."""
        rule = next(r["rule"] for r in self.store.records() if r["key"] == "decision/study")
        rules, plans = self._encodings("rules"), self._encodings("dope")
        modes: dict[str, str] = {}
        for name in sorted((n for n in plans if n.startswith(f"{rule} + ")), key=lambda n: self.nll("dope", n)):
            encoding = plans[name]
            assert isinstance(encoding, DoPE)
            modes.setdefault(encoding.mode, name)
        first = [Candidate("plain", rules["plain"]), Candidate(rule, rules[rule])]
        first += [Candidate(name, plans[name]) for name in modes.values()]
        others: dict[str, str] = {rule.split()[0]: rule}
        for name in sorted(set(rules) - {"plain"}, key=lambda n: self.nll("rules", n)):
            others.setdefault(name.split()[0], name)
        return first, [Candidate(name, rules[name]) for name in others.values() if name != rule]

    def judge(self, arms: Iterable[Candidate], prompts: int) -> None:
        """Measure arms on fresh prompts."""
        task = self.job.task(self.final_text)
        for number in range(prompts):
            self.sweep.measure("final", list(arms), task, [FINAL_FIRST + number])

    def _encodings(self, stage: str) -> dict[str, Encoding]:
        records = (r for r in self.store.records() if r["kind"] == "answers" and r["stage"] == stage)
        return {r["candidate"]: Encoding.from_dict(r["encoding"]) for r in records}

    def nll(self, stage: str, name: str) -> float:
        """The mean answer NLL of a candidate over a stage's prompts."""
        found = [
            Answer.from_dict(answer)
            for r in self.store.records()
            if r["kind"] == "answers" and r["stage"] == stage and r["candidate"] == name
            for answer in r["answers"]
        ]
        return mean_nll(found)


def main() -> None:
    """Search at every length, then judge in both settings."""
    options = _options()
    model, tokenizer = load_model(options.model)
    with ExitStack() as stack:
        made = {}
        for length in options.lengths:
            for setting in SETTINGS:
                made[length, setting] = Condition(model, tokenizer, length, setting, options.out)
                stack.callback(made[length, setting].store.close)
        for length in options.lengths:
            made[length, "original"].search(options.rules, options.plans)
        for wave in range(2):
            for (length, _), condition in sorted(made.items(), key=lambda item: item[0], reverse=True):
                condition.judge(made[length, "original"].arms()[wave], options.prompts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[11000, 16384])
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--rules", type=int, default=9, help="how many of the rules and factors to try")
    parser.add_argument("--plans", type=int, default=11, help="how many DoPE plans to try")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _say(done: Done) -> None:
    right = sum(answer.is_exact for answer in done.answers)
    print(
        f"{done.stage}  {done.candidate}  {done.prompt}  {right} of {len(done.answers)}  "
        f"NLL {mean_nll(done.answers):.3f}  {done.seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
