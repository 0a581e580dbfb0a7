"""A run's course: what makes it another run, and what only cuts up the work."""

from __future__ import annotations

import dataclasses

import pytest

from ropewalk.errors import ArgumentError
from ropewalk.training.config import Course, check_types

COURSE = Course(steps=100, batch=8, learning_rate=3e-4)


def test_how_the_work_is_cut_up_makes_no_other_run() -> None:
    cut = dataclasses.replace(COURSE, accumulation=4, evaluation_batch=2, checkpointing=True)
    assert cut.identity() == COURSE.identity() and cut.to_dict() != COURSE.to_dict()
    assert dataclasses.replace(COURSE, batch=4).identity() != COURSE.identity()


def test_a_course_is_told_in_a_line() -> None:
    assert "learning rate 0.0003 after 2 steps" in COURSE.described() and COURSE.described().endswith("float32")
    assert "where there is a GPU" in dataclasses.replace(COURSE, precision="bfloat16").described()


@dataclasses.dataclass(frozen=True)
class Seeded:
    seed: int
    names: dict[str, str] = dataclasses.field(default_factory=dict)


def test_a_seed_may_be_0_and_what_has_no_plain_kind_is_passed_over() -> None:
    check_types(Seeded(0))
    with pytest.raises(ArgumentError, match=r"a\.seed=-1: give an integer of 0 or more"):
        check_types(Seeded(-1), "a.")
    with pytest.raises(ArgumentError, match="checkpointing=1: give true or false"):
        dataclasses.replace(COURSE, checkpointing=1)  # type: ignore[arg-type]
