"""One comparison of SmolLM2 past its training length: needles, many-shot, perplexity, every plan on the same prompts.

    python benchmarks/smollm2_evidence.py --questions train.jsonl --heads results/smollm2/heads/inspect.safetensors \
      --head results/smollm2/head.md --out results/smollm2

The needles' answers come from the records that `extend_study.py` wrote (results/extend-smollm2); the same plans (plain,
the best factor of every length rule, the best DoPE plan of each mode) then read many-shot prompts and windows of text
at the first of the lengths. All cells are in one folder, and one page compares them and shows the heads, from the
record of `ropewalk inspect smollm2 --length 4096`. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from extend_study import SETTINGS, Condition

from ropewalk import load_model
from ropewalk.analysis.inspect import Inspection
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.comparison import compare
from ropewalk.evaluation.grid import Job, Measured, Unit
from ropewalk.evaluation.halves import Windows
from ropewalk.evaluation.identity import identity
from ropewalk.evaluation.local_engine import Local
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.search import Pick
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep_config import PLAIN, TaskEntry, build_config
from ropewalk.evaluation.sweep_run import Outcome
from ropewalk.hub.fingerprint import describe
from ropewalk.report.inspect import head_parts, verdict
from ropewalk.report.kit.page import Paragraph, Part, Section
from ropewalk.report.sweep import write_report
from ropewalk.tasks.base import REPORT_FIRST
from ropewalk.tasks.needle import NeedleTask
from ropewalk.tasks.registry import reading_task

MODEL = "smollm2"


def main() -> None:
    """Gather, measure what is missing, and write the page."""
    options = _options()
    model, tokenizer = load_model(MODEL)
    about = describe(model)
    content = {"name": about["name"], **identity(model, tokenizer)}
    shown = {"models": MODEL, "plans": [PLAIN], "tasks": "needle", "lengths": options.lengths}
    outcome = Outcome(build_config(shown | {"prompts": options.prompts}), models=[about])
    indices = range(REPORT_FIRST, REPORT_FIRST + options.prompts)
    with Cells(options.out) as cells:
        for number, length in enumerate(options.lengths):
            studied = {s: Condition(model, tokenizer, length, s, options.records) for s in SETTINGS}
            first, others = studied["original"].arms()
            plans, entries = [*first, *others], _needles(studied)
            for unit in Job(MODEL, content, length, entries).units(plans, indices):
                _take(cells, unit, studied)
            if number == 0:
                more = _more(studied["original"], length, options.questions)
                job = Job(MODEL, content, length, more)
                Local(Reader(model, tokenizer), cells, on_done=_say).run(job.units(plans, indices))
                entries += more
                problems = more[0][2].to_dict()["problems"]
                outcome.texts[problems["name"]] = problems["fingerprint"]
            _compare(outcome, Job(MODEL, content, length, entries), cells, plans, indices)
            outcome.picks.append(_pick(studied["original"], length, first[1].name))
            outcome.texts["kjv, the part that is judged on"] = studied["original"].final_text.fingerprint
            for condition in studied.values():
                condition.store.close()
        command = shlex.join(["python", "benchmarks/smollm2_evidence.py", *sys.argv[1:]])
        write_report(outcome, cells, command, options.out, _heads(options.heads) if options.heads else ())
    if options.head:
        _, _, tables = (options.out / "summary.md").read_text(encoding="utf-8").partition("\n")
        head = options.head.read_text(encoding="utf-8").rstrip("\n")
        options.out.with_suffix(".md").write_text(f"{head}\n{tables}", encoding="utf-8")


def _heads(record: Path) -> list[Part]:
    """What the model's heads do, as its own page shows it."""
    found = Inspection.load(record)
    title = f"What its heads do, plain, in {len(found['tokens']):,} tokens"
    return [Section(title), Paragraph(verdict(found)), *head_parts(found)]


def _needles(studied: dict[str, Condition]) -> tuple[Any, ...]:
    return tuple(
        (TaskEntry("needle", {}, f"needle, {setting}"), 0, condition.job.task(condition.final_text))
        for setting, condition in studied.items()
    )


def _more(condition: Condition, length: int, questions: str) -> tuple[Any, ...]:
    many_shot = reading_task("many_shot", length, 0, {"questions": questions, "protocol": "multi"})
    windows = Windows(condition.final_text, length)
    return (
        (TaskEntry("many_shot", {}, "many-shot"), 0, many_shot),
        (TaskEntry("perplexity", {}, "perplexity"), 0, windows),
    )


def _take(cells: Cells, unit: Unit, studied: dict[str, Condition]) -> None:
    """Put a prompt's answers from the study's records into the folder, those that aren't there."""
    assert isinstance(unit.task, NeedleTask)
    prompt = unit.task.prompt_id(unit.index)
    records = studied[unit.task.setting].store.records()
    held = {r["candidate"]: r for r in records if r.get("stage") == "final" and r.get("prompt") == prompt}
    for number, (candidate, key) in enumerate(zip(unit.candidates, unit.keys, strict=True)):
        record = held.get(candidate.name)
        if record is not None and key not in cells.cells:
            answers = tuple(Answer.from_dict(answer) for answer in record["answers"])
            unit.put(cells, Measured(number, answers, record["seconds"]))


def _compare(outcome: Outcome, job: Job, cells: Cells, plans: list[Candidate], indices: range) -> None:
    rule = plans[1].name
    for entry, _, _ in job.tasks:
        condition = job.condition(entry)
        found = job.cells(cells, entry, plans, indices)
        outcome.comparisons.append(compare(condition, found, [PLAIN, rule]))
        outcome.cells[condition.model, condition.task, condition.length] = found


def _pick(condition: Condition, length: int, rule: str) -> Pick:
    """What the study's search tried, best first, on prompts of its own."""
    records = [r for r in condition.store.records() if r["kind"] == "answers" and r["stage"] in ("rules", "dope")]
    tried = {name: condition.nll(stage, name) for name, stage in {r["candidate"]: r["stage"] for r in records}.items()}
    return Pick(MODEL, length, rule, (), tuple(sorted(tried.items(), key=lambda item: item[1])), 1)


def _say(unit: Unit, number: int, cell: Cell) -> None:
    right = "" if cell.right is None else f"  {cell.right} of {cell.n}"
    print(f"{unit.name}  {unit.candidates[number].name}{right}  NLL {cell.nll:.3f}  {cell.seconds:.0f} s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", required=True, help="JSON lines of questions and answers, such as GSM8K's")
    parser.add_argument("--records", type=Path, default=Path("results/extend-smollm2"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[11000, 16384])
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--head", type=Path, help="a Markdown file: OUT.md is it, then the tables")
    parser.add_argument("--heads", type=Path, help="the inspect.safetensors of `ropewalk inspect`, for the page")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
