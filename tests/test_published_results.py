"""What is published in results/ stays readable, and what is said of it stays as it is, to the byte.

The stored records and cells are read by the product's own readers, and every summary that can be made from them
without a trained model is made again. tests/published/frozen.json holds hashes and figures of what was read, and, for
each page, in what today's code differs from the published one: an empty list says that they are the same, byte for
byte. Only the adapters below know the product; when it is reshaped, they and the imports alone change, never the frozen
values. Where results/ itself was made anew on purpose, `python -m tests.test_published_results --write` freezes what is
there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import benchmarks.extend_table as extend_table
import benchmarks.indexing_map as indexing_map
import pytest
from tests.data.tokenizers import byte_tokenizer, story
from transformers import LlamaConfig, LlamaForCausalLM

import ropewalk.evaluation.comparison as comparing
import ropewalk.evaluation.perplexity as perplexity
import ropewalk.evaluation.provenance as provenance
import ropewalk.evaluation.statistics as score
import ropewalk.report.downstream as downstream_report
import ropewalk.report.extend_page as extend_report
import ropewalk.report.inspect as inspect_page
import ropewalk.report.inspect as inspect_report
import ropewalk.report.perplexity as perplexity_report
import ropewalk.report.recalibration as recalibration_report
import ropewalk.report.sweep as sweep_report
import ropewalk.report.training as training_report
from ropewalk.analysis.inspect import Inspection
from ropewalk.data.text import Text
from ropewalk.data.windows import Books
from ropewalk.evaluation import shares
from ropewalk.evaluation.cells import Cells
from ropewalk.evaluation.extend import Job, extend
from ropewalk.evaluation.grid import Condition
from ropewalk.evaluation.likelihood import Reading
from ropewalk.evaluation.records import Store, read_records
from ropewalk.evaluation.search import Pick
from ropewalk.evaluation.sweep import mean_nll
from ropewalk.evaluation.sweep_config import build_config
from ropewalk.evaluation.sweep_run import Outcome
from ropewalk.report.kit.page import Paragraph, Section
from ropewalk.training.compare import Comparison
from ropewalk.training.config import build_recipe
from ropewalk.training.recalibrate import Outcome as Recalibrated
from ropewalk.training.recalibrate import Recalibration
from ropewalk.training.run_folder import read_curve
from ropewalk.training.runner import Result

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
FROZEN = Path(__file__).parent / "published" / "frozen.json"
BLIMP = "recalibration/blimp"
RECORDS, CELLS = "ropewalk.records", "ropewalk.cells"
# A job is adding to these: of them only what was committed counts, and nothing is summarised.
GROWING = "remaps-"
VERSIONS = {"python": "3.11.7", "ropewalk": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
EPYC, XEON = "AMD EPYC, 2 processors, {} no GPU", "Intel(R) Xeon(R) Processor, 2 processors, {} no GPU"
TWO, ONE = "2 threads,", "1 thread,"
Files = dict[str, str]

# --- Adapters: all that knows the product. ---


def records_of(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How to open a file of records: its settings and all records, read only."""
    return read_records(path)


def reopened(path: Path, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """How to go on with a file of records: what is in it, and what is said of damage."""
    with Store(path, settings) as store:
        return store.records(), store.damage


def cells_in(folder: Path) -> dict[str, Any]:
    """How to open a folder of cells: cells with their answers, what they refer to, and damage."""
    with Cells(folder) as cells:
        found = list(cells.cells.values())
        held = [
            {name: value for name, value in cell._asdict().items() if name not in ("file", "start")}
            | {"answers": [answer.to_dict() for answer in cells.answers(cell)]}
            for cell in found
        ]
        of = dict.fromkeys((kind, getattr(cell, kind)) for cell in found for kind in ("model", "plan", "task"))
        return {
            "cells": held,
            "definitions": [cells.definition(*one) for one in of],
            "damaged": [str(damage) for damage in cells.damaged],
            "duplicates": cells.duplicates,
        }


@contextlib.contextmanager
def as_made_on(machine: str) -> Iterator[None]:
    """Pages say that they were made with the published versions, on this machine."""
    with (
        mock.patch.object(provenance, "versions", lambda: dict(VERSIONS)),
        mock.patch.object(provenance, "machine", lambda: machine),
    ):
        yield


def answers_of(records: Sequence[dict[str, Any]], stage: str) -> dict[str, list[score.Answer]]:
    """The answers of a stage of `extend`, by candidate."""
    found: dict[str, list[score.Answer]] = {}
    for record in records:
        if record.get("kind") == "answers" and record["stage"] == stage:
            found.setdefault(record["candidate"], []).extend(score.Answer.from_dict(a) for a in record["answers"])
    return found


def estimates(answers: Sequence[score.Answer]) -> str:
    """How to summarise answers: right and NLL with their intervals, over haystacks."""
    clusters = [a.prompt for a in answers]
    right = score.proportion_interval([a.is_exact for a in answers], clusters)
    return f"right {_digits(right)}; nll {_digits(score.mean_interval([a.nll for a in answers], clusters))}"


def difference(answers: Sequence[score.Answer], baseline: Sequence[score.Answer]) -> str:
    """How to compare two arms: the paired difference on the prompts that both have, and answers won and lost."""
    shared = {a.prompt for a in answers} & {a.prompt for a in baseline}
    one, other = ([a for a in held if a.prompt in shared] for held in (answers, baseline))
    paired, exact = score.paired_difference(one, other), score.paired_exact(one, other)
    ps = f"p {paired.p_t!r}, sign flips {paired.p_permutation!r}"
    return f"{_digits(paired.difference)}, {ps}, won {exact.won}, lost {exact.lost}, p {exact.p!r}"


def sweep_files(
    folder: Path, summary: dict[str, Any], records: Path, heads: Path, out: Path, lengths: Sequence[int]
) -> None:
    """How to summarise cells: all files of a sweep, from its cells and, for what was picked, the study's records.

    As benchmarks/smollm2_evidence.py does, which needs the model for the names of what it measures.
    """
    names = {"models": "smollm2", "plans": ["plain"], "tasks": "needle", "lengths": list(lengths), "prompts": 3}
    outcome = Outcome(build_config(names), models=summary["models"])
    with Cells(folder) as cells:
        by_condition: dict[Condition, dict[str, list[Any]]] = {}
        for cell in cells.cells.values():
            task, plan = cells.definition("task", cell.task), cells.definition("plan", cell.plan)
            condition = Condition("smollm2", task["name"], task["content"]["length"])
            by_condition.setdefault(condition, {}).setdefault(plan["name"], []).append(cell)
            about = task["content"].get("problems")
            if about is not None:
                outcome.texts[about["name"]] = about["fingerprint"]
            elif "text" in task["content"]:
                judged_on = task["content"]["text"]["fingerprint"]
        outcome.texts["kjv, the part that is judged on"] = judged_on
        for published in summary["comparisons"]:
            condition = Condition(published["model"], published["task"], published["length"])
            held = by_condition[condition]
            ordered = {p["plan"]: sorted(held[p["plan"]], key=lambda c: c.prompt) for p in published["plans"]}
            outcome.comparisons.append(comparing.compare(condition, ordered, published["baselines"]))
            outcome.cells[condition.model, condition.task, condition.length] = ordered
        for length, rule in zip(lengths, dict.fromkeys(c.baselines[1] for c in outcome.comparisons), strict=True):
            kept = records_of(records / f"{length}-original.jsonl")[1]
            stages = {"rules": answers_of(kept, "rules"), "dope": answers_of(kept, "dope")}
            last = {r["candidate"]: r["stage"] for r in kept if r.get("stage") in stages and r["kind"] == "answers"}
            tried = {name: mean_nll(stages[stage][name]) for name, stage in last.items()}
            ranked = tuple(sorted(tried.items(), key=lambda item: item[1]))
            outcome.picks.append(Pick("smollm2", length, rule, (), ranked, 1))
        found = Inspection.load(heads)
        title = f"What its heads do, plain, in {len(found['tokens']):,} tokens"
        more = [Section(title), Paragraph(inspect_report.verdict(found)), *inspect_page.head_parts(found)]
        sweep_report.write_report(outcome, cells, summary["command"], out, more)


def folder_comparisons(folder: Path) -> list[dict[str, Any]]:
    """How to summarise a folder of cells without its config."""
    with Cells(folder) as cells:
        return [comparison.to_dict() for comparison in comparing.summarise(cells)]


def perplexity_files(records: Sequence[dict[str, Any]], summary: dict[str, Any], out: Path) -> None:
    """How to summarise records of perplexity, but for the picture; of models only what tables say of them is given."""
    about = summary["books"]
    text = SimpleNamespace(**about["text"], to_dict=lambda: about["text"])
    books = Books(text, **{name: about[name] for name in ("length", "windows", "seed", "part")})
    arms, sources = [], set()
    for found in summary["arms"]:
        told = {name: found[name] for name in ("name", "source", "model", "encoding")}
        subject = SimpleNamespace(source=found["source"])
        ruled = None if found["source"] not in sources else told["encoding"]
        sources.add(found["source"])
        arms.append(
            SimpleNamespace(name=found["name"], subject=subject, encoding=ruled, to_dict=lambda told=told: told)
        )
    reading = Reading(**summary["reading"])
    nats: dict[str, list[list[float]]] = {}
    for record in sorted(records, key=lambda record: record["window"]):
        nats.setdefault(record["arm"], []).append(record["nats"])
    curves = tuple(perplexity.curves(arms, reading, nats))
    study = perplexity.Study(books, reading, summary["unknown"], tuple(summary["trained"]), curves)
    with mock.patch.object(perplexity_report, "draw", _no_picture):
        perplexity_report.write_report(study, out, summary["command"])


def extend_files(records: Path, command: str, out: Path) -> None:
    """How to summarise records of `extend`: it runs again to its end, every measurement already there.

    The model has the published one's rotation and random weights, the text is another: neither is read.
    """
    shutil.copyfile(records, out / "results.jsonl")
    settings, _ = records_of(records)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=576,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=settings["original_length"],
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    text = Text(story(6000), settings["text"]["name"], settings["text"]["fingerprint"])
    asked = ("target_length", "original_length", "setting", "protocol", "depths", "seed", "noise_tokens")
    job = Job(text=text, budget=900.0, **{name: settings[name] for name in asked})
    with Store(out / "results.jsonl", settings) as store:
        outcome = extend(LlamaForCausalLM(config).eval(), byte_tokenizer(), job, store, on_start=_refuse)
    extend_report.write_report(outcome, command, settings["model"], out)


def downstream_files(summary: dict[str, Any], out: Path) -> None:
    """How to tell of minimal pairs, from the summary's own figures, as no answers are kept; but for the picture."""
    groups = []
    for group in summary["groups"]:
        found = {}
        for name, told in group["models"].items():
            against = told["against"]
            if against is not None:
                exact = score.PairedExact(against["won"], against["lost"], against["p"])
                against = shares.Against(_estimate(against["difference"]), exact, against["p_holm"])
            found[name] = shares.Share(_estimate(told["right"]), _estimate(told["nll"]), against)
        groups.append(shares.Group(group["kind"], group["name"], found))
    arms = tuple(SimpleNamespace(name=arm["name"], to_dict=lambda arm=arm: arm) for arm in summary["arms"])
    judgement = downstream_report.Judgement(summary["sources"], arms, tuple(groups), summary["unknown"])
    with mock.patch.object(downstream_report, "draw", _no_picture):
        downstream_report.write_report(judgement, out, summary["command"])


def recounted(group: dict[str, Any]) -> dict[str, Any]:
    """How to judge shares: a group's figures again, from how many answers were right, won and lost."""
    found: dict[str, Any] = {}
    ps = []
    for name, told in group["models"].items():
        n = told["right"]["n"]
        count = round(told["right"]["mean"] * n)
        found[name] = {"right": score.proportion_interval([i < count for i in range(n)], range(n)).to_dict()}
        if (against := told["against"]) is not None:
            won, lost = against["won"], against["lost"]
            ours, theirs = ([_asked(i, i < most) for i in range(n)] for most in (won, 0))
            for i in range(won, won + lost):
                theirs[i] = _asked(i, True)
            exact = score.paired_exact(ours, theirs)
            ps.append(exact.p)
            told_again = {"difference": shares.share_difference(won, lost, n).to_dict()}
            found[name] |= told_again | dataclasses.asdict(exact)
    adjusted = iter(score.holm(ps))
    return {name: one | ({"p_holm": next(adjusted)} if "won" in one else {}) for name, one in found.items()}


def training_files(summary: dict[str, Any], out: Path) -> None:
    """How to summarise trained encodings, from the summary's results; but for the picture. The data aren't read."""
    told = dict(summary["task"])
    data = {"sha256": summary["data_sha256"]} if "data_sha256" in summary else {}
    task = SimpleNamespace(metric=summary["metric"], to_dict=lambda: told, **data)
    content = {name: value for name, value in summary["recipe"].items() if name not in ("task", "size", "fields")}
    content["task"] = summary["recipe"]["fields"]
    recipe = build_recipe(summary["recipe"]["task"], summary["recipe"]["size"], content)
    results = tuple(Result.from_dict(result) for result in summary["results"])
    names = tuple(dict.fromkeys(result.encoding for result in results))
    seeds = 1 + max(result.seed for result in results)
    comparison = Comparison(recipe, task, names, seeds, out, results)
    with mock.patch.object(training_report, "draw_curves", _no_picture):
        training_report.write_report(comparison, summary["command"])


def recalibrated(result: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """How to read and tell of a recalibration: its record as it is written again, and what is said of it.

    The published records are older than `read_before`, without which today's reader refuses them.
    """
    outcome, wanted = Recalibrated.from_dict({"read_before": False} | result), Recalibration(**asked)
    said = [recalibration_report.header(wanted, outcome), *recalibration_report.rows(outcome)]
    lines = [" | ".join(row) for row in said]
    return {"record": outcome.to_dict(), "said": [recalibration_report.verdict(wanted, outcome), *lines]}


def curve_of(path: Path) -> list[dict[str, Any]]:
    """How to read the curve of a training run."""
    return read_curve(path)


def study_page(records: Sequence[Path], head: Path, out: Path) -> str:
    """How to summarise records of a study on one page, but for the pictures."""
    folder = out / records[0].parent.name
    folder.mkdir()
    copies = [Path(shutil.copy(path, folder)) for path in sorted(records)]
    given = ["extend_table", *map(str, copies), "--head", str(head), "--out", str(out / "page.md")]
    with mock.patch.object(extend_table, "draw_by_depth", lambda *_: None), mock.patch.object(sys, "argv", given):
        extend_table.main()
    return (out / "page.md").read_text(encoding="utf-8")


def indexing_page(runs: Sequence[dict[str, Any]], head: str) -> str:
    """How to summarise the runs of one task at several sizes: the page, but for the picture."""
    sizes: dict[str, list[Any]] = {}
    for run in runs:
        shown = indexing_map._rows([indexing_map.Run(**run)])[0][:3]  # strings, model and schedule: its size
        sizes.setdefault(json.dumps(shown), []).append(indexing_map.Run(**run))
    rows = [row for found in sizes.values() for row in indexing_map._rows(found)]
    lines = [*head.splitlines(), "", *indexing_map.table_lines(indexing_map.HEADER, rows)]
    made = "; ".join(indexing_map._made_with(sizes.values()))
    lines += ["", f"Each run: [runs.jsonl](indexing/runs.jsonl). {made}."]
    lines += ["", "![Accuracy on validation strings against steps](indexing/curves.png)"]
    return "\n".join(lines).lstrip("\n") + "\n"


def heads_file(record: Path) -> str:
    """How to tell of a model's heads, from the record of an inspection: its JSON."""
    return inspect_report.to_json(Inspection.load(record))


def _estimate(told: dict[str, Any]) -> score.Estimate:
    """An estimate out of JSON, where an infinite bound is null."""
    open_ends = {"low": -math.inf, "high": math.inf, "standard_error": math.inf}
    return score.Estimate(**{k: open_ends[k] if v is None else v for k, v in told.items()})


def _digits(estimate: score.Estimate) -> str:
    clusters = f"{estimate.n} in {estimate.clusters}"
    return f"{estimate.mean!r} [{estimate.low!r}, {estimate.high!r}] +- {estimate.standard_error!r} of {clusters}"


def _asked(number: int, is_exact: bool) -> score.Answer:
    return score.Answer(str(number), "", 0.0, "", "", 0.0, is_exact, "")


def _no_picture(_: Any, path: Path) -> None:
    path.write_bytes(b"")


def _refuse(*what: str) -> None:
    raise AssertionError(f"no record of {what}")


# --- What is frozen, made by the adapters alone. ---


def pinned_records(path: Path, first: int | None = None) -> dict[str, Any]:
    """What is frozen of a file of records: settings, keys, fields; of a file that grows the first records only."""
    settings, records = records_of(path)
    records = records[:first]
    found = {
        "settings": settings,
        "count": len(records),
        "keys": _sha("\n".join(record["key"] for record in records)),
        "fields": _fields(records),
    }
    return found if first is not None else found | {"content": _sha(json.dumps(records))}


def pinned_cells(folder: Path, out: Path) -> dict[str, Any]:
    """What is frozen of a folder of cells."""
    found = cells_in(_copied(folder, out))
    kinds = [{"kind": "cell", **cell} for cell in found["cells"]]
    return {
        "count": len(found["cells"]),
        "keys": _sha("\n".join(cell["key"] for cell in found["cells"])),
        "content": _sha(json.dumps(found["cells"])),
        "fields": _fields(kinds),
        "definitions": [f"{one['define']} {one['reference']} {one['name']}" for one in found["definitions"]],
        "definitions' content": _sha(json.dumps(found["definitions"])),
        "damaged": found["damaged"],
        "duplicates": found["duplicates"],
    }


def pinned_arms(path: Path) -> dict[str, list[str]]:
    """What is frozen of the answers in a file of records: each stage's arms, the judged ones against the first rule."""
    _, records = records_of(path)
    found = {}
    for stage in dict.fromkeys(record["stage"] for record in records if record["kind"] == "answers"):
        arms = answers_of(records, stage)
        rule = next((name for name in arms if name != "plain"), None)
        lines = []
        for name, answers in arms.items():
            against = f"; against {rule}: {difference(answers, arms[rule])}" if rule not in (None, name) else ""
            lines.append(f"{name}: {estimates(answers)}{against}")
        found[stage] = lines
    return found


def pinned_shares(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is frozen of shares: the intervals of all pairs and of each phenomenon, and a hash of all figures."""
    again = [recounted(group) for group in groups]
    few = [(group["name"], found) for group, found in zip(groups, again, strict=True) if group["kind"] != "test set"]
    lines = [
        f"{name}, {arm}: {figure} {_digits(_estimate(one[figure]))}"
        for name, found in few
        for arm, one in found.items()
        for figure in ("right", "difference")
        if figure in one
    ]
    return {"all": _sha(json.dumps(again)), "few": lines}


def pinned_curve(path: Path) -> dict[str, Any]:
    """What is frozen of a training run's curve."""
    points = curve_of(path)
    return {"count": len(points), "content": _sha(json.dumps(points)), "fields": sorted({n for p in points for n in p})}


def sweep_pages(out: Path) -> Files:
    """A sweep's cells: all files byte-equal, the page with its heads as well."""
    place, made = RESULTS / "smollm2", out / "made"
    made.mkdir()
    summary, cells = _json(place / "summary.json"), _copied(place, out)
    with as_made_on(EPYC.format(TWO)):
        records, heads = RESULTS / "extend-smollm2", place / "heads" / "inspect.safetensors"
        sweep_files(cells, summary, records, heads, made, (11000, 16384))
    said = (made / "summary.md").read_text(encoding="utf-8").partition("\n")[2]
    head = (place / "head.md").read_text(encoding="utf-8").rstrip("\n")
    return {**_texts(made, "smollm2"), "smollm2.md": f"{head}\n{said}"}


def perplexity_pages(out: Path) -> Files:
    """Records of perplexity under two commands."""
    _, records = records_of(RESULTS / "books" / "results.jsonl")
    found: Files = {}
    for name in ("books", "books/rules"):
        made = out / name
        made.mkdir()
        with as_made_on(EPYC.format(TWO)):
            perplexity_files(records, _json(RESULTS / name / "summary.json"), made)
        found |= _texts(made, name)
    return found


def extend_pages(out: Path) -> Files:
    """The demo's records: `extend` decides again as it did."""
    said = (RESULTS / "demo" / "summary.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^- command: `(.*)`$", said, re.MULTILINE)
    with as_made_on(XEON.format(TWO)):
        extend_files(RESULTS / "demo" / "results.jsonl", command, out)
    return _texts(out, "demo")


def downstream_pages(out: Path) -> Files:
    """Minimal pairs."""
    with as_made_on(EPYC.format(TWO)):
        downstream_files(_json(RESULTS / BLIMP / "summary.json"), out)
    return _texts(out, BLIMP)


def training_pages(out: Path) -> Files:
    """Trained encodings.

    Published before summary.json told of `left_out`, `intervals` and an `own_rate` of 1, and before the page had
    curves.jsonl to download: those lines differ today.
    """
    found: Files = {}
    for name, threads in (("chorales", TWO), ("books/training", ONE)):
        made = out / name
        made.mkdir(parents=True)
        with as_made_on(EPYC.format(threads)):
            training_files(_json(RESULTS / name / "summary.json"), made)
        found |= _texts(made, name)
    return found


def study_pages(out: Path) -> Files:
    """Every length rule and DoPE mode, from the records of two lengths in two settings.

    Published before remaps: two headings and a sentence under each picture are worded otherwise today.
    """
    folder = RESULTS / "extend-smollm2"
    return {"extend-smollm2-rules.md": study_page(list(folder.glob("1*.jsonl")), folder / "head-rules.md", out)}


def indexing_pages(_: Path) -> Files:
    """Indirect indexing at several sizes; in the published page one line was broken by hand."""
    runs = [json.loads(line) for line in (RESULTS / "indexing" / "runs.jsonl").read_text().splitlines()]
    return {"indexing.md": indexing_page(runs, (RESULTS / "indexing" / "head.md").read_text(encoding="utf-8"))}


def heads_pages(_: Path) -> Files:
    """SmolLM2's heads; in the published JSON the command's folder was written by hand."""
    name = "smollm2/heads/inspect"
    return {f"{name}.json": heads_file(RESULTS / f"{name}.safetensors")}


PAGES: dict[str, Callable[[Path], Files]] = {
    "sweep": sweep_pages,
    "perplexity": perplexity_pages,
    "extend": extend_pages,
    "downstream": downstream_pages,
    "training": training_pages,
    "study": study_pages,
    "indexing": indexing_pages,
    "heads": heads_pages,
}
_SMOLLM2 = {"model": "smollm2", "steps": 100, "length": 512, "batch": 2, "learning_rate": 0.0003, "held_out": 8192}
_BOOKS = {"steps": 100, "length": 1024, "batch": 4, "learning_rate": 6e-5, "warmup": 5}
# As their commands have it, which results/recalibration.md and results/books.md tell.
RECALIBRATIONS: dict[str, dict[str, Any]] = {
    "recalibration/own": _SMOLLM2 | {"encoding": "own", "text": "kjv", "characters": 1_600_000},
    "recalibration/pope": _SMOLLM2 | {"encoding": "pope", "text": "kjv", "characters": 1_600_000},
    "recalibration/nope": _SMOLLM2 | {"encoding": "nope", "text": "kjv", "characters": 1_600_000},
    "books/training/pope-1024": _BOOKS | {"model": "b256/pope/seed-0", "encoding": "own", "text": "kjv"},
    "books/training/rope-1024": _BOOKS | {"model": "b256/rope/seed-0", "encoding": "own", "text": "kjv"},
    "books/training/rope-yarn-1024": _BOOKS | {"model": "b256/rope/seed-0", "encoding": "yarn", "text": "kjv"},
}


def pinned_pages(made: Files) -> dict[str, Any]:
    """What is frozen of pages that have been made again: their hash, and in what they differ from what is published."""
    return {
        name: {"sha256": _sha(text), "differs": differences((RESULTS / name).read_bytes().decode(), text)}
        for name, text in made.items()
        if (RESULTS / name).is_file()  # card.md, curves.jsonl and some pages aren't published everywhere
    }


def differences(published: str, made: str) -> list[str]:
    """The lines that were published alone, with a -, and those that are made now alone, with a +, cut where long."""
    if published == made:
        return []
    lines = difflib.unified_diff(published.splitlines(), made.splitlines(), "published", "made", n=0, lineterm="")
    return [line[:400] for line in list(lines)[2:] if not line.startswith("@@")] or ["the ends of lines"]


@functools.cache
def frozen() -> dict[str, Any]:
    """What was frozen."""
    found: dict[str, Any] = json.loads(FROZEN.read_text(encoding="utf-8"))
    return found


def _names(section: str) -> list[str]:
    return list(frozen()[section]) if FROZEN.is_file() else []


def _fields(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The names of the fields, in order, of each kind of record, and of an answer in it; more than one way if so."""
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record["kind"], set()).add(" ".join(record))
        for answer in record.get("answers", ()):
            found.setdefault(f"{record['kind']}, an answer", set()).add(" ".join(answer))
    return {kind: sorted(ways) for kind, ways in found.items()}


def _texts(folder: Path, name: str) -> Files:
    """The text files that were made in a folder, by their place under results/."""
    kinds = (".md", ".json", ".html")
    return {f"{name}/{p.name}": p.read_bytes().decode() for p in sorted(folder.iterdir()) if p.suffix in kinds}


def _copied(folder: Path, out: Path) -> Path:
    """A folder of cells, copied, as whoever opens one may write there."""
    shutil.copytree(folder / "cells", out / "copy" / "cells")
    return out / "copy"


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _place(path: Path) -> str:
    return path.relative_to(RESULTS).as_posix()


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- Tests. ---


@pytest.mark.parametrize("name", _names("records"))
def test_records_are_read_as_they_were(name: str, tmp_path: Path) -> None:
    pinned = frozen()["records"][name]
    first = None if "content" in pinned else pinned["count"]
    assert pinned_records(RESULTS / name, first) == pinned
    copy = Path(shutil.copy(RESULTS / name, tmp_path / "copy.jsonl"))
    records, damage = reopened(copy, pinned["settings"])
    assert damage == ""
    assert _sha("\n".join(record["key"] for record in records[:first])) == pinned["keys"]


def test_every_published_file_of_records_is_pinned() -> None:
    there = {_place(p) for p in _of_format(RECORDS) if not p.name.startswith(GROWING)}
    assert there == {name for name in _names("records") if GROWING not in name}
    assert {_place(p.parent.parent) for p in _of_format(CELLS)} == set(_names("cells"))


@pytest.mark.parametrize("name", _names("cells"))
def test_cells_are_read_as_they_were(name: str, tmp_path: Path) -> None:
    assert pinned_cells(RESULTS / name, tmp_path) == frozen()["cells"][name]


@pytest.mark.parametrize("name", _names("arms"))
def test_arms_are_estimated_as_they_were(name: str) -> None:
    assert pinned_arms(RESULTS / name) == frozen()["arms"][name]


@pytest.mark.parametrize("name", _names("curves"))
def test_curves_are_read_as_they_were(name: str) -> None:
    assert pinned_curve(RESULTS / name) == frozen()["curves"][name]


@pytest.mark.parametrize("kind", list(PAGES))
def test_pages_are_made_as_they_were(kind: str, tmp_path: Path) -> None:
    assert pinned_pages(PAGES[kind](tmp_path)) == frozen()["pages"][kind]


@pytest.mark.parametrize("name", list(RECALIBRATIONS))
def test_recalibrations_are_told_as_they_were(name: str) -> None:
    result = _json(RESULTS / f"{name}.json")
    found = recalibrated(result, RECALIBRATIONS[name])
    assert json.loads(json.dumps(found["record"])) == {key: result.get(key, False) for key in found["record"]}
    assert found["said"] == frozen()["recalibrations"][name]


def test_shares_are_judged_as_they_were() -> None:
    groups = _json(RESULTS / BLIMP / "summary.json")["groups"]
    assert pinned_shares(groups) == frozen()["shares"]
    # Published before today's intervals of shares and of their differences, whose bounds are others in the fourth or
    # fifth digit at 670 pairs and are frozen as they are now; all else is what was published.
    for group in groups:
        for name, found in recounted(group).items():
            told = group["models"][name]
            published = {"right": told["right"]} | (told["against"] or {})
            for figure in {"right", "difference"} & found.keys():
                now, then = found.pop(figure), published.pop(figure)
                assert (now["mean"], now["n"]) == (then["mean"], then["n"])
            assert found == published, (group["name"], name)


def test_a_folder_of_cells_says_without_its_config_what_the_sweep_says(tmp_path: Path) -> None:
    published = _json(RESULTS / "smollm2" / "summary.json")["comparisons"]
    found = folder_comparisons(_copied(RESULTS / "smollm2", tmp_path))
    by_condition = {(c["model"], c["task"], c["length"]): c for c in found}
    assert len(by_condition) == len(found) == len(published)
    for told in published:
        here = by_condition[told["model"], told["task"], told["length"]]
        assert here["baselines"] == ["plain"]
        rows = {row["plan"]: row for row in here["plans"]}
        for row in told["plans"]:
            plain = {"plain": row["against"]["plain"]} if "plain" in row["against"] else {}
            assert rows.pop(row["plan"]) == row | {"against": plain}
        assert not rows


def test_one_changed_figure_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "extend-smollm2/11000-noisy.jsonl"
    whole = (RESULTS / name).read_text(encoding="utf-8")
    pinned, arms = frozen()["records"][name], frozen()["arms"][name]
    other = tmp_path / "other.jsonl"
    for changed in (
        whole.replace('"is_exact": false', '"is_exact": true', 1),
        whole.replace('"target_length": 11000', '"target_length": 11001', 1),
        whole.replace('"key": "answers/final/', '"key": "answers/last/', 1),
        whole.replace('"seconds": ', '"duration": ', 1),
        whole[: whole.rindex("\n", 0, -1) + 1],
    ):
        assert changed != whole
        other.write_text(changed, encoding="utf-8")
        assert pinned_records(other) != pinned
    other.write_text(whole.replace('"is_exact": false', '"is_exact": true', 1), encoding="utf-8")
    assert pinned_arms(other) != arms
    other.write_text(whole, encoding="utf-8")
    assert (pinned_records(other), pinned_arms(other)) == (pinned, arms)

    _copied(RESULTS / "smollm2", tmp_path)
    (path,) = (tmp_path / "copy" / "cells").iterdir()
    path.write_text(path.read_text(encoding="utf-8").replace('"n":10,', '"n":11,', 1), encoding="utf-8")
    found = pinned_cells(tmp_path / "copy", tmp_path / "again")
    assert found["damaged"] and found != frozen()["cells"]["smollm2"]

    made = indexing_pages(tmp_path)
    assert pinned_pages(made) == frozen()["pages"]["indexing"]
    monkeypatch.setattr(indexing_map, "REACHED", (0.5, 0.9))
    assert pinned_pages(indexing_pages(tmp_path)) != frozen()["pages"]["indexing"]


# --- Freezing. ---


def _of_format(kind: str) -> list[Path]:
    """The JSON lines under results/ whose first line names the format."""
    found = []
    for path in sorted(RESULTS.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            if re.match(rf'{{"format": ?"{kind}"', file.readline()):
                found.append(path)
    return found


def _committed(path: Path) -> int | None:
    """How many records of a growing file are committed; None when it is none yet."""
    shown = ["git", "show", f"HEAD:{path.relative_to(ROOT).as_posix()}"]
    said = subprocess.run(shown, cwd=ROOT, capture_output=True, check=False)
    return said.stdout.count(b"\n") - 1 if said.returncode == 0 else None


def write() -> None:
    """Freeze what is there."""
    records: dict[str, Any] = {}
    arms: dict[str, Any] = {}
    for path in _of_format(RECORDS):
        name = _place(path)
        grows = path.name.startswith(GROWING)
        first = _committed(path) if grows else None
        if not grows or first is not None:
            records[name] = pinned_records(path, first)
        if not grows and any(fields.startswith("answers") for fields in records[name]["fields"]):
            arms[name] = pinned_arms(path)
    cells, pages = {}, {}
    with tempfile.TemporaryDirectory() as place:
        for number, path in enumerate(_of_format(CELLS)):
            folder = path.parent.parent
            cells[_place(folder)] = pinned_cells(folder, Path(place) / str(number))
        for kind, made in PAGES.items():
            (Path(place) / kind).mkdir()
            pages[kind] = pinned_pages(made(Path(place) / kind))
    found = {
        "records": records,
        "cells": cells,
        "arms": arms,
        "curves": {_place(p): pinned_curve(p) for p in sorted(RESULTS.glob("*/curves/*.jsonl"))},
        "pages": pages,
        "shares": pinned_shares(_json(RESULTS / BLIMP / "summary.json")["groups"]),
        "recalibrations": {
            name: recalibrated(_json(RESULTS / f"{name}.json"), asked)["said"] for name, asked in RECALIBRATIONS.items()
        },
    }
    FROZEN.parent.mkdir(exist_ok=True)
    FROZEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()
