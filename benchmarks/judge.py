"""Candidates that one run of `ropewalk extend` measured, judged under another condition on its judgement prompts.

    python benchmarks/judge.py smollm2 --of results/extend-smollm2/11000-original.jsonl --setting noisy --prompts 3 \
        --arms plain "yarn x2.01" "all/nope, 3 heads" --out results/extend-smollm2/11000-noisy.jsonl

An arm is named by any part of its name that no other candidate's name has, or by its whole name. The prompts are those
of the judgement, which no choice has seen. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ropewalk import load_model
from ropewalk.encodings.base import Encoding
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.read import Reader
from ropewalk.evaluation.store import Store, read_records
from ropewalk.evaluation.sweep import Done, Sweep
from ropewalk.extend import FINAL_FIRST, Job, prepared_text
from ropewalk.hf.fingerprint import fingerprint
from ropewalk.tasks.haystack import read_text


def main() -> None:
    """Measure the arms and keep every answer."""
    options = _options()
    settings, records = read_records(options.of)
    known = {r["candidate"]: r["encoding"] for r in records if r["kind"] == "answers"}
    arms = [Candidate(name, Encoding.from_dict(known[name])) for name in _named(options.arms, list(known))]
    model, tokenizer = load_model(options.model)
    if fingerprint(model) != settings["model"]["fingerprint"]:
        sys.exit(f"error: {options.of} was made with another model")
    text = read_text(settings["text"]["name"])
    job = Job(
        settings["target_length"],
        settings["original_length"],
        text,
        setting=options.setting,
        protocol=settings["protocol"],
        depths=settings["depths"],
        seed=settings["seed"],
    )
    judged = prepared_text(job, tokenizer)[1]
    with Store(options.out, settings | {"setting": options.setting}) as store:
        sweep = Sweep(Reader(model, tokenizer), store, on_done=_say)
        for number in range(options.prompts):
            sweep.measure("final", arms, job.task(judged), [FINAL_FIRST + number])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--of", type=Path, required=True, help="results.jsonl of a finished run")
    parser.add_argument("--setting", choices=("original", "noisy"), default="noisy")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _named(wanted: list[str], names: list[str]) -> list[str]:
    found = []
    for part in wanted:
        matches = [name for name in names if name == part] or [name for name in names if part in name]
        if len(matches) != 1:
            sys.exit(f"error: arms={part!r}: names {len(matches)} candidates; there are {'; '.join(names)}")
        found.append(matches[0])
    return found


def _say(done: Done) -> None:
    right: Any = sum(answer.is_exact for answer in done.answers)
    nll = sum(answer.nll for answer in done.answers) / len(done.answers)
    print(f"{done.candidate}  {done.prompt}  {right} of {len(done.answers)}  NLL {nll:.3f}  {done.seconds:.0f} s")


if __name__ == "__main__":
    main()
