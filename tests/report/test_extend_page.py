"""The page of the main job: what is on it, from an outcome made by hand."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tests.report.outcomes import DOPE, PLAIN, REMAP, RULE, SECOND, outcome
from tests.report.pages import HOSTILE, Element, parsed

from ropewalk.analysis.head_statistics import Statistics
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.calibration import FILE
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.extend import Outcome
from ropewalk.evaluation.needle_count import NeedleCount
from ropewalk.evaluation.statistics import Answer
from ropewalk.report.extend_page import extend_page, write_report
from ropewalk.report.kit.markdown import markdown
from ropewalk.report.summary import verdict

MODEL = {"name": "smollm2", "fingerprint": "ab" * 32}
SECTIONS = [
    "Judged on prompts that no choice had seen",
    "Where it breaks",
    "What it costs on short inputs",
    "The search",
    "The heads",
    "How this was made",
]
RECORDS = b'{"format": "ropewalk.records"}\n'


def statistics(layers: int = 3) -> Statistics:
    """Of 4 query and 2 key heads, 16 channels."""
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(layers, heads, 40, 16, generator=random) for heads in (4, 2))
    return Statistics({"post_ntk": (query.mT @ query, key.mT @ key)}, 40, tuple(range(layers)), "half", 16)


def page(made: Outcome, command: str = "ropewalk extend smollm2 --length 11000") -> Element:
    return parsed(extend_page(made, command, MODEL, statistics(), RECORDS).html())


def text(made: Outcome) -> str:
    return markdown(extend_page(made, "ropewalk extend smollm2 --length 11000", MODEL, statistics(), RECORDS))


def table(root: Element, number: int) -> list[list[str]]:
    """The cells of a table that isn't a map."""
    plain = [t for t in root.all("table") if "map" not in (t.attributes.get("class") or "")]
    return [[c.text for c in row.children] for row in plain[number].all("tr")]


def test_verdict_tables_and_sections() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60)
    root = page(made)
    assert root.all("h1")[0].text == "smollm2: from 8,192 to 11,000 tokens"
    assert root.all("p", "verdict")[0].text == verdict(made)
    assert [h.text for h in root.all("h2")] == SECTIONS
    judged = table(root, 0)
    at_original = "plain at 8,192 tokens, its training length"
    assert [row[0] for row in judged] == ["encoding", at_original, PLAIN.name, RULE.name, DOPE.name]
    assert judged[1][1].startswith("4 of 10 [") and judged[1][3] == ""
    assert judged[2][1].startswith("12 of 60 [") and judged[4][3].startswith("-0.350")
    assert table(root, 2)[1][0] == "8,192 (training length)" and table(root, 3)[0][1:] == ["512 tokens", "8,192 tokens"]
    assert [row[0] for row in table(root, 4)[1:]] == [RULE.name, SECOND.name]
    assert [row[0] for row in table(root, 5)[1:]] == [DOPE.name, RULE.name]
    assert root.all("pre")[0].text == "ropewalk extend smollm2 --length 11000"
    assert "abababababababab" in root.all("dl")[0].text and "torch" in root.all("dl")[0].text


def test_without_dope_plans_there_are_no_heads(tmp_path: Path) -> None:
    """Nor a file of statistics; one that an earlier run left isn't read."""
    made = outcome(plain=2.2, rule=0.95, dope=None, remap=0.80)
    (tmp_path / "results.jsonl").write_bytes(RECORDS)
    for _ in range(2):
        write_report(made, "c", MODEL, tmp_path)
        root = parsed((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert [h.text for h in root.all("h2")] == [name for name in SECTIONS if name != "The heads"]
        assert root.all("figure", "heads") == [] and "DoPE plans on top of" not in root.text
        assert "DoPE plans weren't tried" in root.all("p", "verdict")[0].text
        assert [row[0] for row in table(root, 0)[2:]] == [PLAIN.name, RULE.name, REMAP.name]
        assert [row[0] for row in table(root, 4)[1:]] == [RULE.name, REMAP.name, SECOND.name]
        assert "## The heads" not in (tmp_path / "summary.md").read_text(encoding="utf-8")
        (tmp_path / FILE).write_bytes(b"damaged")


@pytest.mark.parametrize("best", [RULE, REMAP])
def test_the_heads_say_where_they_were_measured(best: Candidate) -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60, remap=0.80)
    made.best, made.other = best, RULE if best is REMAP else REMAP
    made.dope = [(DOPE, made.dope[0][1]), (best, made.dope[1][1])]
    said = page(made).text
    assert f"under {best.name}, after rotation" in said
    assert ("those past its window at the positions at which they are compared" in said) == (best is REMAP)


def test_questions_that_plain_was_not_asked_stay_empty() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60, prompts=2)
    made.final[PLAIN.name] = [a for a in made.final[PLAIN.name] if a.prompt == "final/0"]
    rows = [[c.text for c in row.children] for row in page(made).all("details")[0].all("tr")]
    assert len(rows) == 1 + 20 and rows[1][4:] == ["✓ 1", "✓ 1", "✓ 1"] and rows[11][4:] == ["", "✓ 1", "✓ 1"]


def test_how_the_number_of_needles_was_decided_is_above_the_tables() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60)
    assert "a haystack:" not in text(made)
    made.needle_count = NeedleCount(4, 4096, {10: (5, 10), 4: (10, 12)})
    said = text(made)
    assert 0 < said.index(made.needle_count.text()) < said.index("| encoding")
    assert page(made).all("section")[0].all("p")[0].text == made.needle_count.text()


@pytest.mark.parametrize(("prompts", "warned"), [(3, True), (6, False)])
def test_few_prompts_are_warned_of(prompts: int, warned: bool) -> None:
    said = page(outcome(plain=2.2, rule=0.95, dope=0.60, prompts=prompts)).all("section")[0].text
    assert ("intervals are wide" in said) == warned


def test_heat_maps_by_depth_have_an_arm_a_row() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60)
    made.at_original = made.at_original[:4]  # depths that weren't measured stay empty
    right, nll = page(made).all("figure", "maps")
    rows = [[c.text for c in row.children] for row in right.all("tbody")[0].all("tr")]
    assert [row[0] for row in rows] == ["plain at 8,192 tokens", PLAIN.name, RULE.name, DOPE.name]
    assert rows[0][1:] == ["1.00"] * 4 + ["–"] * 6
    assert rows[2][1:] == ["1.00"] * 8 + ["0.00"] * 2
    found = [float(c.text) for c in nll.all("tbody")[0].all("tr")[2].children[1:]]
    assert found == pytest.approx([0.95 + 0.3 * (i - 4.5) / 10 for i in range(10)], abs=0.006)
    best = min(nll.all("td"), key=lambda cell: float(cell.text.replace("–", "9")))
    assert "Bright is good" in nll.text and best.attributes["class"] == "c63"


def test_nothing_right_is_dark_whatever_the_rest_is() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60)
    made.final = {name: [dataclasses.replace(a, is_exact=False) for a in found] for name, found in made.final.items()}
    made.at_original = [dataclasses.replace(a, is_exact=False) for a in made.at_original]
    right, _ = page(made).all("figure", "maps")
    assert {cell.attributes["class"] for cell in right.all("td") if cell.text != "–"} == {"c0"}


def test_every_answer_is_beside_the_others_to_the_same_question() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60, prompts=2)
    made.final[RULE.name][3] = Answer(**(made.final[RULE.name][3].to_dict() | {"generated": "<b>other</b>"}))
    root = page(made)
    rows = [[c.text for c in row.children] for row in root.all("details")[0].all("tr")]
    assert rows[0] == ["prompt", "depth", "asked for", "expected", PLAIN.name, RULE.name, DOPE.name]
    assert len(rows) == 1 + 20 and rows[1] == ["final/0", "0.00", "k0", "1", "✓ 1", "✓ 1", "✓ 1"]
    assert rows[4] == ["final/0", "0.33", "k3", "1", "✗ 1", "✓ <b>other</b>", "✓ 1"]


def test_the_heads_are_coloured_first_by_the_score_that_chose_the_plans() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60)
    (figure,) = page(made).all("figure", "heads")
    names = [o.text for o in figure.all("option")]
    assert names[0] == "truncated_entropy-1 key" and "(truncated_entropy-1 key)" in DOPE.name
    assert "truncated_entropy-16 key" in names  # not 32: a head has 16 directions
    cells = figure.all("td")
    assert [i for i, c in enumerate(cells) if "marked" in (c.attributes["class"] or "")] == [1 * 4 + 2]
    (data,) = (json.loads(s.text) for s in figure.all("script", "data"))
    wanted = statistics().score("truncated_entropy", 1, "key").flatten().tolist()
    assert data["scores"][0]["values"] == pytest.approx(wanted)
    assert [(c["kind"], c["series"], c["n"]) for c in data["charts"]] == [
        ("line", ["queries", "keys"], 16),
        ("bars", ["queries", "keys"], 8),
    ]


def test_the_charts_values_are_those_of_the_gram_matrices() -> None:
    made = extend_page(outcome(2.2, 0.95, 0.60), "c", MODEL, statistics(), RECORDS)
    charts = {c.title: c.values for part in made.parts for c in getattr(part, "charts", ())}
    spectrum, usage = charts["Eigenvalues of the Gram matrix"], charts["Use of the frequencies"]
    torch.testing.assert_close(spectrum.sum(-1), torch.ones(3, 4, 2, dtype=torch.float64))
    assert torch.equal(spectrum[:, 0, 1], spectrum[:, 1, 1])  # two query heads share a key head
    assert not torch.equal(spectrum[:, 1, 1], spectrum[:, 2, 1])
    query = statistics().grams["post_ntk"][0]
    energy = query[1, 3].diagonal()
    torch.testing.assert_close(usage[1, 3, 0].float(), ((energy[:8] + energy[8:]) / 40).sqrt())


def test_hostile_answers_names_and_commands_stay_text() -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60)
    text = " ".join(HOSTILE)
    answer = made.final[PLAIN.name][0]
    made.final[PLAIN.name][0] = Answer(**(answer.to_dict() | {"generated": text}))
    harmless = page(outcome(plain=2.2, rule=0.95, dope=0.60))
    root = parsed(extend_page(made, text, MODEL | {"name": text}, statistics(), RECORDS).html())
    assert len(root.all("script")) == len(harmless.all("script")) and root.all("img") == []
    assert root.text.count(text) >= 3


def test_the_file_takes_records_and_statistics_from_the_folder(tmp_path: Path) -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60)
    with pytest.raises(ArgumentError, match=r"results\.jsonl"):
        write_report(made, "c", MODEL, tmp_path)
    (tmp_path / "results.jsonl").write_bytes(RECORDS)
    with pytest.raises(ArgumentError, match="statistics"):
        write_report(made, "c", MODEL, tmp_path)
    assert not (tmp_path / "report.html").exists()
    statistics().save(tmp_path / FILE)
    write_report(made, "c", MODEL, tmp_path)
    (link,) = [a for a in parsed((tmp_path / "report.html").read_text()).all("a") if "download" in a.attributes]
    kept = (link.attributes["href"] or "").removeprefix("data:application/jsonl;base64,")
    assert link.text == "results.jsonl" and base64.b64decode(kept) == RECORDS


@pytest.mark.parametrize("prompts", [2, 6])
def test_the_same_in_markdown(prompts: int) -> None:
    made = outcome(plain=2.2, rule=0.95, dope=0.60, prompts=prompts)
    made.winner = DOPE
    page = text(made)
    lines = page.splitlines()
    assert lines[0] == "# smollm2: from 8,192 to 11,000 tokens"
    assert lines[2] == verdict(made)
    headings = [line for line in lines if line.startswith("## ")]
    assert [h.removeprefix("## ") for h in headings] == SECTIONS
    assert "| 8,192 (training length) | 4 of 10" in page and f"| 11,000 | {2 * prompts} of {10 * prompts}" in page
    assert "| encoding | 512 tokens | 8,192 tokens |" in page
    assert "| plain | 3.000 [2.900, 3.100] | 2.800 |" in page
    assert "`ropewalk extend smollm2 --length 11000`" in page and "abababababababab" in page
    assert ("haystacks the intervals are wide" in page) == (prompts == 2)
    for number, line in enumerate(lines):  # every table has one width, a rule, and a blank line or the end behind it
        if line.startswith("| ---"):
            width = line.count("|")
            end = next(i for i in range(number, len(lines)) if not lines[i].startswith("|"))
            assert lines[end] == "" and not lines[number - 2]
            assert {row.count("|") for row in lines[number - 1 : end]} == {width}
        # Markdown takes headings only after a blank line in some readers.
        if line.startswith("## "):
            assert lines[number - 1] == "" and lines[number + 1] == ""
    assert "\n\n\n" not in page


def test_one_short_length() -> None:
    assert "| encoding | 512 tokens |" in text(outcome(plain=2.2, rule=0.95, dope=0.60, original=512, target=700))
