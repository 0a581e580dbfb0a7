"""Perplexity by length: which text, which windows, what is kept, and the figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer
from tests.evaluation.runs import LENGTH, make_run
from tests.evaluation.tiny_models import tiny

from ropewalk.data.corpus import Corpus
from ropewalk.data.text import Text, text_of
from ropewalk.data.windows import Books
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.arms import arms
from ropewalk.evaluation.evaluated_model import Subjects
from ropewalk.evaluation.likelihood import Reading
from ropewalk.evaluation.perplexity import Curve, Study, curves, held_out, measure, training_length, windows_of
from ropewalk.evaluation.records import Store
from ropewalk.training.tasks.language import Language

STORY = story(600)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, runs of RoPE and NoPE trained on it, a run trained on its first half, and Llamas with tokenizers."""
    place = tmp_path_factory.mktemp("models")
    (place / "text.txt").write_text(STORY)
    task = Language(str(place / "text.txt"), length=LENGTH)
    make_run(place, "rope", RoPE(16), task)
    make_run(place, "nope", NoPE(), task)
    half = Language(task.text, length=2 * LENGTH, characters=len(STORY) // 2)
    make_run(place, "half", RoPE(16), half)
    for name, tokenizer in (("bytes", byte_tokenizer()), ("words", word_tokenizer())):
        tiny("Llama").save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


def opened(place: Path, *names: str) -> Subjects:
    return Subjects([str(place / name) for name in names])


def text_at(place: Path, text: str) -> str:
    (place / "other.txt").write_text(text)
    return str(place / "other.txt")


def test_a_text_that_was_trained_on_is_read_in_its_test_part(place: Path, tmp_path: Path) -> None:
    subjects = opened(place, "bytes", "rope/seed-0").all
    text, part, trained = held_out(str(place / "text.txt"), subjects)
    assert isinstance(text, Corpus)
    assert (text.read(), part, [s.name for s in trained]) == (STORY, "test", ["rope, seed 0"])
    copy = text_at(tmp_path, STORY)  # the same text under another name
    assert held_out(copy, subjects)[1] == "test"
    assert held_out(copy, subjects, "validation")[1] == "validation"


def test_other_texts_are_read_whole(place: Path, tmp_path: Path) -> None:
    subjects = opened(place, "rope/seed-0").all
    text, part, trained = held_out(text_at(tmp_path, story(50, seed=9)), subjects)
    assert isinstance(text, Text)
    assert (text.text, part, trained) == (story(50, seed=9), "all", [])
    assert held_out(str(place / "text.txt"), opened(place, "bytes").all)[1] == "all"


def test_a_model_trained_on_a_stretch_of_the_text_is_read_in_that_stretch(place: Path) -> None:
    text, part, _ = held_out(str(place / "text.txt"), opened(place, "half/seed-0").all)
    assert isinstance(text, Corpus)
    assert text.read() == STORY[: len(STORY) // 2] and part == "test"
    with pytest.raises(ArgumentError, match="were trained on different stretches"):
        held_out(str(place / "text.txt"), opened(place, "rope/seed-0", "half/seed-0").all)


def test_a_text_that_has_changed_since_is_refused(place: Path, tmp_path: Path) -> None:
    task = Language(str(place / "text.txt"), length=LENGTH)
    run = make_run(tmp_path, "rope", RoPE(16), task, data_sha256="of what was there before")
    with pytest.raises(ArgumentError, match="has changed since rope, seed 0 was trained on it"):
        held_out(task.text, opened(run, ".").all)


def test_a_text_is_known_by_its_hash_when_its_file_is_gone(place: Path, tmp_path: Path) -> None:
    task = Language(str(place / "text.txt"), length=LENGTH)
    run = make_run(tmp_path, "rope", RoPE(16), task, data_sha256=task.sha256)
    byte_tokenizer().save_pretrained(run / "model")
    json_file = run / "run.json"
    json_file.write_text(json_file.read_text().replace(task.text, "gone.txt"))
    assert held_out(task.text, opened(run, ".").all)[1] == "test"


def test_the_training_length_is_that_of_all_models(place: Path) -> None:
    assert training_length(opened(place, "rope/seed-0", "nope/seed-0").all) == LENGTH
    with pytest.raises(ArgumentError, match=r"different lengths \(rope, seed 0 32, bytes 256\); name one"):
        training_length(opened(place, "rope/seed-0", "bytes").all)


def test_windows_are_the_same_for_all_models_or_refused(place: Path, tmp_path: Path) -> None:
    text = held_out(text_at(tmp_path, STORY), ())[0]
    drawn = windows_of(Books(text, 60, 3), opened(place, "rope/seed-0", "nope/seed-0").all)
    assert [len(ids) for ids in drawn.ids] == [60] * 3 and drawn.start == [] and drawn.unknown == 0
    with pytest.raises(ArgumentError, match="has other tokens than rope, seed 0"):
        windows_of(Books(text, 60, 3), opened(place, "rope/seed-0", "bytes").all)
    with pytest.raises(ArgumentError, match="unknown to rope, seed 0"):
        windows_of(Books(text_of("ЖЖЖ ЩЩЩ. " * 50, "x"), 60, 3), opened(place, "rope/seed-0").all)


def test_a_start_token_is_there_where_the_tokenizer_puts_one(place: Path) -> None:
    text = text_of(STORY, "story")
    assert windows_of(Books(text, 60, 3), opened(place, "words").all).start == [1]
    assert windows_of(Books(text, 60, 3), opened(place, "bytes").all).start == []


READING = Reading(LENGTH, 3)


def measured(
    place: Path, out: Path, names: tuple[str, ...], rules: tuple[str, ...] = (), **more: Any
) -> tuple[list[Curve], list[str]]:
    """The curves, and the arms whose windows were read."""
    subjects = opened(place, *names)
    windows = windows_of(Books(text_of(STORY, "story"), READING.window, 3), subjects.all)
    begun: list[str] = []
    rows = arms(subjects.all, rules, LENGTH, READING.longest)
    with Store(out / "r.jsonl", {}) as store:
        found = measure(rows, subjects, READING, windows, store, on_start=begun.append, **more)
    return found, begun


@torch.no_grad()
def test_every_arm_reads_every_window_once(place: Path, tmp_path: Path) -> None:
    done: list[str] = []
    found, begun = measured(place, tmp_path, ("rope/seed-0", "nope/seed-0"), ("ntk",), on_done=done.append)
    names = ["rope, seed 0", "rope, seed 0 + ntk x3", "nope, seed 0"]
    assert [curve.arm.name for curve in found] == begun == names and done == [n for n in names for _ in range(3)]
    again, begun = measured(place, tmp_path, ("nope/seed-0", "rope/seed-0"))
    assert begun == [] and again[1].points[2].nll == found[0].points[2].nll
    more, begun = measured(place, tmp_path, ("nope/seed-0", "rope/seed-0"), ("yarn",))
    assert begun == ["rope, seed 0 + yarn x3"] and more[0].points == again[0].points
    # NoPE is what its model is, whatever was installed in others before.
    subjects = opened(place, "nope/seed-0")
    window = windows_of(Books(text_of(STORY, "story"), READING.window, 3), subjects.all).ids
    wanted = [READING.nats(subjects.model(subjects.all[0]), ids)[1] for ids in window]
    assert found[2].points[1].nll.mean == pytest.approx(sum(wanted) / 3, abs=1e-5)


def test_what_a_stopped_run_has_finished_is_kept(place: Path, tmp_path: Path) -> None:
    done: list[str] = []

    def stop(name: str) -> None:
        done.append(name)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(place, tmp_path, ("rope/seed-0",), on_done=stop)
    kept = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(kept) == 3  # the settings and two windows
    measured(place, tmp_path, ("rope/seed-0",))
    assert (tmp_path / "r.jsonl").read_text().splitlines()[:3] == kept


def test_curves_are_means_over_windows_and_paired_differences(place: Path) -> None:
    rows = arms(opened(place, "rope/seed-0", "nope/seed-0").all)
    reading = Reading(4, 2)
    nats = {rows[0].name: [[1.0, 2.0], [3.0, 5.0]], rows[1].name: [[1.5, 2.0], [3.5, 4.0]]}
    first, second = curves(rows, reading, nats)
    assert [p.length for p in first.points] == [4, 8]
    assert (first.points[1].nll.mean, second.points[1].nll.mean) == (3.5, 3.0)
    assert first.points[1].growth.mean == 1.5 and second.points[0].growth.mean == 0.0
    assert first.points[0].against is None
    against = second.points[0].against
    assert against is not None and (against.mean, against.low, against.high) == (0.5, 0.5, 0.5)  # each window alike
    further = second.points[1].against
    assert further is not None and further.mean == -0.5 and further.low < -0.5 < further.high
    assert first.furthest == (2.0, 5.0) and second.furthest == (2.0, 4.0)
    whole = second.points[1].whole  # 3 tokens are judged in the first 4, and 4 in the next
    assert whole is not None and whole.mean == pytest.approx(((3 * 1.5 + 4 * 2) / 7 + (3 * 3.5 + 4 * 4) / 7) / 2)
    assert curves(rows, Reading(4, 2, "sliding"), nats)[0].points[1].whole is None


def test_a_study_tells_who_differs_where_texts_are_longest(place: Path) -> None:
    rows = arms(opened(place, "rope/seed-0", "nope/seed-0").all)
    reading = Reading(4, 2)
    nats = {
        rows[0].name: [[1.0, 2.0], [3.0, 5.0], [2.0, 3.0]],
        rows[1].name: [[9.0, 1.0], [9.0, 4.01], [9.0, 2.02]],  # lower at the furthest length alone
    }
    books = Books(text_of("a text", "kjv"), reading.window, 3)
    study = Study(books, reading, 0.0, (), tuple(curves(rows, reading, nats)))
    assert study.against["nope, seed 0"].is_better and study.against["nope, seed 0"].difference.mean < -0.9
    found = study.to_dict()["furthest"]
    assert (found["lead"]["lowest"], found["lead"]["next"]) == ("nope, seed 0", "rope, seed 0")
    assert found["against_first"]["nope, seed 0"]["adjusted"] == found["lead"]["adjusted"] < 0.05
    alone = Study(books, reading, 0.0, (), study.curves[:1])
    assert alone.to_dict()["furthest"] == {"against_first": {}, "lead": None}


def test_one_window_has_no_interval(place: Path) -> None:
    rows = arms(opened(place, "rope/seed-0").all)
    (curve,) = curves(rows, Reading(4, 1), {rows[0].name: [[1.0]]})
    assert math.isinf(curve.points[0].nll.high) and curve.to_dict()["points"][0]["nll"]["high"] is None
