"""Recalibration: measured before, after the swap and at the end; killed and resumed to the same numbers; refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_runner import Kill, Killed, Notes
from tests.training.tiny import SIZE, losses, quick_collections, text_file, text_model

import ropewalk
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.patching.handle import handle_of
from ropewalk.scaling import YaRN
from ropewalk.training import recalibrate as module
from ropewalk.training.recalibrate import Outcome, Recalibration, _parts, recalibrate
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.tasks.language import Language

LENGTH = 16


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_collections():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("recalibrate")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ROPEWALK_CACHE", str(folder / "cache"))
        text_model(folder / "plain", text_file(folder), size=dataclasses.replace(SIZE, tied=True))
        yield folder


@pytest.fixture(scope="module")
def pope(place: Path) -> Outcome:
    """A finished run in PLACE/pope."""
    return recalibrate(wanted(place), place / "pope", use_cpu=True)


def wanted(place: Path, **changes: Any) -> Recalibration:
    values: dict[str, Any] = {
        "model": str(place / "plain"),
        "encoding": "pope-uniform",
        "steps": 12,
        "length": LENGTH,
        "text": str(place / "text.txt"),
        "batch": 4,
        "learning_rate": 1e-2,
        "held_out": 256,
    }
    return Recalibration(**(values | changes))


def plain(outcome: Outcome) -> Outcome:
    return dataclasses.replace(outcome, seconds=0.0, waiting=0.0)


def test_a_run_says_what_the_swap_cost_and_what_came_back(place: Path, pope: Outcome) -> None:
    out = place / "pope"
    names = {p.name for p in out.iterdir()} - {"tensorboard"}
    assert names == {"run.json", "start.json", "curve.jsonl", "result.json", "model"}
    assert (pope.encoding, pope.seed, pope.steps, pope.tokens) == ("pope-uniform", 0, 12, 12 * 4 * LENGTH)
    assert pope.own_parameters == 2 * 2 * 8 and pope.diverged is None and pope.seconds > 0
    before, swapped, after = (held.at(1) for held in (pope.as_it_was, pope.after_swap, pope.after))
    assert before is not None and swapped is not None and after is not None
    assert before.mean != swapped.mean and after.mean < swapped.mean - 0.1
    assert set(pope.after.windows) == {1, 2, 4} and before.clusters == 256 // LENGTH
    points = RunFolder(out).curve()
    assert [p["step"] for p in points] == list(range(1, 13)) and [p["step"] for p in points if "nll" in p] == [10, 12]
    assert points[-1]["nll"] == pytest.approx(pope.after.validation, abs=1e-6)
    saved = json.loads((out / "result.json").read_text())
    assert Outcome.from_dict(saved) == pope and saved["value"] == after.mean and "torch" in saved["versions"]
    about = json.loads((out / "run.json").read_text())
    assert about["encoding"]["kind"] == "pope" and len(about["data_sha256"]) == 64
    assert Language(**{k: v for k, v in about["task"].items() if k != "name"}).length == LENGTH


def test_the_saved_model_is_complete_and_has_the_results_figures(place: Path, pope: Outcome) -> None:
    model, tokenizer = ropewalk.load_model(place / "pope" / "model")
    assert isinstance(handle_of(model).encoding, PoPE) and model.config.use_cache  # type: ignore[union-attr]
    text = (place / "text.txt").read_text()
    ids = torch.tensor(tokenizer(text[len(text) * 95 // 100 :])["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    chosen = rows[[len(rows) * i // 16 for i in range(16)]]
    with torch.no_grad():
        loss = model(chosen, labels=chosen).loss.item()
    assert loss == pytest.approx(pope.after.at(1).mean, abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("step", [7, 11, 12])
def test_a_killed_run_goes_on_to_the_very_same_numbers(place: Path, pope: Outcome, tmp_path: Path, step: int) -> None:
    with pytest.raises(Killed):
        recalibrate(wanted(place), tmp_path, use_cpu=True, callbacks=(Kill(step),))
    start = (tmp_path / "start.json").stat().st_mtime_ns
    notes = Notes()
    assert plain(recalibrate(wanted(place, checkpointing=True), tmp_path, notes, use_cpu=True)) == plain(pope)
    measured = [run for run, *_ in notes.began_at]
    assert measured == ["pope-uniform, seed 0", "pope-uniform, seed 0, at the end"]
    assert notes.began_at[0][1] == (10 if step > 10 else 0) and (tmp_path / "start.json").stat().st_mtime_ns == start
    assert losses(RunFolder(tmp_path).curve()) == losses(RunFolder(place / "pope").curve())
    expected, found = (load_file(out / "model" / "model.safetensors") for out in (place / "pope", tmp_path))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_finished_run_is_only_read_and_another_is_refused(
    place: Path, pope: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SequenceTrainer", None)
    notes = Notes()
    before = {p: p.stat().st_mtime_ns for p in (place / "pope").rglob("*")}
    assert recalibrate(wanted(place), place / "pope", notes, use_cpu=True) == pope
    assert notes.began_at == [] and notes.ends == [("pope-uniform, seed 0", pope.after.at(1).mean)]  # type: ignore
    for changes, said in (({"steps": 13}, "course.steps: 12 there, 13 here"), ({"encoding": "nope"}, "name: ")):
        with pytest.raises(ArgumentError, match=said):
            recalibrate(wanted(place, **changes), place / "pope", use_cpu=True)
    assert {p: p.stat().st_mtime_ns for p in (place / "pope").rglob("*")} == before


def test_what_was_recalibrated_can_be_trained_on_at_another_length(place: Path, pope: Outcome, tmp_path: Path) -> None:
    longer = wanted(place, model=str(place / "pope"), encoding="own", length=2 * LENGTH, batch=2, learning_rate=None)
    assert longer.course().learning_rate == 6e-5 and wanted(place, learning_rate=None).course().learning_rate == 3e-4
    found = recalibrate(longer, tmp_path, use_cpu=True)
    assert found.as_it_was == found.after_swap and found.recovered is None and found.own_parameters == 32
    assert found.as_it_was.windows[1] != pope.after.windows[1]
    model = ropewalk.load(tmp_path / "model")
    assert isinstance(handle_of(model).encoding, PoPE)  # type: ignore[union-attr]


def test_a_length_rule_goes_on_the_models_own_rotation(place: Path, tmp_path: Path) -> None:
    found = recalibrate(wanted(place, encoding="yarn", length=4 * LENGTH, steps=2), tmp_path, use_cpu=True)
    assert found.own_parameters == 0 and found.as_it_was != found.after_swap
    encoding = handle_of(ropewalk.load(tmp_path / "model")).encoding  # type: ignore[union-attr]
    assert isinstance(encoding, RoPE) and encoding.rule == YaRN(4.0, LENGTH)


def test_a_length_rule_is_for_a_model_that_rotates(place: Path, pope: Outcome, tmp_path: Path) -> None:
    asked = wanted(place, model=str(place / "pope"), encoding="yarn", length=4 * LENGTH, steps=2)
    with pytest.raises(ArgumentError, match=r"encoding='yarn': the model has no rotation .* it has PoPE; choose own"):
        recalibrate(asked, tmp_path / "out", use_cpu=True)
    assert not (tmp_path / "out").exists()


def test_a_run_on_another_part_of_its_own_text_says_so(place: Path, pope: Outcome, tmp_path: Path) -> None:
    again = wanted(place, model=str(place / "pope"), encoding="own", steps=2, learning_rate=None)
    assert not recalibrate(again, tmp_path / "same", use_cpu=True).read_before
    part = dataclasses.replace(again, characters=len((place / "text.txt").read_text()) * 3 // 4)
    assert recalibrate(part, tmp_path / "part", use_cpu=True).read_before


def test_positions_that_end_are_measured_as_far_as_they_go(place: Path, tmp_path: Path) -> None:
    found = recalibrate(wanted(place, encoding="learned", length=LENGTH, steps=1), tmp_path, use_cpu=True)
    assert set(found.as_it_was.windows) == {1, 2, 4} and set(found.after.windows) == {1}


def test_a_loss_that_is_no_number_stops_the_run(place: Path, tmp_path: Path) -> None:
    found = recalibrate(wanted(place, learning_rate=1e30), tmp_path, use_cpu=True)
    assert found.diverged is not None and found.steps == found.diverged < 12
    assert found.recovered is None and json.loads((tmp_path / "result.json").read_text())["value"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoding": "poep"}, "did you mean pope"),
        ({"factor": 2.0}, "factor=2.0"),
        ({"steps": 0}, "steps=0"),
        ({"steps": "many"}, "steps='many'"),
        ({"length": 1}, "length=1"),
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"warmup": 12}, "warmup=12"),
        ({"held_out": 0}, "held_out=0"),
        ({"characters": 0}, "characters=0"),
    ],
)
def test_values_that_cant_be_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        wanted(tmp_path, **changes)
    assert said in str(error.value)


def test_what_cant_be_recalibrated_is_refused_and_nothing_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit(*_: Any) -> None:
        raise UnsupportedModelError("not this one")

    for changes, said in (({"text": str(tmp_path / "no.txt")}, "no such file"), ({"length": 600}, "part is too short")):
        with pytest.raises(ArgumentError, match=said):
            recalibrate(wanted(place, **changes), tmp_path / "out", use_cpu=True)
    monkeypatch.setattr(module, "check_fit", unfit)
    with pytest.raises(UnsupportedModelError, match="not this one"):
        recalibrate(wanted(place), tmp_path / "out", use_cpu=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    monkeypatch.undo()
    with pytest.raises(ArgumentError, match=r"no run\.json"):
        recalibrate(wanted(place), tmp_path / "mine", use_cpu=True)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_text_with_tokens_that_the_model_lacks_is_refused(place: Path, tmp_path: Path) -> None:
    text_model(tmp_path / "small", place / "text.txt")
    tokenizer = (tmp_path / "small" / "tokenizer.json").read_text()
    (tmp_path / "small" / "tokenizer.json").write_text(tokenizer.replace('"e": 7', '"e": 99'))
    with pytest.raises(ArgumentError, match="input_ids=99"):
        recalibrate(wanted(place, model=str(tmp_path / "small")), tmp_path / "out", use_cpu=True)


def test_a_step_is_cut_into_parts_that_fit() -> None:
    assert [_parts(*sizes) for sizes in ((8, 512), (8, 1024), (8, 4096), (6, 2048), (8, 9000), (1, 9000), (0, 5))] == [
        1,
        2,
        8,
        3,
        8,
        1,
        1,
    ]
