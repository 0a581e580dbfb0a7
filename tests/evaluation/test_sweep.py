from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import tiny

from ropewalk.data.text import text_of
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.records import Store, read_records
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep import Done, Sweep, mean_nll
from ropewalk.heads import HeadSelection
from ropewalk.patching import installed
from ropewalk.scaling import NTK
from ropewalk.tasks.needle import NeedleTask

TASK = NeedleTask(text_of(story(120), "story"), 220, depths=2)
ROPE = RoPE(16, rule=NTK(2.0))
CANDIDATES = [
    Candidate("plain", RoPE(16)),
    Candidate("late", DoPE(ROPE, HeadSelection([(3, 1)]))),
    Candidate("rule", ROPE),
    Candidate("early", DoPE(ROPE, HeadSelection([(0, 1), (3, 0)]), mode="gaussian")),
    Candidate("middle", DoPE(ROPE, HeadSelection([(2, 3)]), mode="parts", original_length=64)),
]


def alone(reader: Reader, encoding: Encoding, index: int) -> list[Answer]:
    with installed(reader.model, encoding):
        return reader.answers(TASK.prompts(reader.tokenizer, 1, first=index)[0], TASK.setting)


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_the_answers_are_those_of_each_candidate_alone(family: str, tmp_path: Path) -> None:
    """Exactly: plans that share work must not differ by it."""
    reader = Reader(tiny(family), byte_tokenizer())
    with Store(tmp_path / "r.jsonl", {}) as store:
        found = Sweep(reader, store).measure("rules", CANDIDATES, TASK, [0, 3])
    for candidate in CANDIDATES:
        assert found[candidate.name] == [a for i in (0, 3) for a in alone(reader, candidate.encoding, i)]
    assert len({mean_nll(answers) for answers in found.values()}) == len(CANDIDATES)
    assert not any("forward" in module.__dict__ for module in reader.model.modules())


def test_every_answer_is_in_the_store_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    reader = Reader(tiny("Llama"), byte_tokenizer())
    started: list[tuple[str, str, str]] = []
    finished: list[Done] = []
    with Store(tmp_path / "r.jsonl", {}) as store:
        sweep = Sweep(reader, store, lambda *what: started.append(what), finished.append)
        found = sweep.measure("rules", CANDIDATES[:3], TASK, [0])
        assert sweep.is_measured("rules", CANDIDATES[:3], TASK, 0)
        assert not sweep.is_measured("rules", CANDIDATES, TASK, 0)
        assert not sweep.is_measured("final", CANDIDATES[:3], TASK, 0)
        assert not sweep.is_measured("rules", CANDIDATES[:3], TASK, 1)
    assert {d.candidate for d in finished} == {"plain", "late", "rule"}
    assert started[0] == ("rules", "plain", TASK.prompt_id(0))
    _, records = read_records(tmp_path / "r.jsonl")
    assert [r["candidate"] for r in records] == [d.candidate for d in finished]
    for record in records:
        assert [Answer.from_dict(a) for a in record["answers"]] == found[record["candidate"]]
        candidate = next(c for c in CANDIDATES if c.name == record["candidate"])
        assert Encoding.from_dict(record["encoding"]) == candidate.encoding
        assert record["seconds"] >= 0 and record["prompt"] == TASK.prompt_id(0)
    before = (tmp_path / "r.jsonl").read_bytes()
    finished.clear()
    with Store(tmp_path / "r.jsonl", {}) as store:
        sweep = Sweep(reader, store, on_done=finished.append)
        assert sweep.measure("rules", CANDIDATES[:3], TASK, [0]) == found
        assert (tmp_path / "r.jsonl").read_bytes() == before and not finished
        more = sweep.measure("rules", CANDIDATES, TASK, [0])
    assert [d.candidate for d in finished] == ["middle", "early"]
    assert more["middle"] == alone(reader, CANDIDATES[4].encoding, 0)


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    def stop(done: Done) -> None:
        raise KeyboardInterrupt

    reader = Reader(tiny("Llama"), byte_tokenizer())
    with Store(tmp_path / "r.jsonl", {}) as store, pytest.raises(KeyboardInterrupt):
        Sweep(reader, store, on_done=stop).measure("rules", CANDIDATES, TASK, [0])
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[1])["candidate"] == "plain"
    assert not any("forward" in module.__dict__ for module in reader.model.modules())
