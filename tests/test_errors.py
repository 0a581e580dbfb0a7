from __future__ import annotations

import copy
import pickle

import pytest

from ropewalk.errors import ArgumentError, MismatchedModelError, RopewalkError, unknown_name


@pytest.mark.parametrize("error", [ArgumentError("length", -1, "must be positive"), MismatchedModelError("differs")])
def test_an_error_comes_whole_out_of_another_process(error: RopewalkError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_an_unknown_name_says_the_nearest_or_all() -> None:
    assert str(unknown_name("rule", "yarm", ["yarn", "ntk"])) == "rule='yarm': did you mean yarn?"
    assert str(unknown_name("rule", "q", ["yarn", "ntk"])) == "rule='q': choose from ntk, yarn"
