from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from tests.report.pages import downloads, parsed
from tests.training.tiny import Echo, recipe

from ropewalk.report.kit.markdown import markdown
from ropewalk.report.training import training_page, verdict, write_report
from ropewalk.training.compare import Comparison
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.runner import Result


class Nats(Echo):
    metric = "nll"


def comparison(out: Path, task: Echo | None = None, seeds: int = 2, **values: list[float | None]) -> Comparison:
    """Encodings by name, each with the values of its seeds."""
    results = tuple(
        Result(name, seed, (task or Echo()).metric, value, {"sequences": 200}, 10, 1234, 0, 60.0, 0.012, None)
        for name, found in values.items()
        for seed, value in enumerate(found)
    )
    return Comparison(recipe(), task or Echo(), tuple(values), seeds, out, results)


def test_every_seed_is_in_the_table(tmp_path: Path) -> None:
    made = comparison(tmp_path, rope=[0.5, 0.25], pope=[0.9, None])
    page = training_page(made, "ropewalk train --task tiny-echo", b"", "{}", "")
    root = parsed(page.html())
    rows = [[c.text for c in row.children] for row in root.all("table")[0].all("tr")]
    assert rows[0][:4] == ["encoding", "seed 0", "seed 1", "mean"]
    assert [row[:4] for row in rows[1:]] == [
        ["rope", "50.0% [43.1, 56.9]", "25.0% [19.5, 31.4]", "37.5% [0.0, 100.0]"],
        ["pope", "90.0% [85.1, 93.4]", "not a number", "not a number"],
    ]
    assert "brackets: 95 % intervals" in root.all("p", "caption")[0].text
    assert root.all("h1")[0].text == "tiny-echo, small recipe: rope, pope"
    assert root.all("pre")[0].text == "ropewalk train --task tiny-echo"
    facts = root.all("dl")[0].text
    assert "rows=48" in facts and "16 channels" in facts and "torch" in facts and "0 to 1" in facts
    text = markdown(page)
    assert "| rope | 50.0% [43.1, 56.9] | 25.0% [19.5, 31.4] | 37.5% [0.0, 100.0] |" in text
    assert "`ropewalk train --task tiny-echo`" in text
    assert "16 channels, 2 heads" in text and "rows=48" in text and "learning rate 0.01" in text
    assert "torch" in text and "processors" in text and "](curves.png)" in text


@pytest.mark.parametrize(
    ("task", "values", "said"),
    [
        (
            Echo(),
            {"rope": [0.5, 0.4], "pope": [0.9, 0.8]},
            "pope: 85.0%, mean of 2 seeds; then rope with 45.0%, all of ",
        ),
        (Echo(), {"rope": [0.5, 0.85], "pope": [0.9, 0.8]}, "then rope with 67.5%, whose seeds overlap with pope's."),
        (Nats(), {"rope": [2.0, 2.1], "pope": [1.9, 1.8]}, "pope: 1.8500, mean of 2 seeds; then rope with 2.0500, all"),
        (Nats(), {"rope": [2.0], "pope": [1.9]}, "One seed says little"),
        (
            Nats(),
            {"rope": [2.0, 1.0], "pope": [1.9, None]},
            "there is no other to compare it with. Without a mean, as a run came to no number: pope.",
        ),
        (Nats(), {"rope": []}, "No encoding has a mean yet."),
    ],
)
def test_the_verdict(task: Echo, values: dict[str, list[float | None]], said: str, tmp_path: Path) -> None:
    assert said in verdict(comparison(tmp_path, task, **values))


def test_files_that_are_left_out_are_folded_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = comparison(tmp_path, rope=[0.5])
    assert not parsed(training_page(made, "x", b"", "{}", "").html()).all("details")
    monkeypatch.setattr(Echo, "problems", ("a.mid (no notes)", "b.mid (<cut> | off)"), raising=False)
    (folded,) = parsed(training_page(made, "x", b"", "{}", "").html()).all("details")
    assert folded.all("summary")[0].text == "2 files left out"
    assert [cell.text for cell in folded.all("th")[1:]] == ["a.mid (no notes)", "b.mid (<cut> | off)"]


def test_the_file_holds_the_curves_and_the_results(tmp_path: Path) -> None:
    made = comparison(tmp_path, rope=[0.5, 0.25])
    points = [[{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5, "metric": 0.25}], [{"step": 2, "loss": 2.0}]]
    for seed, curve in enumerate(points):
        for point in curve:
            folder = RunFolder.of(tmp_path, "rope", seed)
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.add_point(point)
    write_report(made, "ropewalk train")
    root = parsed((tmp_path / "report.html").read_text())
    (image,) = root.all("img")
    content = base64.b64decode((image.attributes["src"] or "").removeprefix("data:image/png;base64,"))
    assert content == (tmp_path / "curves.png").read_bytes()
    assert "rope" in (image.attributes["alt"] or "")
    raw = downloads(root)
    assert raw == {name: (tmp_path / name).read_bytes() for name in ("summary.json", "curves.jsonl")}
    assert [r["value"] for r in json.loads(raw["summary.json"])["results"]] == [0.5, 0.25]
    assert [json.loads(line) for line in raw["curves.jsonl"].splitlines()] == [
        {"encoding": "rope", "seed": seed, **point} for seed, curve in enumerate(points) for point in curve
    ]


def test_a_report_can_be_written_before_any_run_is_finished(tmp_path: Path) -> None:
    empty = Comparison(recipe(), Echo(), ("rope",), 1, tmp_path)
    write_report(empty, "ropewalk train")
    made = {"summary.md", "summary.json", "curves.jsonl", "curves.png", "report.html"}
    assert {p.name for p in tmp_path.iterdir()} == made and (tmp_path / "curves.jsonl").read_text() == ""
    write_report(comparison(tmp_path, rope=[0.5, None]), "ropewalk train")
    data = json.loads((tmp_path / "summary.json").read_text())
    assert [r["value"] for r in data["results"]] == [0.5, None] and data["command"] == "ropewalk train"
    assert "torch" in data["versions"] and "processors" in data["machine"]  # versions by name, for other tools
    assert isinstance(data["versions"], dict)
