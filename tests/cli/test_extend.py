"""The main job from the command line, on a tiny model: end to end, stopped and started again, and bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story
from transformers import LlamaConfig, LlamaForCausalLM

import ropewalk
from ropewalk.cli.app import INTERRUPTED, OK, USER_ERROR, main
from ropewalk.encodings.base import Encoding
from ropewalk.evaluation.records import read_records
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep import Sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a training length of 512 tokens, and a text."""
    place = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    (place / "text.txt").write_text(story(1500), encoding="utf-8")
    return place


def saved_with(folder: Path, place: Path, encoding: Encoding) -> Path:
    """A folder with the same weights, tokenizer and text, whose model was saved with an encoding installed."""
    shutil.copytree(folder, place)
    model = LlamaForCausalLM.from_pretrained(folder)
    ropewalk.install(model, encoding)
    model.save_pretrained(place)
    return place


def arguments(folder: Path, out: Path, **changed: str) -> list[str]:
    given = {"length": "700", "text": str(folder / "text.txt"), "budget": "6s", "depths": "4", "out": str(out)}
    options = [f"--{name}={value}" for name, value in (given | changed).items()]
    return ["extend", str(folder), *options]


def test_extend_writes_plan_records_summary_and_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, tmp_path, dope="always")) == OK
    printed = capsys.readouterr().out
    assert "beyond chance" in printed
    settings, records = read_records(tmp_path / "results.jsonl")
    assert settings["target_length"] == 700
    stages = {r["stage"] for r in records if r["kind"] == "answers"}
    assert stages == {"at original length", "rules", "dope", "final"}
    searched = {r["prompt"] for r in records if r["kind"] == "answers" and r["stage"] != "final"}
    judged = {r["prompt"] for r in records if r["kind"] == "answers" and r["stage"] == "final"}
    assert len(judged) >= 2 and not searched & judged
    summary = (tmp_path / "summary.md").read_text()
    assert "beyond chance" in summary and "ropewalk extend" in summary
    assert (tmp_path / "depths.png").stat().st_size > 10_000
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "beyond chance" in page and "report.html" in printed and page.count("<td") > 100
    plan = ropewalk.from_pretrained(str(tmp_path / "plan"))
    assert (plan.original_length, plan.target_length, plan.when) == (512, 700, "long")
    assert "nll" in json.dumps(plan.evidence)
    model = LlamaForCausalLM.from_pretrained(folder)
    with plan.installed(model):
        tokens = model.generate(torch.arange(3, 603)[None] % 600, max_new_tokens=3, do_sample=False)
    assert tokens.shape == (1, 603)


def test_without_dope_plans_no_statistics_are_made_and_the_page_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, tmp_path, budget="1s", dope="never")) == OK
    printed = capsys.readouterr().out
    assert "DoPE plans weren't tried" in " ".join(printed.split())
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"plan", "results.jsonl", "summary.md", "depths.png", "report.html"}
    assert "statistics.safetensors" not in names
    _, records = read_records(tmp_path / "results.jsonl")
    assert {r["stage"] for r in records if r["kind"] == "answers"} == {"at original length", "rules", "final"}
    for page in ("summary.md", "report.html"):
        said = (tmp_path / page).read_text(encoding="utf-8")
        assert "DoPE plans weren" in said and "The heads" not in said
    finished = (tmp_path / "results.jsonl").read_text()
    assert main(arguments(folder, tmp_path, budget="1s", dope="never")) == OK
    assert (tmp_path / "results.jsonl").read_text() == finished
    # The records serve a run that tries them.
    assert main(arguments(folder, tmp_path, budget="1s", dope="always")) == OK
    assert (tmp_path / "results.jsonl").read_text().startswith(finished)
    assert (tmp_path / "statistics.safetensors").exists()


def test_a_remap_that_wins_is_the_plan(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Sweep.measure

    def measure(self: Sweep, *given: Any) -> dict[str, list[Answer]]:
        return {
            name: [dataclasses.replace(a, nll=a.nll / 2) for a in found] if name.startswith("self_extend") else found
            for name, found in real(self, *given).items()
        }

    monkeypatch.setattr(Sweep, "measure", measure)
    assert main(arguments(folder, tmp_path, budget="1s", dope="never")) == OK
    plan = ropewalk.from_pretrained(tmp_path / "plan")
    assert isinstance(plan.encoding, ropewalk.SelfExtend)
    assert plan.encoding.largest_distance(700) <= 0.84 * 512
    assert f"self_extend {plan.encoding.sizes} is saved." in (tmp_path / "summary.md").read_text(encoding="utf-8")
    model = LlamaForCausalLM.from_pretrained(folder)
    with plan.installed(model):
        tokens = model.generate(torch.arange(3, 603)[None] % 600, max_new_tokens=3, do_sample=False)
    assert tokens.shape == (1, 603)


def test_without_depths_the_model_decides_how_many_needles(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one for one in arguments(folder, tmp_path, budget="1s") if not one.startswith("--depths")]
    assert main(given) == OK
    said = "1 needle a haystack: at 256 tokens, half its training length, the model answers 0 of 5 right"
    printed = capsys.readouterr().out
    assert printed.count(said) == 1 and printed.index(said) < printed.index("at original length")
    settings, records = read_records(tmp_path / "results.jsonl")
    assert settings["depths"] == 0
    judged = [r for r in records if r["kind"] == "answers" and r["stage"] == "final"]
    assert {len(r["answers"]) for r in judged} == {1}
    assert said in (tmp_path / "summary.md").read_text() and said in (tmp_path / "report.html").read_text()
    finished = (tmp_path / "results.jsonl").read_text()
    assert main(given) == OK
    assert (tmp_path / "results.jsonl").read_text() == finished and said in capsys.readouterr().out


def test_a_stopped_run_goes_on_and_repeats_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[str] = []
    keep = Sweep._keep

    def stop_after_five(self: Sweep, *args: object) -> None:
        if len(kept) == 5:
            raise KeyboardInterrupt
        keep(self, *args)  # type: ignore[arg-type]
        kept.append("one")

    monkeypatch.setattr(Sweep, "_keep", stop_after_five)
    assert main(arguments(folder, tmp_path)) == INTERRUPTED
    assert "finished work is kept" in capsys.readouterr().err
    before = (tmp_path / "results.jsonl").read_text()
    assert not (tmp_path / "plan").exists()
    monkeypatch.setattr(Sweep, "_keep", keep)
    assert main(arguments(folder, tmp_path)) == OK
    assert (tmp_path / "results.jsonl").read_text().startswith(before)
    finished = (tmp_path / "results.jsonl").read_text()
    assert main(arguments(folder, tmp_path)) == OK
    assert (tmp_path / "results.jsonl").read_text() == finished
    damaged = finished.replace('{"key"', '{"key', 1)
    (tmp_path / "results.jsonl").write_text(damaged)
    capsys.readouterr()
    assert main(arguments(folder, tmp_path)) == OK
    assert f"{tmp_path}/results.jsonl: line 2 is damaged and skipped" in capsys.readouterr().out
    again = (tmp_path / "results.jsonl").read_text()
    assert again.startswith(damaged) and again.count("\n") == finished.count("\n") + 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"length": "512"}, "training length"),
        ({"length": "100000"}, "tokens"),
        ({"budget": "soon"}, "budget"),
        ({"setting": "loud"}, "setting"),
        ({"text": "nowhere.txt"}, "nowhere.txt"),
        ({"when": "sometimes"}, "when"),
        ({"dope": "alway"}, "did you mean always"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    folder: Path, tmp_path: Path, changed: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, tmp_path / "out", **changed)) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "out" / "plan").exists()
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_saved_rope_is_stretched_as_it_is_without(folder: Path, tmp_path: Path) -> None:
    own = ropewalk.RoPE(16)  # as `ropewalk train` names it, where the model's own tells its width too
    found = []
    for number, place in enumerate((folder, saved_with(folder, tmp_path / "saved", own))):
        assert main(arguments(place, tmp_path / f"out-{number}", budget="1s")) == OK
        _, records = read_records(tmp_path / f"out-{number}" / "results.jsonl")
        found.append({r["key"]: r["answers"] for r in records if r["kind"] == "answers"})
    shared = found[0].keys() & found[1].keys()
    assert {key.split("/")[1] for key in shared} >= {"at original length", "rules", "final"}  # dope: as time allows
    assert [found[0][key] for key in shared] == [found[1][key] for key in shared]


def test_another_rope_is_what_rules_and_the_plan_act_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, out = saved_with(folder, tmp_path / "saved", ropewalk.RoPE(16, base=300.0)), tmp_path / "out"
    capsys.readouterr()  # the bars of transformers
    assert main(arguments(place, out)) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert "when='long'" in error and "always" in error and "\n" not in error
    assert not (out / "results.jsonl").exists()
    assert main(arguments(place, out, budget="1s", when="always")) == OK
    _, records = read_records(out / "results.jsonl")
    encodings = [json.dumps(r["encoding"]) for r in records if r["kind"] == "answers"]
    assert encodings and all('"base": 300.0' in encoding for encoding in encodings)
    assert '"base": 300.0' in json.dumps(ropewalk.from_pretrained(out / "plan").encoding.to_dict())


@pytest.mark.parametrize("encoding", [ropewalk.PoPE(16, 2), ropewalk.NoPE()])
def test_a_model_without_a_rotation_is_refused_and_nothing_written(
    folder: Path, tmp_path: Path, encoding: Encoding, capsys: pytest.CaptureFixture[str]
) -> None:
    place = saved_with(folder, tmp_path / "saved", encoding)
    capsys.readouterr()  # the bars of transformers
    assert main(arguments(place, tmp_path / "out")) == USER_ERROR
    error = capsys.readouterr().err.strip()
    assert str(place) in error and encoding.kind in error and "\n" not in error
    assert not list((tmp_path / "out").rglob("*"))


def test_an_unwritable_folder_is_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("here")
    assert main(arguments(folder, in_the_way / "out")) == USER_ERROR
    assert "out=" in capsys.readouterr().err


def test_other_settings_in_the_same_folder_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, tmp_path)) == OK
    capsys.readouterr()
    assert main(arguments(folder, tmp_path, seed="5")) == USER_ERROR
    assert "seed" in capsys.readouterr().err
