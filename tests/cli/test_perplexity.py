"""`ropewalk perplexity` on runs that were never trained: tables and a picture, going on, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.runs import LENGTH, make_run
from tests.evaluation.tiny_models import tiny

from ropewalk.cli.app import OK, USER_ERROR, main
from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.likelihood import Reading
from ropewalk.hub.plan import Plan
from ropewalk.scaling import NTK
from ropewalk.training.tasks.language import Language


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, runs of several encodings trained on it, a Llama with a tokenizer and a plan for it."""
    place = tmp_path_factory.mktemp("models")
    (place / "text.txt").write_text(story(900))
    task = Language(str(place / "text.txt"), length=LENGTH)
    for name, encoding in (("rope", RoPE(16)), ("nope", NoPE()), ("learned", Learned(32, LENGTH))):
        make_run(place, name, encoding, task)
    tiny("Llama").save_pretrained(place / "llama")
    byte_tokenizer().save_pretrained(place / "llama")
    Plan.of(tiny("Llama"), RoPE(16, rule=NTK(3.0)), 512).save_pretrained(place / "plan")
    return place


def run(place: Path, *models: str, out: Path, **options: str) -> int:
    given = {"text": str(place / "text.txt"), "furthest": "3", "windows": "2", "out": str(out)} | options
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    return main(["perplexity", *(str(place / model) for model in models), *words])


def test_models_and_rules_are_measured_and_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(place, "rope/seed-0", "nope/seed-0/model", out=tmp_path / "o", rules="yarn,ntk") == OK
    captured = capsys.readouterr()
    assert captured.err == "" and "from the test part of" in captured.out
    assert "models trained on its train part: rope, seed 0; nope, seed 0." in captured.out
    assert "p is corrected for the number of comparisons (Holm)." in captured.out
    out = tmp_path / "o"
    assert {p.name for p in out.iterdir()} == {
        "results.jsonl",
        "summary.md",
        "summary.json",
        "perplexity.png",
        "report.html",
    }
    found = json.loads((out / "summary.json").read_text())
    names = ["rope, seed 0", "rope, seed 0 + yarn x3", "rope, seed 0 + ntk x3", "nope, seed 0"]
    assert [arm["name"] for arm in found["arms"]] == names and all(name in captured.out for name in names)
    assert [point["length"] for point in found["arms"][0]["points"]] == [32, 64, 96]
    assert f"ropewalk perplexity {place}/rope/seed-0 {place}/nope/seed-0/model --text" in found["command"]
    before = (out / "results.jsonl").read_text()
    calls: list[int] = []
    real = Reading.nats
    monkeypatch.setattr(Reading, "nats", lambda *args: (calls.append(1), real(*args))[1])
    assert run(place, "nope/seed-0", "rope/seed-0", out=out, rules="linear") == OK
    assert len(calls) == 2 and (out / "results.jsonl").read_text().startswith(before)
    assert "measured before" in capsys.readouterr().out


def test_a_plan_and_the_sliding_way(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"way": "sliding", "stride": "20", "training_length": "40", "windows": "1", "plan": str(place / "plan")}
    assert run(place, "llama", out=tmp_path / "o", part="validation", **more) == OK
    found = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["llama", "llama + plan plan"]
    assert found["reading"] == {"training_length": 40, "furthest": 3, "way": "sliding", "stride": 20}
    assert found["arms"][0]["points"] != found["arms"][1]["points"]
    assert "from the validation part of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        (("rope/seed-0", "learned/seed-0"), {}, "learned, seed 0 has positions for 32 tokens, 96 are wanted"),
        (("nope/seed-0",), {"rules": "ntk"}, "no model here turns by RoPE"),
        (("rope/seed-0",), {"rules": "ntkk"}, "did you mean ntk"),
        (("rope/seed-0",), {"rules": "ntk,ntk"}, "is given twice"),
        (("rope/seed-0",), {"rules": "cope", "factor": "2"}, "has no factor"),
        (("rope/seed-0",), {"way": "ful"}, "did you mean full"),
        (("rope/seed-0",), {"stride": "4"}, "is for the sliding way"),
        (("rope/seed-0",), {"way": "sliding", "stride": "32"}, "stride=32"),
        (("rope/seed-0",), {"furthest": "0"}, "furthest=0"),
        (("rope/seed-0",), {"windows": "0"}, "windows=0"),
        (("rope/seed-0",), {"windows": "90"}, "too few for 90 of 96"),
        (("rope/seed-0",), {"part": "tset"}, "did you mean test"),
        (("rope/seed-0",), {"text": "nowhere.txt"}, "nowhere.txt"),
        (("rope/seed-0",), {"plan": "{place}/plan"}, "for none of the models given"),
        (("rope/seed-0",), {"rules": "ntk", "factor": "-1"}, "factor=-1"),
        (("rope/seed-0", "llama"), {}, "different lengths"),
        (("rope/seed-0", "llama"), {"training_length": "32"}, "has other tokens than rope, seed 0"),
        (("rope/seed-0", "rope/seed-0"), {}, "is given twice"),
        (("nowhere",), {}, "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(
    place: Path,
    tmp_path: Path,
    models: tuple[str, ...],
    options: dict[str, str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = {name: value.replace("{place}", str(place)) for name, value in options.items()}
    assert run(place, *models, out=tmp_path / "o", **filled) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "o").exists()


def test_a_folder_of_other_windows_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "rope/seed-0", out=tmp_path / "o") == OK
    before = (tmp_path / "o" / "results.jsonl").read_bytes()
    assert run(place, "rope/seed-0", out=tmp_path / "o", seed="1") == USER_ERROR
    assert "was made with other books.seed" in capsys.readouterr().err
    assert (tmp_path / "o" / "results.jsonl").read_bytes() == before


def test_a_damaged_line_is_told_and_its_window_read_again(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(place, "rope/seed-0", out=tmp_path / "o") == OK
    found = json.loads((tmp_path / "o" / "summary.json").read_text())["arms"]
    results = tmp_path / "o" / "results.jsonl"
    lines = results.read_text().splitlines()
    results.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    calls: list[int] = []
    real = Reading.nats
    monkeypatch.setattr(Reading, "nats", lambda *args: (calls.append(1), real(*args))[1])
    capsys.readouterr()
    assert run(place, "rope/seed-0", out=tmp_path / "o") == OK
    assert len(calls) == 1 and json.loads((tmp_path / "o" / "summary.json").read_text())["arms"] == found
    assert capsys.readouterr().out.count(f"{results}: line 2 is damaged and skipped") == 1
