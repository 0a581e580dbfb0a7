"""How many needles a model is asked for: which counts are measured, on what, and which is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import tiny

from ropewalk.data.text import text_of
from ropewalk.encodings.model_rotation import own_rotation
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.needle_count import COUNTS, NeedleCount, fitting_counts, needle_count
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.records import Store
from ropewalk.evaluation.statistics import Answer
from ropewalk.evaluation.sweep import Done, Sweep
from ropewalk.tasks.needle import NeedleTask

PLAIN = Candidate("plain", RoPE(16))
TASK = NeedleTask(text_of(story(700), "story"), 900, depths=1)


class FakeSweep:
    """Answers of which so many are right, by how many needles there are."""

    def __init__(self, right: dict[int, int]):
        self.right, self.calls = right, []  # type: ignore[var-annotated]
        self.reader = Reader(None, byte_tokenizer())  # type: ignore[arg-type]

    def measure(
        self, stage: str, candidates: Sequence[Candidate], task: NeedleTask, indices: Sequence[int]
    ) -> dict[str, list[Answer]]:
        (candidate,), count = candidates, len(task.depth_values)
        self.calls.append((stage, candidate.name, dataclasses.replace(task, depths=1), list(indices)))
        answers = [
            Answer(task.prompt_id(index), task.setting, depth, "k", "1", 1.0, False, "2")
            for index in indices
            for depth in task.depth_values
        ]
        right = self.right[count]
        return {candidate.name: [dataclasses.replace(a, is_exact=i < right) for i, a in enumerate(answers)]}


def decided(right: dict[int, int], task: NeedleTask = TASK) -> tuple[NeedleCount, list[Any]]:
    sweep = FakeSweep(right)
    return needle_count(sweep, PLAIN, task), sweep.calls  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("right", "count"),
    [
        ({10: 8}, 10),
        ({10: 7, 4: 10}, 4),
        ({10: 7, 4: 9, 2: 8}, 2),
        ({10: 7, 4: 9, 2: 7, 1: 4}, 1),
        ({10: 0, 4: 0, 2: 0, 1: 0}, 1),
    ],
)
def test_the_largest_count_with_enough_right_is_taken_and_no_smaller_one_measured(
    right: dict[int, int], count: int
) -> None:
    found, calls = decided(right)
    assert found.count == count
    assert {n: r for n, (r, _) in found.right.items()} == right
    assert [stage for stage, *_ in calls] == [f"needle count {n}" for n in right]
    assert {(name, task) for _, name, task, _ in calls} == {("plain", TASK)}
    assert found.length == TASK.length


def test_each_count_has_ten_answers_or_the_least_count_five() -> None:
    found, calls = decided(dict.fromkeys(COUNTS, 0))
    assert {n: asked for n, (_, asked) in found.right.items()} == {10: 10, 4: 12, 2: 10, 1: 5}
    assert [indices for *_, indices in calls] == [[0], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_counts_without_room_are_left_out() -> None:
    short = dataclasses.replace(TASK, length=290)
    assert fitting_counts(TASK, byte_tokenizer()) == COUNTS
    assert fitting_counts(short, byte_tokenizer()) == (4, 2, 1)
    found, _ = decided({4: 12}, short)
    assert found.count == 4 and list(found.right) == [4]
    with pytest.raises(ArgumentError, match="depths=0: 40 tokens, half of the training length") as error:
        fitting_counts(dataclasses.replace(TASK, length=40), byte_tokenizer())
    assert "\n" not in str(error.value)


def test_another_fault_than_room_is_told_as_it_is() -> None:
    with pytest.raises(ArgumentError, match=r"story.* are needed"):
        fitting_counts(dataclasses.replace(TASK, length=10**6), byte_tokenizer())


def test_the_sentence() -> None:
    found = NeedleCount(4, 4096, {10: (5, 10), 4: (10, 12)})
    assert found.text() == (
        "4 needles a haystack: at 4,096 tokens, half its training length, the model answers 10 of 12 right; "
        "with 10 it answers 5 of 10."
    )
    assert found.shares == {10: 0.5, 4: 10 / 12}
    least = NeedleCount(1, 128, {2: (1, 10), 1: (2, 5)})
    assert least.text() == (
        "1 needle a haystack: at 128 tokens, half its training length, the model answers 2 of 5 right, below the share "
        "of 0.8 wanted; with 2 it answers 1 of 10."
    )
    assert NeedleCount(10, 128, {10: (8, 10)}).text().endswith("the model answers 8 of 10 right.")


def test_a_run_that_goes_on_reads_the_answers_from_its_store(tmp_path: Any) -> None:
    model, done = tiny("Llama"), []  # type: ignore[var-annotated]
    rotation = own_rotation(model)
    assert rotation is not None
    found = []
    for _ in range(2):
        with Store(tmp_path / "results.jsonl", {}) as store:
            sweep = Sweep(Reader(model, byte_tokenizer()), store, on_done=done.append)
            short = dataclasses.replace(TASK, length=230)
            found.append(needle_count(sweep, Candidate("plain", rotation), short))
            keys = [r["key"] for r in store.records()]
    assert found[0] == found[1] and found[0].right == {2: (0, 10), 1: (0, 5)}
    assert len(keys) == len(set(keys)) == len(done) == 10 and isinstance(done[0], Done)
