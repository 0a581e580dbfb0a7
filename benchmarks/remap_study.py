"""Length rules and remaps of positions on one model, judged on the same haystacks at one length and setting.

    python benchmarks/remap_study.py smollm2 --length 16384 --setting original --prompts 4 --out results/extend-smollm2

The arms are fixed beforehand: plain, YaRN, NTK-by-parts and Resonance with YaRN at 1.5 times the nominal stretch,
Self-Extend in the three settings that `extend` tries first, ReRoPE and dual chunk attention. So every haystack judges
and none has chosen anything. With --dope the best row of each DoPE mode on Self-Extend follows: rows are compared on a
haystack of their own, from another part of the text. One file of records; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ropewalk import load_model
from ropewalk.data.text import read_text
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
from ropewalk.evaluation.remaps import remap_candidates
from ropewalk.evaluation.sweep import Done, Sweep, mean_nll
from ropewalk.hub.fingerprint import describe

RULES = ("yarn", "ntk_by_parts", "resonance+yarn")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure every arm on every haystack."""
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model)
    model.to(DTYPES[options.dtype])
    about = describe(model)
    own_length = about["original_length"]
    job = Job(options.length, own_length, read_text("kjv"), setting=options.setting, depths=options.depths)
    search_text, final_text, _ = prepared_text(job, tokenizer)
    settings = job.settings(about, identity(model, tokenizer))
    with Store(options.out / f"remaps-{options.length}-{options.setting}.jsonl", settings) as store:
        sweep = Sweep(Reader(model, tokenizer), store, on_done=_say)
        arms = _arms(model, options.length, own_length)
        chosen = [arm for arm in arms if not options.arms or arm.name in options.arms]
        if missing := set(options.arms) - {arm.name for arm in arms}:
            raise SystemExit(f"no such arms: {missing}; there are {', '.join(arm.name for arm in arms)}")
        if options.dope:
            base = next(arm for arm in arms if arm.name == options.dope)
            chosen = _dope_arms(model, tokenizer, base, own_length, job, search_text, sweep, options.plans)
        for number in range(options.prompts):
            sweep.measure("final", chosen, job.task(final_text), [FINAL_FIRST + number])


def _arms(model: Any, length: int, own_length: int) -> list[Candidate]:
    own, stretched = rotation_to_stretch(model, own_length)
    factor = round(1.5 * length / own_length, 2)
    rules = [c for c in rule_candidates(own, own_length, length, stretched) if c.name.endswith(f" x{factor:g}")]
    best = [c for name in RULES for c in rules if c.name.split()[0] == name]
    return [plain_candidate(own), *best, *remap_candidates(model, own, own_length, length, stretched)]


def _dope_arms(
    model: Any, tokenizer: Any, base: Candidate, own_length: int, job: Job, text: Any, sweep: Sweep, plans: int
) -> list[Candidate]:
    """The best row of each mode by the mean answer NLL on one haystack."""
    statistics = calibrate(model, tokenizer, text, job.target_length, base, sweep.store)
    rows = dope_candidates(base, statistics, own_length)[:plans]
    answers = sweep.measure("dope", [base, *rows], job.task(text), [DOPE_FIRST])
    best: dict[str, Candidate] = {}
    for row in sorted(rows, key=lambda c: mean_nll(answers[c.name])):
        assert isinstance(row.encoding, DoPE)
        best.setdefault(row.encoding.mode, row)
    return list(best.values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--setting", default="original", choices=("original", "noisy"))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--depths", type=int, default=10)
    parser.add_argument("--arms", nargs="+", default=[], help="only these")
    parser.add_argument("--dope", default="", help="the arm to put DoPE on, in place of measuring the arms")
    parser.add_argument("--plans", type=int, default=14, help="how many DoPE plans to compare")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=0)
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
