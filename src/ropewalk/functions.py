"""Copies of a function that look up some global names elsewhere, so that nothing shared is patched."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any


def global_names(function: Callable[..., Any]) -> set[str]:
    """Every global name that a function, or a function it wraps, looks up."""
    names: set[str] = set()
    for inner in _chain(function):
        names |= set(inner.__code__.co_names)
    return names


def rebind(function: Callable[..., Any], names: Mapping[str, Any]) -> types.FunctionType:
    """A copy of `function` in which the given global names mean the given objects.

    Decorators made of closures are copied too, as far down as the names are used: the copy calls the copy. The
    original function, its module and every other user of them stay as they are.
    """
    plain = _as_function(function)
    namespace = {**plain.__globals__, **names} if set(names) & set(plain.__code__.co_names) else plain.__globals__
    copy = types.FunctionType(
        plain.__code__,
        namespace,
        plain.__name__,
        plain.__defaults__,
        tuple(_rebound_cell(cell, names) for cell in plain.__closure__ or ()) or None,
    )
    copy.__kwdefaults__ = plain.__kwdefaults__
    copy.__dict__.update(plain.__dict__)
    copy.__qualname__, copy.__doc__ = plain.__qualname__, plain.__doc__
    copy.__module__ = plain.__module__
    if "__wrapped__" in copy.__dict__ and set(names) & global_names(copy.__dict__["__wrapped__"]):
        copy.__dict__["__wrapped__"] = rebind(copy.__dict__["__wrapped__"], names)
    return copy


def innermost_globals(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The globals of the wrapped function that looks up `name`; a KeyError when none does."""
    for inner in _chain(function):
        if name in inner.__code__.co_names:
            return inner.__globals__
    raise KeyError(name)


def _rebound_cell(cell: types.CellType, names: Mapping[str, Any]) -> types.CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # an empty cell: a name that the decorator has not bound yet
        return cell
    if isinstance(held, types.FunctionType) and set(names) & global_names(held):
        return types.CellType(rebind(held, names))
    return cell


def _chain(function: Callable[..., Any]) -> list[types.FunctionType]:
    """The function and all functions that its closures hold, outermost first."""
    found: list[types.FunctionType] = []
    waiting = [_as_function(function)]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.append(current)
        for cell in current.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:
                continue
            if isinstance(held, types.FunctionType):
                waiting.append(held)
    return found


def _as_function(function: Callable[..., Any]) -> types.FunctionType:
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, types.FunctionType):
        raise TypeError(f"{function!r} is not a Python function")
    return plain
