"""Copies of functions in which some global names mean something else."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest

from ropewalk.rebind import global_names, innermost_globals, rebind

turn = 1
other = 10


def plain(x: int, *, times: int = 2) -> int:
    """Doc."""
    return x + turn * times


def recursive(x: int) -> int:
    def inner(y: int) -> int:
        return y + turn

    return inner(x)


def only_attribute(x: Any) -> Any:
    return x.turn


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) + other

    return wrapper


twice = decorated(decorated(plain))


class Layer:
    forward = twice


def test_the_copy_looks_the_name_up_elsewhere_and_nothing_else_changes():
    before = dict(globals())
    copy = rebind(plain, {"turn": 100})
    assert copy(1) == 201 and copy(1, times=1) == 101
    assert plain(1) == 3 and turn == 1 and dict(globals()) == before
    assert (copy.__name__, copy.__qualname__, copy.__doc__, copy.__module__) == (
        "plain",
        "plain",
        "Doc.",
        __name__,
    )
    assert copy.__code__ is plain.__code__ and copy.__kwdefaults__ == plain.__kwdefaults__


def test_decorators_are_copied_as_far_down_as_the_name_is_used():
    copy = rebind(twice, {"turn": 100})
    assert twice(1) == 23 and copy(1) == 221
    assert copy.__wrapped__.__wrapped__(1) == 201 and twice.__wrapped__.__wrapped__ is plain
    both = rebind(twice, {"turn": 100, "other": 0})
    assert both(1) == 201 and twice(1) == 23


def test_a_copy_of_a_copy_and_a_method():
    copy = rebind(rebind(twice, {"turn": 100}), {"other": 0})
    assert copy(1) == 201
    assert rebind(types.MethodType(plain, 5), {"turn": 100})(1) == 201


def test_names_in_inner_functions_count_and_attributes_do_not():
    assert "turn" in global_names(recursive) and rebind(recursive, {"turn": 7})(1) == 8
    assert "turn" not in global_names(only_attribute)
    assert global_names(twice) == {"turn", "other"}


def test_a_function_that_closes_over_itself():
    def countdown(n: int) -> int:
        return turn if n == 0 else countdown(n - 1)

    assert rebind(countdown, {"turn": 7})(3) == 7
    assert countdown(3) == 1


def test_an_empty_closure_cell_stays_empty():
    def outer() -> Any:
        def inner() -> Any:
            return turn, late

        copy = rebind(inner, {"turn": 7})
        late = 5
        return copy

    with pytest.raises(NameError):
        outer()()


def test_innermost_globals():
    assert innermost_globals(twice, "turn") is globals()
    with pytest.raises(KeyError):
        innermost_globals(twice, "nowhere")


@pytest.mark.parametrize("thing", [len, functools.partial(plain, 1), 3])
def test_what_is_no_python_function(thing):
    with pytest.raises(TypeError, match="not a Python function"):
        rebind(thing, {})
