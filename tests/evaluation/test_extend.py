"""The main job in code: what it measures, keeps and decides."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story, word_tokenizer
from tests.evaluation.tiny_models import tiny
from torch import nn

from ropewalk.analysis.calibration_pass import measure
from ropewalk.analysis.head_statistics import Statistics
from ropewalk.data.splits import split_text
from ropewalk.data.text import text_of
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError
from ropewalk.evaluation import calibration
from ropewalk.evaluation import extend as extend_module
from ropewalk.evaluation.budget import Clock
from ropewalk.evaluation.candidates import Candidate, is_remap
from ropewalk.evaluation.extend import Job, Outcome, decide, extend, prepared_text, tries_dope
from ropewalk.evaluation.needle_count import NeedleCount
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.records import Store, read_records
from ropewalk.evaluation.remaps import REMAPS
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep import Done, Sweep
from ropewalk.hub.plan import Plan
from ropewalk.tasks.needle import NeedleTask

TEXT = text_of(story(700), "story")
JOB = Job(target_length=300, original_length=256, text=TEXT, depths=2, budget=0.01)  # the least that is measured


def ran(model: nn.Module, folder: Path, job: Job = JOB, on_done: Callable[[Done], None] = lambda _: None) -> Outcome:
    with Store(folder / "results.jsonl", {}) as store:
        return extend(model, byte_tokenizer(), job, store, on_done=on_done)


def plain(outcome: Outcome) -> dict[str, Any]:
    """What an outcome says, for comparing two."""
    return {
        "rules": [(c.name, answers) for c, answers in outcome.rules],
        "dope": [(c.name, answers) for c, answers in outcome.dope],
        "final": outcome.final,
        "short": outcome.short,
        "arms": (outcome.best, outcome.other, outcome.best_dope),
        "winner": outcome.winner,
        "needle_count": outcome.needle_count,
        "depths": outcome.job.depths,
    }


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPTNeoX"])
def test_from_first_measurement_to_winner(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    outcome = ran(model, tmp_path, dataclasses.replace(JOB, budget=1.0, dope="always"))
    assert outcome.plain and outcome.best and outcome.best_dope
    assert isinstance(outcome.best_dope.encoding, DoPE)
    assert outcome.best_dope.encoding.rope == outcome.best.encoding
    assert (outcome.other is None) == (family == "Gemma2")  # its capped scores take no remap
    if outcome.other is None:
        assert isinstance(outcome.best.encoding, PerLayer)
    else:
        assert is_remap(outcome.best.encoding) != is_remap(outcome.other.encoding)
    assert "plain" not in {c.name for c, _ in outcome.rules}
    assert outcome.winner in (outcome.best, outcome.other, outcome.best_dope)
    is_ahead = outcome.in_search().difference.mean < 0
    arms = [outcome.plain, outcome.best, outcome.other, outcome.best_dope if is_ahead else None]
    assert list(outcome.final) == [arm.name for arm in arms if arm]
    prompts = {a.prompt for answers in outcome.final.values() for a in answers}
    assert len(prompts) >= 2
    searched = {a.prompt for _, answers in [*outcome.rules, *outcome.dope] for a in answers}
    assert not prompts & (searched | {a.prompt for a in outcome.at_original})
    assert not {a.prompt for _, answers in outcome.rules for a in answers} & {
        a.prompt for _, answers in outcome.dope for a in answers
    }
    assert list(outcome.short) == ["plain", outcome.winner.name] and list(outcome.short["plain"]) == [256]
    assert not any("forward" in module.__dict__ for module in model.modules())


def favouring(kind: str) -> Callable[..., dict[str, list[Answer]]]:
    """A measurement in which candidates whose names begin so, and they alone, are twice as sure of what is right."""
    real = Sweep.measure

    def measure(
        self: Sweep, stage: str, candidates: Sequence[Candidate], task: NeedleTask, indices: Sequence[int]
    ) -> dict[str, list[Answer]]:
        found = real(self, stage, candidates, task, indices)
        return {
            name: [dataclasses.replace(a, nll=a.nll / 2) for a in answers] if name.startswith(kind) else answers
            for name, answers in found.items()
        }

    return measure


@pytest.mark.parametrize(("kind", "dope"), [("yarn", "always"), ("self_extend", "always"), ("self_extend", "never")])
def test_a_run_killed_anywhere_goes_on_to_the_same_outcome(
    kind: str, dope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after every single measurement, one after the other; a run in one go is what it must come to."""
    model, job = tiny("Llama"), dataclasses.replace(JOB, dope=dope)
    monkeypatch.setattr(Sweep, "measure", favouring(kind))
    passes: list[int] = []
    real = calibration.measure
    monkeypatch.setattr(calibration, "measure", lambda *a, **k: (passes.append(1), real(*a, **k))[1])
    first = ran(model, tmp_path / "whole", job)
    whole = plain(first)
    assert first.best and first.winner and first.best.name.startswith(kind) and first.winner.name.startswith(kind)
    # The decisions depend on the clock: take over those of the first run.
    _, records = read_records(tmp_path / "whole" / "results.jsonl")
    with Store(tmp_path / "killed" / "results.jsonl", {}) as store:
        for record in records:
            if record["kind"] == "decision":
                store.append(record)
    passes.clear()
    done: list[Done] = []

    def kill(step: Done) -> None:
        done.append(step)
        raise KeyboardInterrupt

    for _ in range(500):
        try:
            outcome = ran(model, tmp_path / "killed", job, on_done=kill)
            break
        except KeyboardInterrupt:
            continue
    assert plain(outcome) == whole
    assert len(done) == len({(d.stage, d.candidate, d.prompt) for d in done}) >= 10
    assert sum(passes) == (1 if dope == "always" else 0)
    finished = (tmp_path / "killed" / "results.jsonl").read_bytes()
    assert plain(ran(model, tmp_path / "killed", job)) == whole
    assert (tmp_path / "killed" / "results.jsonl").read_bytes() == finished


def test_a_remap_that_wins_is_saved_and_answers_as_in_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("Llama")
    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "measure", favouring("self_extend"))
        outcome = ran(model, tmp_path)
    winner = outcome.winner
    assert winner and winner == outcome.best and isinstance(winner.encoding, SelfExtend)
    Plan.of(model, winner.encoding, 300, 256).save_pretrained(tmp_path / "plan")
    plan = Plan.from_pretrained(tmp_path / "plan")
    assert plan.encoding == winner.encoding
    _, records = read_records(tmp_path / "results.jsonl")
    for stage, number, part in (("rules", 0, 0), ("final", extend_module.FINAL_FIRST, 1)):
        task = JOB.task(split_text(TEXT, byte_tokenizer(), 300, 256)[part])
        prompt = task.prompts(byte_tokenizer(), 1, first=number)[0]
        key = f"answers/{stage}/{winner.name}/{prompt.id}"
        kept = next([Answer.from_dict(a) for a in r["answers"]] for r in records if r["key"] == key)
        assert len(kept) == 2
        with plan.installed(model, when="always"):
            reader = Reader(model, byte_tokenizer())
            found = reader.questions(prompt, task.setting, reader.read(prompt.haystack_ids))
        assert [a.generated for a in found] == [a.generated for a in kept]
        assert [a.nll for a in found] == pytest.approx([a.nll for a in kept], rel=1e-3)
        without = reader.questions(prompt, task.setting, reader.read(prompt.haystack_ids))
        assert [a.nll for a in without] != pytest.approx([a.nll for a in kept], rel=1e-3)


def test_dope_is_tried_on_a_remap_of_some_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3's layers with a window keep their rotation; the others are remapped, and measured as such."""
    monkeypatch.setattr(Sweep, "measure", favouring("self_extend"))
    outcome = ran(tiny("Gemma3"), tmp_path, dataclasses.replace(JOB, dope="always"))
    assert outcome.best and outcome.best.name.startswith("self_extend") and outcome.best_dope
    assert [is_remap(outcome.best.encoding.at(layer)) for layer in range(4)] == [False, True] * 2
    assert isinstance(outcome.best_dope.encoding, DoPE) and outcome.best_dope.encoding.rope == outcome.best.encoding
    assert Statistics.load(tmp_path / calibration.FILE).layers == (0, 1, 2, 3)


@pytest.mark.parametrize(("dope", "has_room"), [("auto", True), ("auto", False), ("always", False), ("never", True)])
def test_dope_plans_are_tried_where_there_is_room_and_that_is_kept(
    dope: str, has_room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = has_room if dope == "auto" else dope == "always"
    job, model = dataclasses.replace(JOB, dope=dope), tiny("Llama")
    room = {True: -1e9, False: 1e9}
    monkeypatch.setattr(extend_module, "LEAST_DOPE_MEASUREMENTS", room[has_room])
    first = ran(model, tmp_path, job)
    assert (first.best_dope is not None) == bool(first.dope) == wanted
    assert (tmp_path / calibration.FILE).exists() == wanted
    monkeypatch.setattr(extend_module, "LEAST_DOPE_MEASUREMENTS", room[not has_room])
    size = (tmp_path / "results.jsonl").stat().st_size
    assert plain(ran(model, tmp_path, job)) == plain(first)
    assert (tmp_path / "results.jsonl").stat().st_size == size


def test_room_for_dope_is_six_measurements(tmp_path: Path) -> None:
    job = dataclasses.replace(JOB, budget=7.0)
    with Store(tmp_path / "results.jsonl", {}) as store:
        assert not tries_dope(job, 5.9, 1.0, store)
        assert not tries_dope(job, 60.0, 1.0, store)  # it is decided
        assert tries_dope(dataclasses.replace(job, budget=8.0), 6.0, 1.0, store)  # more time: anew
        assert tries_dope(dataclasses.replace(job, dope="always"), -1.0, 1.0, store)
        assert not tries_dope(dataclasses.replace(job, dope="never"), 60.0, 1.0, store)


def counting(enough: int) -> Callable[..., dict[str, list[Answer]]]:
    """A measurement whose answers, while the needles are counted, are right for `enough` needles and fewer."""
    real = Sweep.measure

    def measure(
        self: Sweep, stage: str, candidates: Sequence[Candidate], task: NeedleTask, indices: Sequence[int]
    ) -> dict[str, list[Answer]]:
        found = real(self, stage, candidates, task, indices)
        if not stage.startswith("needle count"):
            return found
        is_right = len(task.depth_values) <= enough
        return {name: [dataclasses.replace(a, is_exact=is_right) for a in answers] for name, answers in found.items()}

    return measure


@pytest.mark.parametrize(("enough", "count"), [(2, 2), (0, 1)])
def test_the_number_of_needles_is_decided_first_and_kept(
    enough: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sweep, "measure", counting(enough))
    model, job = tiny("Llama"), dataclasses.replace(JOB, original_length=600, target_length=700, depths=0)
    told: list[NeedleCount] = []
    with Store(tmp_path / "results.jsonl", {}) as store:
        first = extend(model, byte_tokenizer(), job, store, on_needle_count=told.append)
    assert first.needle_count and first.needle_count.count == first.job.depths == count
    assert told == [first.needle_count]
    per_prompt = [Counter(a.prompt for a in answers) for answers in (first.at_original, *first.final.values())]
    assert {number for found in per_prompt for number in found.values()} == {count}
    _, records = read_records(tmp_path / "results.jsonl")
    stages = list(dict.fromkeys(r["stage"] for r in records if r["kind"] == "answers"))
    tried = [f"needle count {n}" for n in (4, 2, 1) if n >= count]
    assert stages[: len(tried) + 1] == [*tried, "at original length"]
    size = (tmp_path / "results.jsonl").stat().st_size
    assert plain(ran(model, tmp_path, job)) == plain(first)
    assert (tmp_path / "results.jsonl").stat().st_size == size


def test_the_needles_are_counted_in_the_original_setting_at_half_the_training_length() -> None:
    task = dataclasses.replace(JOB, depths=0, setting="noisy").count_task(TEXT)
    assert (task.setting, task.length, task.protocol) == ("original", 128, "multi")


def test_a_job_keeps_the_depths_that_were_asked_for() -> None:
    about = {"name": "m", "revision": None, "fingerprint": "f"}
    job = dataclasses.replace(JOB, depths=0)
    assert job.settings(about, {})["depths"] == 0
    assert dataclasses.replace(job, protocol="single").task(TEXT).depths == 10


def test_a_finished_run_measures_more_only_when_given_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extend_module, "MOST_FINAL_PROMPTS", 4)
    model = tiny("Llama")
    first = ran(model, tmp_path)
    size = (tmp_path / "results.jsonl").stat().st_size
    assert plain(ran(model, tmp_path)) == plain(first)
    assert (tmp_path / "results.jsonl").stat().st_size == size
    more = ran(model, tmp_path, dataclasses.replace(JOB, budget=600.0))
    assert [c.name for c, _ in more.rules] == [c.name for c, _ in first.rules]
    least = math.ceil(extend_module.LEAST_FINAL_MEASUREMENTS / len(first.final))
    assert (len(first.final["plain"]), len(more.final["plain"])) == (least * 2, 4 * 2)
    assert more.final["plain"][: len(first.final["plain"])] == first.final["plain"]


def test_statistics_of_another_run_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    model = tiny("Llama")
    job = dataclasses.replace(JOB, dope="always")
    wanted = plain(ran(model, tmp_path, job))
    kept = tmp_path / calibration.FILE
    good = Statistics.load(kept)
    other = measure(tiny("Llama"), torch.arange(3, 60)[None])
    for spoil in (lambda: kept.write_bytes(b"something else"), lambda: other.save(kept), lambda: None):
        kept.unlink()  # not written over: loaded statistics are mapped from the file
        spoil()
        assert plain(ran(model, tmp_path, job)) == wanted
        again = Statistics.load(kept)
        assert all(map(torch.equal, again.grams["post_ntk"], good.grams["post_ntk"]))


def test_parts_of_the_text_are_disjoint_and_cover_it() -> None:
    first, second, third = split_text(TEXT, byte_tokenizer(), 300, 256)
    assert first.text + second.text + third.text == TEXT.text
    assert len({part.name for part in (first, second, third)}) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"text": text_of(story(100), "short story")}, r"about [\d,]+ tokens but [\d,]+ are needed"),
        ({"setting": "loud"}, "setting"),
        ({"protocol": "none"}, "protocol"),
        ({"depths": -1}, "depths"),
        ({"depths": 40}, "length"),
        ({"depths": 0, "original_length": 64}, "depths=0: 32 tokens"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused_before_any_pass(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = tiny("Llama")
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ArgumentError, match=said):
        ran(model, tmp_path, dataclasses.replace(JOB, **changed))
    assert not passes
    assert read_records(tmp_path / "results.jsonl")[1] == []


def test_a_part_that_is_too_poor_in_tokens_is_found_at_once() -> None:
    """The size in tokens is judged by the text's middle; its end, here one long word, may be unlike it."""
    text = text_of(story(700) + "x" * 9000, "story with a poor end")
    tokenizer = word_tokenizer()
    assert len(split_text(text, tokenizer, 300, 256)[2].text) < 9000
    with pytest.raises(ArgumentError, match="part 3 of 3"):
        prepared_text(dataclasses.replace(JOB, text=text), tokenizer)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"target_length": 256}, "training length"),
        ({"budget": 0.0}, "budget"),
        ({"original_length": None}, "original_length"),
        ({"dope": "alway"}, "did you mean always"),
    ],
)
def test_wrong_jobs_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        dataclasses.replace(JOB, **changed)


def test_the_clock_counts_what_earlier_runs_spent() -> None:
    assert 4.0 < Clock(10.0, 5.0).left <= 5.0
    assert Clock(10.0, 12.0).left < 0


Gains = dict[str, float]


def faked(search: Gains, final: Gains | None = None, is_plain_right: bool = True) -> Callable[..., Any]:
    """Answers whose NLL is 2 less what the candidate's kind gains there, with a little that differs by answer."""

    def kind(name: str) -> str:
        is_moved = name.split()[0] in REMAPS
        return "plain" if name == "plain" else "dope" if "DoPE" in name else "remap" if is_moved else "rule"

    def measure(
        self: Sweep, stage: str, candidates: Sequence[Candidate], task: NeedleTask, indices: Sequence[int]
    ) -> dict[str, list[Answer]]:
        gains = final if final and stage == "final" else search
        for index in indices:
            for c in candidates:
                key = stage, c.name, task.prompt_id(index)
                if key in self._answers:
                    continue
                prompt = task.prompts(self.reader.tokenizer, 1, first=index)[0]
                answers = []
                for number in range(task.depths):
                    nll = 2.0 - gains[kind(c.name)] * (1 + 0.01 * (index % 3) + 0.001 * number)
                    is_right = is_plain_right or c.name != "plain"
                    answers.append(Answer(prompt.id, "original", 0.5, f"k{number}", "1", nll, is_right, "1"))
                self._keep(stage, c, prompt, answers, 0.01)
        prompts = [task.prompt_id(index) for index in indices]
        return {c.name: [a for p in prompts for a in self._answers[stage, c.name, p]] for c in candidates}

    return measure


GAINS = {"plain": 0.0, "rule": 1.0, "remap": 0.9, "dope": 0.0}


@pytest.mark.parametrize(
    ("search", "final", "wins"),
    [
        ({"dope": 1.5}, {}, "dope"),
        ({"dope": 1.0}, {}, "best"),
        ({"dope": 0.5}, {}, "best"),
        ({"plain": 1.0, "rule": 0.0, "remap": -0.1, "dope": 0.5}, {}, "best"),
        ({"remap": 1.5}, {}, "best"),
        ({"remap": 1.5, "dope": 2.0}, {}, "dope"),
        ({}, {"remap": 1.2}, "other"),
        ({}, {"remap": 1.005}, "best"),
        ({"remap": 1.5}, {"remap": 0.5}, "other"),
        ({"dope": 1.5}, {"dope": 1.2, "remap": 1.4}, "other"),
        ({"dope": 1.5}, {"dope": 1.4, "remap": 1.2}, "dope"),
    ],
)
def test_another_arm_is_taken_only_where_it_gains_on_the_best_of_the_search(
    search: Gains, final: Gains, wins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = GAINS | search
    monkeypatch.setattr(Sweep, "measure", faked(search, search | final))
    outcome = ran(tiny("Llama"), tmp_path, dataclasses.replace(JOB, dope="always"))
    assert outcome.best and outcome.other
    assert is_remap(outcome.best.encoding) == (search["remap"] > search["rule"]) != is_remap(outcome.other.encoding)
    arms = {"best": outcome.best, "other": outcome.other, "dope": outcome.best_dope}
    assert outcome.winner == arms[wins]
    assert decide(outcome) == outcome.winner
    assert set(outcome.short) == {"plain", outcome.winner.name} if outcome.winner else False


@pytest.mark.parametrize(
    ("gain", "is_right", "depths", "is_dropped"),
    [
        (-0.5, False, 2, True),
        (-0.5, True, 2, False),  # something right
        (-0.05, False, 2, False),  # too near the worst of the others, 0.95 behind
        (-0.5, False, 1, False),  # one answer has no interval, and the verdict needs one
    ],
)
def test_a_plain_model_without_hope_is_asked_about_the_first_prompt_alone(
    gain: float, is_right: bool, depths: int, is_dropped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = GAINS | {"plain": gain, "dope": 1.5}
    monkeypatch.setattr(Sweep, "measure", faked(gains, is_plain_right=is_right))
    job = dataclasses.replace(JOB, depths=depths, dope="always")
    outcome = ran(tiny("Llama"), tmp_path, job)
    assert outcome.best and outcome.winner and outcome.plain
    asked = {name: {a.prompt for a in answers} for name, answers in outcome.final.items()}
    others = asked.pop("plain")
    assert len(asked) == 3 and all(prompts == asked[outcome.best.name] for prompts in asked.values())
    assert len(others) == (1 if is_dropped else len(asked[outcome.best.name])) and others <= asked[outcome.best.name]
    # At least six measurements: four arms at first, then all but plain.
    assert len(asked[outcome.best.name]) == 2
    difference = outcome.against(outcome.best, outcome.plain).difference
    assert (difference.n, difference.clusters) == (depths * len(others), len(others))
    assert outcome.winner == outcome.best_dope
    size = (tmp_path / "results.jsonl").stat().st_size
    assert plain(ran(tiny("Llama"), tmp_path, job)) == plain(outcome)
    assert (tmp_path / "results.jsonl").stat().st_size == size


def test_six_measurements_are_made_without_plain_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three arms on the first prompt, then two: three prompts."""
    monkeypatch.setattr(Sweep, "measure", faked(GAINS | {"plain": -0.5}, is_plain_right=False))
    outcome = ran(tiny("Llama"), tmp_path, dataclasses.replace(JOB, dope="never"))
    assert {name: len(answers) for name, answers in outcome.final.items()} == dict(
        zip(outcome.final, (2, 6, 6), strict=True)
    )
