from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tests.report.pages import parsed

from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.comparison import compare
from ropewalk.evaluation.grid import Condition
from ropewalk.evaluation.identity import cell_key
from ropewalk.evaluation.search import Pick
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep_config import build_config
from ropewalk.evaluation.sweep_run import Outcome
from ropewalk.report import sweep
from ropewalk.report.sweep import cell_lines, header, model_card, rows, title, to_dict, verdict, write_report

CONFIG = build_config({"models": "m<script>", "plans": ["plain", "yarn"], "tasks": "needle", "lengths": [300, 400]})
PLANS = {"plain": 1.0, "yarn": 0.5, "a|b <script>alert(1)</script>": 1.5}
SAID = "</script><script>alert(1)</script>"


def made(folder: Path, prompts: int = 6, asks: bool = True) -> tuple[Outcome, Cells]:
    """Two lengths of three plans, yarn the best, each prompt with questions at depths 0, 1 and nowhere."""
    outcome = Outcome(CONFIG, models=[{"name": "m<script>", "fingerprint": "f" * 64}], texts={"kjv": "e" * 64})
    with Cells(folder) as cells:
        for length in (300, 400):
            condition = Condition("m<script>", "needle", length)
            cells.define("task", str(length), {"seed": 7}, "needle")
            found: dict[str, list[Cell]] = {}
            for plan, nll in PLANS.items():
                of = "m", plan, str(length)
                for prompt in range(1000, 1000 + prompts):
                    answers = [
                        Answer(f"p{prompt}", "noisy", d, f"k{d}", "1", nll + 0.01 * (prompt % 5), plan == "yarn", SAID)
                        for d in (0.0, 1.0, -1.0)
                    ]
                    key = cell_key(*of, prompt)
                    cell = cells.put(key, of, prompt, answers if asks else [], 1.0, nll=None if asks else nll)
                    found.setdefault(plan, []).append(cell)
            outcome.cells["m<script>", "needle", length] = found
            outcome.comparisons.append(compare(condition, found, ["plain", "yarn"]))
            tried = (("yarn", 0.4), ("ntk", 0.6))
            outcome.picks.append(Pick("m<script>", length, "yarn", (Candidate("best", RoPE(16)),), tried, 1))
    return outcome, cells


def test_the_table_has_figures_with_intervals_and_differences(tmp_path: Path) -> None:
    outcome, _ = made(tmp_path)
    comparison = outcome.comparisons[0]
    assert title(comparison) == "m<script>: needle, 300 tokens, 6 prompts"
    assert header(comparison) == ("plan", "answers right", "NLL, nats a token", "against plain", "against yarn")
    plain, yarn, worse = rows(comparison)
    assert plain[3] == "" and plain[4].startswith("+0.500 [0.500, 0.500]") and plain[4].endswith(" worse")
    assert yarn[1] == "18 of 18 [0.76, 1.00]" and yarn[2].startswith("0.517 [0.") and yarn[4] == ""
    assert yarn[3].startswith("-0.500") and yarn[3].endswith("better") and "p 0" in yarn[3]
    assert worse[1].startswith("0 of 18 [0.00")
    assert verdict(outcome) == (
        "3 plans under 2 conditions; beyond chance, corrected within each condition: of 4 comparisons with plain 2 are "
        "better and 2 worse; of 4 comparisons with the best rule 0 are better and 4 worse. Best: yarn (2 of 2 "
        "conditions)."
    )


def compared(nlls: dict[str, float], rule: str = "yarn", length: int = 300, spread: float = 0.05) -> Outcome:
    """A condition in which these plans have these NLLs, one prompt a little more than another."""
    found = {
        plan: [
            Cell(f"{plan}{i}", "m", plan, "t", 1000 + i, 1, 1, nll + spread * (i * len(plan) % 5), 1.0, 0, 0)
            for i in range(6)
        ]
        for plan, nll in nlls.items()
    }
    condition = Condition("m", "needle", length)
    outcome = Outcome(CONFIG, comparisons=[compare(condition, found, ["plain", rule])])
    outcome.picks.append(Pick("m", length, rule))
    return outcome


@pytest.mark.parametrize(
    ("nlls", "said"),
    [
        ({"plain": 2.0, "yarn": 1.0, "dope": 0.5}, "Best: dope."),
        # Likelier than the rule by less than chance makes: the rule alone does.
        ({"plain": 2.0, "yarn": 1.0, "any": 0.98}, "Best: yarn."),
        ({"plain": 2.0, "yarn": 2.5, "dope": 1.5, "other": 1.0}, "Best: other."),
        ({"plain": 1.0, "yarn": 1.5, "dope": 1.02}, "Nothing is better than plain."),
        ({"plain": 1.0}, "0 worse."),
        ({"yarn": 1.0, "dope": 0.5}, "1 are better and 0 worse."),
    ],
)
def test_the_verdict_names_what_is_best(nlls: dict[str, float], said: str) -> None:
    assert verdict(compared(nlls)).endswith(said)


def test_the_verdict_counts_under_how_many_conditions_each_is_best() -> None:
    outcome = Outcome(CONFIG)
    for length, best in enumerate(["yarn", "a", "yarn", "b", "c", "d", "plain"], start=300):
        one = compared({"plain": 2.0, best: 1.0}, best, length)
        outcome.comparisons += one.comparisons
        outcome.picks += one.picks
    assert verdict(outcome).endswith("Best: yarn (2 of 7 conditions), a (1 of 7), b (1 of 7) and 2 others.")


def test_one_prompt_has_no_interval_and_nothing_asked_no_share(tmp_path: Path) -> None:
    outcome, _ = made(tmp_path / "one", prompts=1, asks=False)
    plain, yarn, _ = rows(outcome.comparisons[0])
    assert header(outcome.comparisons[0]) == ("plan", "NLL, nats a token", "against plain", "against yarn")
    assert plain[1] == "1.000 [one draw: no interval]"
    assert yarn[2] == "-0.500 [one draw: no interval]" and len(yarn) == 4
    assert title(outcome.comparisons[0]).endswith("1 prompt")


def test_a_few_prompts_that_all_differ_alike_have_no_interval_and_are_not_called_one_draw() -> None:
    found = {
        plan: [Cell(f"{plan}{i}", "m", plan, "t", 1000 + i, 1, 1, nll, 1.0, 0, 0) for i in range(2)]
        for plan, nll in (("plain", 1.0), ("yarn", 0.5))
    }
    comparison = compare(Condition("m", "needle", 300), found, ["plain"])
    assert rows(comparison)[1][3] == "-0.500 [all alike: no interval], p 0.5"
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_the_summary_says_all_of_it(tmp_path: Path) -> None:
    outcome, cells = made(tmp_path / "cells")
    write_report(outcome, cells, "ropewalk sweep c.yaml", tmp_path)
    page, text = (tmp_path / "summary.md").read_text(), (tmp_path / "summary.json").read_text()
    assert "## m&lt;script>: needle, 400 tokens" in page and "a\\|b &lt;script>" in page
    assert "<script" not in page and "| ntk | 0.600 |" in page
    assert "best rule yarn; best plan best." in page and "fingerprint of m&lt;script>: ffffffffffffffff" in page
    found = json.loads(text)
    assert found == json.loads(json.dumps(to_dict(outcome, "ropewalk sweep c.yaml")))
    assert found["comparisons"][1]["length"] == 400 and found["comparisons"][0]["plans"][1]["against"].keys() == {
        "plain"
    }
    assert found["picks"][0]["tried"][0] == {"plan": "yarn", "nll": 0.4} and "kjv" in text


def test_an_interval_without_an_end_is_null_in_json(tmp_path: Path) -> None:
    outcome, _ = made(tmp_path, prompts=1)
    (row, *_) = to_dict(outcome, "")["comparisons"][0]["plans"]
    assert row["nll"]["low"] is None
    json.dumps(to_dict(outcome, ""), allow_nan=False)


def test_every_compared_answer_is_in_the_page_to_be_saved(tmp_path: Path) -> None:
    outcome, cells = made(tmp_path / "cells")
    write_report(outcome, cells, "x", tmp_path)
    links = [a for a in parsed((tmp_path / "report.html").read_text()).all("a") if "download" in a.attributes]
    assert [a.attributes["download"] for a in links] == ["summary.json", "cells.jsonl"]
    content = base64.b64decode((links[1].attributes["href"] or "").partition(",")[2]).decode("ascii")
    lines = [json.loads(line) for line in content.split("\n")[:-1]]
    held = [cell for by_plan in outcome.cells.values() for of_plan in by_plan.values() for cell in of_plan]
    assert [line["key"] for line in lines] == [cell.key for cell in held] and len(lines) == 2 * 3 * 6
    last = lines[-1]
    assert (last["model"], last["task"], last["length"], last["plan"]) == ("m<script>", "needle", 400, list(PLANS)[-1])
    assert (last["prompt"], last["n"], last["right"], last["nll"]) == (1005, 3, 0, held[-1].nll)
    assert [Answer.from_dict(answer) for answer in last["answers"]] == cells.answers(held[-1])
    assert last["answers"][0]["generated"] == SAID and last["seed"] == 7
    assert "cells.jsonl" in (tmp_path / "summary.md").read_text()


def test_cells_too_many_for_a_page_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, cells = made(tmp_path / "cells")
    size = len(cell_lines(outcome, cells))
    for most, is_inside in ((size, True), (size - 1, False)):
        monkeypatch.setattr(sweep, "MOST_INSIDE", most)
        (tmp_path / str(most)).mkdir()
        write_report(outcome, cells, "x", tmp_path / str(most))
        text = (tmp_path / str(most) / "report.html").read_text()
        names = [a.attributes["download"] for a in parsed(text).all("a") if "download" in a.attributes]
        beside = tmp_path / str(most) / "cells.jsonl"
        assert ("cells.jsonl" in names) == is_inside != beside.exists()
        assert "cells.jsonl" in text
    assert beside.read_text() == cell_lines(outcome, cells)


def test_no_text_becomes_markup_in_the_page(tmp_path: Path) -> None:
    outcome, cells = made(tmp_path / "cells")
    write_report(outcome, cells, f"ropewalk sweep {SAID}", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page and "m<script>" not in page and "&lt;script&gt;alert(1)" in page


def test_the_page_has_a_map_of_lengths_and_depths_for_each_plan(tmp_path: Path) -> None:
    outcome, cells = made(tmp_path / "cells")
    write_report(outcome, cells, "x", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "By depth and length" in page and "nowhere" in page and "share of right answers" in page
    silent, cells = made(tmp_path / "silent", asks=False)
    write_report(silent, cells, "x", tmp_path)
    assert "By depth and length" not in (tmp_path / "report.html").read_text()


def test_of_many_plans_the_maps_of_the_best_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ropewalk.report import sweep as module

    outcome, _ = made(tmp_path)
    here: list[Any] = outcome.comparisons
    assert module._shown(here) == list(PLANS)
    monkeypatch.setattr(module, "MOST_MAPS", 2)
    assert module._shown(here) == ["plain", "yarn"]
    monkeypatch.setattr(module, "MOST_MAPS", 1)
    lone = [dataclasses.replace(comparison, baselines=()) for comparison in here]
    assert module._shown(lone) == ["yarn"]


@pytest.mark.parametrize(("most", "folded"), [(3, []), (2, [list(PLANS)[2]]), (1, ["plain", list(PLANS)[2]])])
def test_maps_of_further_plans_are_folded_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, folded: list[str]
) -> None:
    monkeypatch.setattr("ropewalk.report.sweep.MOST_MAPS", most)
    outcome, cells = made(tmp_path / "cells")
    write_report(outcome, cells, "x", tmp_path)
    root = parsed((tmp_path / "report.html").read_text())
    figures = [[t.attributes["aria-label"] for t in f.all("table", "map")] for f in root.all("figure", "maps")]
    assert [sorted(figure) for figure in figures] == [
        sorted(set(PLANS) - set(folded)),
        *([sorted(folded)] if folded else []),
    ]
    said = [c.text for c in root.all("figcaption")]
    if not folded:
        assert not said and not root.all("details")
        return
    assert f"{len(folded)} of 3 plans are folded below" in said[0]
    (details,) = root.all("details")
    assert f"{len(folded)} further plan" in details.all("summary")[0].text
    inside = details.all("figure", "maps")[0]
    assert all(name in inside.text for name in folded)
    # One scale: a share of 0 is dark wherever it stands.
    assert {legend.text for legend in root.all("p", "legend")} == {"0.001.00share of right answers"}
    assert "further plan" in (tmp_path / "summary.md").read_text()


def test_the_card_has_every_figure_for_people_and_for_the_hub(tmp_path: Path) -> None:
    outcome, cells = made(tmp_path)
    write_report(outcome, cells, "ropewalk sweep x.yaml", tmp_path)
    text = (tmp_path / "card.md").read_text()
    metadata = ModelCard(text).data
    found = {(r.dataset_name, r.metric_name.split(", ")[-1], r.metric_type): r for r in metadata.eval_results or []}
    assert len(found) == 2 * 3 * 2
    best = found["needle, 400 tokens", "yarn", "exact"]
    assert best.metric_value == 1.0 and best.metric_args == {"low": pytest.approx(0.76, abs=0.01), "high": 1.0}
    assert "| needle, 300 tokens | yarn | 6 | 1.000 [0.7" in text and "<script>" not in text.split("\n---\n", 1)[1]
    asked_nothing, cells = made(tmp_path / "one", prompts=1, asks=False)
    assert {r.metric_type for r in ModelCard(model_card(asked_nothing, "x")).data.eval_results or []} == {"text_nll"}
    assert "| 1.000 [–, –] |" in model_card(asked_nothing, "x")


def test_no_name_becomes_markup_in_the_card() -> None:
    text = model_card(compared({"plain": 2.0, "<b>[x](y)": 1.0}), "x").split("\n---\n", 1)[1]
    assert "Best: &lt;b>\\[x\\](y)." in text and "<b>" not in text
