"""Copies of a function that look up some global names elsewhere, so that nothing shared is patched."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def global_names(function: Callable[..., Any]) -> set[str]:
    """Every global name that a function, a function inside it, or a function it wraps, looks up."""
    names: set[str] = set()
    for inner in _chain(function):
        names |= _names_in(inner.__code__)
    return names


def rebind(function: Callable[..., Any], names: Mapping[str, Any]) -> types.FunctionType:
    """A copy of `function` in which the given global names mean the given objects.

    Decorators made of closures are copied too, as far down as the names are used: the copy calls the copy.
    The original function, its module and every other user of them stay as they are.
    """
    return _Copies(names).of(_as_function(function))


def innermost_globals(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The globals of the wrapped function that looks up `name`; a KeyError when none does."""
    for inner in _chain(function):
        if name in _names_in(inner.__code__):
            return inner.__globals__
    raise KeyError(name)


class _Copies:
    """Copies made for one set of names, each function once: one that refers to itself is fine."""

    def __init__(self, names: Mapping[str, Any]):
        self._names = names
        self._made: dict[types.FunctionType, types.FunctionType] = {}

    def of(self, plain: types.FunctionType) -> types.FunctionType:
        if plain in self._made:
            return self._made[plain]
        cells = tuple(types.CellType() for _ in plain.__closure__ or ())
        copy = types.FunctionType(
            plain.__code__, self._namespace(plain), plain.__name__, plain.__defaults__, cells or None
        )
        self._made[plain] = copy
        copy.__kwdefaults__ = plain.__kwdefaults__
        copy.__dict__.update(plain.__dict__)
        copy.__qualname__, copy.__doc__ = plain.__qualname__, plain.__doc__
        copy.__module__, copy.__annotations__ = plain.__module__, plain.__annotations__
        for cell, original in zip(cells, plain.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self._value(original.cell_contents)
            except ValueError:  # an empty cell: a name that the decorator has not bound yet
                continue
        if "__wrapped__" in copy.__dict__:
            copy.__dict__["__wrapped__"] = self._value(copy.__dict__["__wrapped__"])
        return copy

    def _value(self, held: Any) -> Any:
        """The copy of a function that uses the names; anything else as it is."""
        if isinstance(held, types.FunctionType) and set(self._names) & global_names(held):
            return self.of(held)
        return held

    def _namespace(self, plain: types.FunctionType) -> dict[str, Any]:
        if not set(self._names) & _names_in(plain.__code__):
            return plain.__globals__
        namespace = {**plain.__globals__, **self._names}
        # torch.compile looks a function's globals up by their module's name, and would find the original's.
        namespace.pop("__name__", None)
        return namespace


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


@functools.cache
def _names_in(code: types.CodeType) -> frozenset[str]:
    """Global names that a code object looks up; attribute names, kept in the same list, aren't."""
    return frozenset(
        step.argval for part in _codes(code) for step in dis.get_instructions(part) if step.opname == "LOAD_GLOBAL"
    )


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _as_function(function: Callable[..., Any]) -> types.FunctionType:
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, types.FunctionType):
        raise TypeError(f"{function!r} is not a Python function")
    return plain
